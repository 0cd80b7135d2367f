"""Pictures of any size become pictures of the size a policy sees.

    pad      the whole picture, scaled to fit and centred, black bars where nothing was
    crop     the largest centred part of the right proportions, scaled
    stretch  the whole picture, each side scaled by itself

Scaling is PIL's bilinear filter, which widens its support when it shrinks (an area-weighted triangle), so nothing
aliases. JPEGs are decoded whole first: decoding at a fraction of the size is faster, but no scale of libjpeg gives the
pixels that decoding and scaling give.
"""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Bool, Int64, UInt8
from PIL import Image

from vla_jax.core import errors, images

Fit = Literal["pad", "crop", "stretch"]
Picture = UInt8[np.ndarray, "height width 3"]
Shape = tuple[int, int, int]
Size = tuple[int, int, Fit]  # height, width, how
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

_PIECE = 16  # pictures decoded at once: enough for a source that reads neighbours together, little enough memory


class PictureSource(Protocol):
    """What reading pictures needs of a dataset; `EpisodeDataset` has more."""

    @property
    def num_frames(self) -> int: ...

    def image_shape(self, name: str) -> tuple[int, int, int]: ...

    def read_images(
        self, frames: Int64[np.ndarray, "n"], name: str, out: Sequence[Picture]
    ) -> Bool[np.ndarray, "n"]: ...


def resize(
    picture: UInt8[np.ndarray, "h w 3"], size: Size, out: UInt8[np.ndarray, "height width 3"] | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """One picture in the new size, written into `out` if given."""
    out = np.empty((*size[:2], 3), np.uint8) if out is None else out
    if picture.shape == out.shape:
        out[...] = picture
        return out
    (tall, wide), box, (top, left) = placement(picture.shape[:2], size)
    # Columns, then rows. In one call Pillow 13 may begin with the rows, older ones do not, and the bytes differ.
    bilinear, rows = Image.Resampling.BILINEAR, picture.shape[0]
    scaled = Image.fromarray(picture).resize((wide, rows), bilinear, box=(box[0], 0, box[2], rows))
    scaled = scaled.resize((wide, tall), bilinear, box=(0, box[1], wide, box[3]))
    if (tall, wide) != out.shape[:2]:
        out[...] = 0
    out[top : top + tall, left : left + wide] = np.asarray(scaled)
    return out


def placement(shape: tuple[int, int], size: Size) -> tuple[tuple[int, int], Box, tuple[int, int]]:
    """How a picture of this height and width becomes one of `size`: the height and width it is scaled to, the part of
    it that is scaled (left, top, right, bottom), and the row and column where the result begins."""
    (tall, wide), (height, width, fit) = shape, size
    inner, box = (height, width), (0.0, 0.0, float(wide), float(tall))
    if fit == "pad":
        ratio = max(wide / width, tall / height)
        inner = (max(1, int(tall / ratio)), max(1, int(wide / ratio)))
    elif fit == "crop":
        ratio = min(wide / width, tall / height)
        left, top = max(0.0, (wide - width * ratio) / 2), max(0.0, (tall - height * ratio) / 2)  # rounding goes below
        box = (left, top, wide - left, tall - top)
    return inner, box, ((height - inner[0]) // 2, (width - inner[1]) // 2)


class ChangedPictures:
    """A source whose pictures are changed as soon as they are decoded, a few at a time."""

    def __init__(
        self, source: PictureSource, shape_of: Callable[[Shape], Shape], change: Callable[[Picture, Picture], None]
    ):
        """`shape_of` is the shape that a stored one becomes; `change(stored, out)` fills a picture of it."""
        self._source, self._shape_of, self._change = source, shape_of, change

    @property
    def num_frames(self) -> int:
        return self._source.num_frames

    def image_shape(self, name: str) -> tuple[int, int, int]:
        return self._shape_of(self._source.image_shape(name))

    def read_images(self, frames: Int64[np.ndarray, "n"], name: str, out: Sequence[Picture]) -> Bool[np.ndarray, "n"]:
        stored = np.empty((min(_PIECE, len(frames)), *self._source.image_shape(name)), np.uint8)
        ok = np.empty(len(frames), bool)
        for first in range(0, len(frames), _PIECE):
            rows = range(first, min(first + _PIECE, len(frames)))
            ok[rows.start : rows.stop] = self._source.read_images(
                frames[rows.start : rows.stop], name, stored[: len(rows)]
            )
            for i, row in enumerate(rows):
                self._change(stored[i], out[row])
        return ok


def resized_pictures(source: PictureSource, size: Size) -> ChangedPictures:
    """Pictures of another size; see `resize`."""
    return ChangedPictures(source, lambda _: (*size[:2], 3), lambda stored, out: resize(stored, size, out))


def averaged_pictures(source: PictureSource, factor: int) -> ChangedPictures:
    """Pictures averaged in blocks of `factor` x `factor` pixels. Asking for the shape raises ConfigError when the
    factor does not divide the size."""

    def shape_of(shape: Shape) -> Shape:
        return images.average_blocks(np.empty(shape, np.uint8), factor).shape

    def average(stored: Picture, out: Picture) -> None:
        out[...] = images.average_blocks(stored, factor)

    return ChangedPictures(source, shape_of, average)


def check_size(size: Size, place: str) -> None:
    """Raise ConfigError unless this is a size."""
    height, width, fit = size
    if height < 1 or width < 1 or fit not in ("pad", "crop", "stretch"):
        raise errors.ConfigError(
            place, expected='(height, width, how), how one of "pad", "crop", "stretch"', found=size
        )
