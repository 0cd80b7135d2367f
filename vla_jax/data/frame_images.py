"""Decoded camera frames of a dataset, kept in memory where they fit."""

import numpy as np
from jaxtyping import Int64, UInt8

from vla_jax.core import errors, images
from vla_jax.data.formats import image_codec
from vla_jax.data.formats.rlds import RldsDataset


class FrameImages:
    """One camera of one dataset.

    With `keep`, every frame is decoded the first time it is asked for and copied from memory afterwards, so that a
    small set (20,000 frames of 64x64 are 0.25 GB per camera) costs its decoding once and not once per epoch.
    """

    def __init__(self, dataset: RldsDataset, name: str, keep: bool, downscale: int = 1):
        self._dataset, self._name, self._downscale = dataset, name, downscale
        self._stored_shape = dataset.image(0, name).shape
        self.shape = images.average_blocks(np.empty(self._stored_shape, np.uint8), downscale).shape
        self._kept = np.empty((dataset.num_frames, *self.shape), np.uint8) if keep else None  # pages fill on first use
        self._is_kept = np.zeros(dataset.num_frames, bool) if keep else None

    @staticmethod
    def num_bytes(dataset: RldsDataset, name: str, downscale: int = 1) -> int:
        """Size of all decoded and shrunk frames, taking the first as the measure."""
        return dataset.num_frames * dataset.image(0, name).size // downscale**2

    def gather(self, frames: Int64[np.ndarray, "..."]) -> UInt8[np.ndarray, "... height width 3"]:
        """The pictures of these frames. Raises DataError where one is damaged or has another size."""
        out = np.empty((*frames.shape, *self.shape), np.uint8)
        rows, flat = frames.ravel(), out.reshape(-1, *self.shape)
        if self._kept is None:
            for row, frame in enumerate(rows):
                self._decode(int(frame), flat[row])
            return out
        # Two threads may decode the same frame at once: both write the same bytes, and the flag comes last.
        for frame in np.unique(rows[~self._is_kept[rows]]):
            self._decode(int(frame), self._kept[frame])
            self._is_kept[frame] = True
        np.take(self._kept, rows, axis=0, out=flat)
        return out

    def _decode(self, frame: int, out: image_codec.Picture) -> None:
        try:
            data = self._dataset.image_bytes(frame, self._name)
            if self._downscale == 1:
                image_codec.decode(data, out)
            else:
                whole = image_codec.decode(data, np.empty(self._stored_shape, np.uint8))
                out[...] = images.average_blocks(whole, self._downscale)
        except ValueError as error:
            raise errors.DataError(
                f'{self._dataset.describe_frame(frame)}: "steps/{self._name}" cannot be used',
                expected=f"a picture of shape {list(self._stored_shape)}",
                found=str(error),
                fix="rebuild the set with one image size per camera, or drop this episode",
            ) from error
