"""`resize` inside a jit: the same bytes as PIL's, so that a policy in a simulator sees what it saw in training.

PIL scales in two passes, columns first, each a weighted sum of pixels in integers: weights of 22 bits, rounded, the sum
rounded to a level. The weights follow from the sizes alone, so they are constants of the program; what is left for the
device is to gather and to add, in 32-bit integers. Source: ImagingResample of Pillow.
"""

import functools
import math

import numpy as np
from jaxtyping import Array, Int32, Int64, UInt8

from vla_jax.data.pictures.resize import Size, placement, resize

_BITS = 22  # 32 less 8 of a pixel and 2 for the sum


def resize_batch(images: UInt8[Array, "*b h w 3"], size: Size) -> UInt8[Array, "*b height width 3"]:
    """Pictures in the new size: numpy arrays by PIL, traced ones by the same arithmetic."""
    if not isinstance(images, np.ndarray):
        return resize_integers(images, size)
    out = np.empty((*images.shape[:-3], *size[:2], 3), np.uint8)
    for index in np.ndindex(*images.shape[:-3]):
        resize(images[index], size, out[index])
    return out


def resize_integers(images: UInt8[Array, "*b h w 3"], size: Size) -> UInt8[Array, "*b height width 3"]:
    """PIL's arithmetic on arrays, traced or not."""
    height, width, _ = size
    if tuple(images.shape[-3:-1]) == (height, width):
        return images
    (tall, wide), (left, top, right, bottom), (row, column) = placement(tuple(images.shape[-3:-1]), size)
    images = _scale(images, -2, wide, left, right)
    images = _scale(images, -3, tall, top, bottom)
    around = [(0, 0)] * (images.ndim - 3) + [(row, height - tall - row), (column, width - wide - column), (0, 0)]
    return images.__array_namespace__().pad(images, around)


def _scale(
    images: UInt8[Array, "*b h w 3"], axis: int, length: int, start: float, stop: float
) -> UInt8[Array, "*b h2 w2 3"]:
    """One pass: the pixels from `start` to `stop` along `axis` become `length` of them."""
    places, weights = _weights(images.shape[axis], length, start, stop)
    shape = [1] * images.ndim
    shape[axis] = length
    pixels, take = images.astype("int32"), images.__array_namespace__().take
    taps = zip(places, weights, strict=True)
    total = sum(take(pixels, place, axis=axis) * weight.reshape(shape) for place, weight in taps)
    # The weights add up to 1 give or take their rounding, so the sum may pass 255 by nothing that survives the shift.
    return ((total + (1 << (_BITS - 1))) >> _BITS).astype("uint8")


@functools.lru_cache(maxsize=64)
def _weights(
    length_in: int, length: int, start: float, stop: float
) -> tuple[Int64[np.ndarray, "taps length"], Int32[np.ndarray, "taps length"]]:
    """Which pixels each new one is made of, and how much of each, in units of 2 ** -22: a triangle as wide as two new
    pixels, or two old ones where those are larger."""
    start, stop = np.float32(start), np.float32(stop)  # as PIL keeps them
    start, scale = float(start), float(stop - start) / length
    support = max(scale, 1.0)
    taps = 2 * math.ceil(support) + 1
    centers = start + (np.arange(length) + 0.5) * scale
    first = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    past = np.minimum((centers + support + 0.5).astype(np.int64), length_in)
    places = first[:, None] + np.arange(taps)
    triangle = np.maximum(1 - np.abs((places - centers[:, None] + 0.5) * (1 / support)), 0)
    triangle[places >= past[:, None]] = 0
    # Added up one by one, as PIL does: another order would round differently.
    total = np.add.accumulate(triangle, axis=1)[:, -1:]
    weights = (0.5 + triangle / total * (1 << _BITS)).astype(np.int32)
    return np.minimum(places, length_in - 1).T, weights.T
