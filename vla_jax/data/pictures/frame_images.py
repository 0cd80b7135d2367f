"""Decoded camera frames of a dataset, kept in memory where they fit."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from vla_jax.core import errors
from vla_jax.data.formats.episodes import EpisodeDataset
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.data.pictures.resize import PictureSource

Pictures = Sequence[UInt8[np.ndarray, "height width 3"]]


class FrameImages:
    """One camera of one dataset: every frame is read the first time it is asked for and copied from memory afterwards.

    So a small set (20,000 frames of 64x64 are 0.25 GB per camera) costs its decoding once and not once per epoch.
    """

    def __init__(self, source: PictureSource, name: str):
        self._source, self._name = source, name
        self.shape = source.image_shape(name)
        self._kept = np.empty((source.num_frames, *self.shape), np.uint8)  # its pages fill on first use
        self._is_kept = np.zeros(source.num_frames, bool)
        self._is_good = np.zeros(source.num_frames, bool)

    def gather(
        self, frames: Int64[np.ndarray, "..."]
    ) -> tuple[UInt8[np.ndarray, "... height width 3"], Bool[np.ndarray, "..."]]:
        """The pictures of these frames, and which of them are real: a damaged or absent one is black.

        Raises DataError when the fault policy of the dataset does not tolerate the damage.
        """
        missing = np.unique(frames[~self._is_kept[frames]])
        if missing.size:
            # Two threads may read the same frame at once: both write the same bytes, and the flag comes last.
            pictures = np.empty((len(missing), *self.shape), np.uint8)
            self._is_good[missing] = self._source.read_images(missing, self._name, pictures)
            self._kept[missing] = pictures
            self._is_kept[missing] = True
        return np.take(self._kept, frames, axis=0), self._is_good[frames]


class SmallPictures:
    """The pictures of an RLDS set with both sides divided by `scale` inside the JPEG decoder.

    Quicker than `averaged_pictures` of the same factor, and not equal to it: `image_codec.decode` says by how much. So
    it is for training and acting on pictures made this way alone, and a config has to ask for it.
    """

    def __init__(self, dataset: EpisodeDataset, scale: int):
        """Raises ConfigError unless `scale` is 2, 4 or 8 and the set is RLDS."""
        if scale not in (2, 4, 8):
            raise errors.ConfigError("scale inside the JPEG decoder", expected="2, 4 or 8", found=scale)
        if not isinstance(dataset, RldsDataset):
            raise errors.ConfigError(
                f"{dataset.place}: pictures are not made smaller inside the JPEG decoder",
                expected="an RLDS dataset",
                found=type(dataset).__name__,
                fix="drop downscale_in_decoder from the DatasetConfig",
            )
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
