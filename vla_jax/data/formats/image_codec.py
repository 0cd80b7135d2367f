"""JPEG and PNG to uint8 arrays and back."""

import io
import struct
import zlib

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

_JPEG_START = b"\xff\xd8"
# What PIL raises for damaged bytes.
_DAMAGE = (UnidentifiedImageError, OSError, SyntaxError, struct.error, zlib.error, Image.DecompressionBombError)
Picture = UInt8[np.ndarray, "height width 3"]


def encode_jpeg(image: Picture, quality: int = 95) -> bytes:
    """JPEG without chroma subsampling: thin coloured things are what a robot's camera looks at."""
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="444"
    )


def encode_png(image: Picture) -> bytes:
    """PNG, lossless; compressed lightly, because size hardly gains from more."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def image_shape(data: bytes) -> tuple[int, int, int]:
    """Height, width and 3, read from the header. Raises ValueError when the bytes are no picture."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width, 3
    except _DAMAGE as error:
        raise ValueError(str(error)) from error


def decode(data: bytes, out: Picture | None = None, scale: int = 1) -> Picture:
    """An RGB array, written into the contiguous `out` if given. Raises ValueError when the bytes are no picture, or one
    of another size than `out`.

    Fast paths of libjpeg (fastdct, fastupsample) stay off: they differ from PIL by up to 48 levels.

    A `scale` of 2, 4 or 8 divides both sides of a JPEG inside the decoder, by an inverse transform of the lower
    frequencies alone. That is quicker than decoding whole and averaging blocks, and not equal to it: pictures stored
    with full colour differ by up to 5 levels, those with colour at half the resolution (4:2:0) by up to 50 at coloured
    edges. Raises ValueError when `scale` does not divide the sides, or when the picture is no JPEG.
    """
    if data[:2] == _JPEG_START:
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        if scale not in (1, 2, 4, 8) or height % scale or width % scale:
            raise ValueError(f"a picture of {height} x {width} cannot be scaled by 1/{scale}")
        height, width = height // scale, width // scale
        if out is not None:
            _check_shape((height, width, 3), out)  # before decoding: a damaged header may ask for gigabytes
        sizes = {"min_height": height, "min_width": width, "min_factor": scale} if scale > 1 else {}
        return simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=out, **sizes)
    if scale != 1:
        raise ValueError("only a JPEG can be scaled while it is decoded")
    return _decode_with_pil(data, out)


def _check_shape(shape: tuple[int, ...], out: Picture) -> None:
    if shape != out.shape:
        raise ValueError(f"a picture of shape {list(shape)} where the others have {list(out.shape)}")


def _decode_with_pil(data: bytes, out: Picture | None) -> Picture:
    try:
        with Image.open(io.BytesIO(data)) as image:
            if out is None:
                return np.asarray(image.convert("RGB"))
            _check_shape((image.height, image.width, 3), out)
            out[...] = np.asarray(image.convert("RGB"))
            return out
    except _DAMAGE as error:
        raise ValueError(str(error)) from error
