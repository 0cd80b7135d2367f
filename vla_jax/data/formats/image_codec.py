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
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(str(error)) from error


def decode(data: bytes, out: Picture | None = None, scale: int = 1) -> Picture:
    """An RGB array, written into the contiguous `out` if given. Raises ValueError when the bytes are no picture, or one
    of another size than `out`.

    Fast paths of libjpeg (fastdct, fastupsample) stay off: they differ from PIL by up to 48 levels.

    A `scale` of 2, 4 or 8 divides both sides of a JPEG inside the decoder, by an inverse transform of the lower
    frequencies alone. That is quicker than decoding whole and averaging blocks, and close to it but not equal: smooth
    pictures differ by a few levels, and edges, with colour stored at half the resolution, by tens. ValueError when
    `scale` does not divide the sides, or when the picture is no JPEG.
    """
    if data[:2] != _JPEG_START:
        if scale != 1:
            raise ValueError("only a JPEG can be scaled while it is decoded")
        picture = _decode_with_pil(data)
    else:
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        if scale not in (1, 2, 4, 8) or height % scale or width % scale:
            raise ValueError(f"a picture of {height} x {width} cannot be scaled by 1/{scale}")
        height, width = height // scale, width // scale
        fits = out is not None and out.shape[:2] == (height, width)
        sizes = {"min_height": height, "min_width": width, "min_factor": scale} if scale > 1 else {}
        picture = simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=out if fits else None, **sizes)
        if fits:
            return picture
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
    except (UnidentifiedImageError, OSError, SyntaxError) as error:  # PIL's three ways to say that it is damaged
        raise ValueError(str(error)) from error
