"""JPEG and PNG to uint8 arrays and back."""

import io

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

_JPEG_START = b"\xff\xd8"
Picture = UInt8[np.ndarray, "height width 3"]


def encode_jpeg(image: Picture, quality: int = 95) -> bytes:
    """JPEG without chroma subsampling: thin coloured things are what a robot's camera looks at."""
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="444"
    )


def image_shape(data: bytes) -> tuple[int, int, int]:
    """Height, width and 3, read from the header. Raises ValueError when the bytes are no picture."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width, 3
    except UnidentifiedImageError as error:
        raise ValueError(str(error)) from error


def decode(data: bytes, out: Picture | None = None) -> Picture:
    """An RGB array, written into the contiguous `out` if given. Raises ValueError when the bytes are no picture, or one
    of another size than `out`.

    Fast paths of libjpeg (fastdct, fastupsample) stay off: they differ from PIL by up to 48 levels.
    """
    if data[:2] != _JPEG_START:
        picture = _decode_with_pil(data)
    elif out is None:
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    elif simplejpeg.decode_jpeg_header(data)[:2] == out.shape[:2]:
        return simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=out)
    else:
        picture = simplejpeg.decode_jpeg(data, colorspace="RGB")
    if out is None:
        return picture
    if picture.shape != out.shape:
        raise ValueError(f"a picture of shape {list(picture.shape)} where the others have {list(out.shape)}")
    out[...] = picture
    return out


def _decode_with_pil(data: bytes) -> Picture:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise ValueError(str(error)) from error
