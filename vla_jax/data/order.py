"""The endless global order of frames: a pure function of the seed and the position in the stream."""

from collections.abc import Sequence

import grain
import numpy as np
from jaxtyping import Int64

from vla_jax.core import errors


class GlobalOrder:
    """Every epoch an exact, fresh permutation of all frames, computed by position (no shuffle buffer).

    With several datasets, `weights` are the fractions of the stream that each supplies (by default in proportion to
    their frames), spread evenly, and every dataset goes through epochs of its own.
    """

    def __init__(self, num_frames: Sequence[int], seed: int, weights: Sequence[float] | None = None):
        if not 0 <= seed < 2**32 - len(num_frames):
            raise errors.ConfigError("seed", expected="an unsigned 32-bit integer", found=seed)
        weights = tuple(num_frames) if weights is None else tuple(weights)
        if len(weights) != len(num_frames) or min(weights) <= 0:
            raise errors.ConfigError(
                "weights", expected=f"{len(num_frames)} positive numbers, one per dataset", found=weights
            )
        self._starts = np.concatenate([[0], np.cumsum(num_frames)])
        parts = [
            # Another seed per dataset: twins of equal length would otherwise march in step.
            grain.MapDataset.range(int(start), int(stop)).seed(seed + i).shuffle().repeat()
            for i, (start, stop) in enumerate(zip(self._starts, self._starts[1:], strict=False))
        ]
        self._order = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights=weights)

    def __call__(self, start: int, stop: int) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
        """The dataset and the frame within it for every position of `range(start, stop)`."""
        places = np.fromiter((self._order[i] for i in range(start, stop)), np.int64, stop - start)
        datasets = np.searchsorted(self._starts, places, side="right") - 1
        return datasets, places - self._starts[datasets]
