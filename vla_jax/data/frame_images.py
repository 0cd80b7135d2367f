"""Decoded camera frames of a dataset, kept in memory where they fit."""

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from vla_jax.core import errors, images
from vla_jax.data.formats.episodes import EpisodeDataset
from vla_jax.data.formats.rlds import RldsDataset

Pictures = UInt8[np.ndarray, "n height width 3"]


class FrameImages:
    """One camera of one dataset.

    With `keep`, every frame is decoded the first time it is asked for and copied from memory afterwards, so that a
    small set (20,000 frames of 64x64 are 0.25 GB per camera) costs its decoding once and not once per epoch.
    """

    def __init__(self, dataset: EpisodeDataset, name: str, keep: bool, downscale: int = 1):
        self._dataset, self._name, self._downscale = dataset, name, downscale
        self._stored_shape = dataset.image_shape(name)
        self.shape = images.average_blocks(np.empty(self._stored_shape, np.uint8), downscale).shape
        self._kept = np.empty((dataset.num_frames, *self.shape), np.uint8) if keep else None  # pages fill on first use
        self._is_kept = np.zeros(dataset.num_frames, bool) if keep else None
        self._is_good = np.zeros(dataset.num_frames, bool) if keep else None

    @staticmethod
    def num_bytes(dataset: EpisodeDataset, name: str, downscale: int = 1) -> int:
        """Size of all decoded and shrunk frames."""
        return dataset.num_frames * int(np.prod(dataset.image_shape(name))) // downscale**2

    def gather(
        self, frames: Int64[np.ndarray, "..."]
    ) -> tuple[UInt8[np.ndarray, "... height width 3"], Bool[np.ndarray, "..."]]:
        """The pictures of these frames, and which of them are real: a damaged or absent one is black.

        Raises DataError when the fault policy of the dataset does not tolerate the damage.
        """
        rows = frames.ravel()
        pictures, ok = self._read(rows) if self._kept is None else self._from_memory(rows)
        return pictures.reshape(*frames.shape, *self.shape), ok.reshape(frames.shape)

    def _from_memory(self, rows: Int64[np.ndarray, "n"]) -> tuple[Pictures, Bool[np.ndarray, "n"]]:
        missing = np.unique(rows[~self._is_kept[rows]])
        if missing.size:
            # Two threads may decode the same frame at once: both write the same bytes, and the flag comes last.
            self._kept[missing], self._is_good[missing] = self._read(missing)
            self._is_kept[missing] = True
        return np.take(self._kept, rows, axis=0), self._is_good[rows]

    def _read(self, rows: Int64[np.ndarray, "n"]) -> tuple[Pictures, Bool[np.ndarray, "n"]]:
        whole = np.empty((len(rows), *self._stored_shape), np.uint8)
        ok = self._dataset.read_images(rows, self._name, whole)
        return images.average_blocks(whole, self._downscale), ok


class SmallPictures:
    """The pictures of an RLDS set with both sides divided by `scale` inside the JPEG decoder.

    Quicker than `AveragedPictures` of the same factor, and not equal to it: `image_codec.decode` says by how much. So
    it is for training and acting on pictures made this way alone, and a config has to ask for it.
    """

    def __init__(self, dataset: RldsDataset, scale: int):
        """Raises ConfigError unless `scale` is 2, 4 or 8."""
        if scale not in (2, 4, 8):
            raise errors.ConfigError("scale inside the JPEG decoder", expected="2, 4 or 8", found=scale)
        self._dataset, self._scale = dataset, scale

    @property
    def num_frames(self) -> int:
        return self._dataset.num_frames

    def image_shape(self, name: str) -> tuple[int, int, int]:
        """Raises ConfigError when the scale does not divide the size."""
        height, width, channels = self._dataset.image_shape(name)
        if height % self._scale or width % self._scale:
            raise errors.ConfigError(
                f'scale of "{name}" inside the JPEG decoder',
                expected=f"a divisor of {height} x {width}",
                found=self._scale,
            )
        return height // self._scale, width // self._scale, channels

    def read_images(self, frames: Int64[np.ndarray, "n"], name: str, out: Pictures) -> Bool[np.ndarray, "n"]:
        """As `EpisodeDataset.read_images`."""
        return self._dataset.read_scaled_images(frames, name, out, self._scale)
