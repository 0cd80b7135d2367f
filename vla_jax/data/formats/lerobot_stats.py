"""Statistics in the form LeRobot stores them: of every episode, and of all of them together.

min, max, mean, std, count and the quantiles 1, 10, 50, 90 and 99 percent; pictures per channel in [0, 1], shaped
[3, 1, 1]. Those of one episode are exact (pictures: over a sample of its frames). Together, all but the quantiles are
exact; quantiles are the mean of the episodes' weighted by their frames, which is how LeRobot merges them.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Num, UInt8

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
Statistics = Mapping[str, np.ndarray]  # by statistic; "count" is [1]


def of_numbers(values: Num[np.ndarray, "frames *shape"]) -> dict[str, np.ndarray]:
    """Over the frames of an episode; numbers of one per frame give [1]."""
    values = values.astype(np.float64)
    values = values[:, None] if values.ndim == 1 else values
    return {
        "min": values.min(0),
        "max": values.max(0),
        "mean": values.mean(0),
        "std": values.std(0),
        "count": np.array([len(values)]),
        **dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values()), axis=0), strict=True)),
    }


class PictureStatistics:
    """Levels of the pixels of pictures that come one at a time."""

    def __init__(self):
        self._levels = np.zeros((3, 256), np.int64)
        self._count = 0

    def add(self, picture: UInt8[np.ndarray, "height width 3"]) -> None:
        stride = max(1, max(picture.shape[:2]) // 150)  # as LeRobot does: neighbouring pixels say the same
        for channel in range(3):
            self._levels[channel] += np.bincount(picture[::stride, ::stride, channel].ravel(), minlength=256)
        self._count += 1

    def result(self) -> dict[str, np.ndarray]:
        levels, total = np.arange(256) / 255, self._levels.sum(1, keepdims=True)
        share = self._levels / total
        mean = share @ levels
        below = np.cumsum(self._levels, axis=1)
        per_channel = {
            "min": levels[(self._levels > 0).argmax(1)],
            "max": levels[255 - (self._levels[:, ::-1] > 0).argmax(1)],
            "mean": mean,
            "std": np.sqrt(np.maximum((share * (levels - mean[:, None]) ** 2).sum(1), 0)),
            **{name: levels[(below >= q * total).argmax(1)] for name, q in QUANTILES.items()},
        }
        return {name: value[:, None, None] for name, value in per_channel.items()} | {"count": np.array([self._count])}


class Merged:
    """The statistics of one feature over all episodes added so far."""

    def __init__(self, first: Statistics):
        self._now = dict(first)

    def add(self, new: Statistics) -> None:
        old = self._now
        n, m = float(old["count"][0]), float(new["count"][0])
        share = m / (n + m)
        shift = new["mean"] - old["mean"]
        variance = old["std"] ** 2 * (1 - share) + new["std"] ** 2 * share + shift**2 * share * (1 - share)
        self._now = {
            "min": np.minimum(old["min"], new["min"]),
            "max": np.maximum(old["max"], new["max"]),
            "mean": old["mean"] + shift * share,
            "std": np.sqrt(variance),
            "count": old["count"] + new["count"],
            **{name: old[name] + (new[name] - old[name]) * share for name in QUANTILES},
        }

    def result(self) -> dict[str, np.ndarray]:
        return dict(self._now)

    def to_plain(self) -> dict[str, list]:
        """As JSON values, which carry a float64 exactly."""
        return {name: value.tolist() for name, value in self._now.items()}

    @classmethod
    def from_plain(cls, stored: Mapping[str, list]) -> "Merged":
        return cls({name: np.array(value) for name, value in stored.items()})


def sampled_frames(num_frames: int) -> frozenset[int]:
    """Which pictures of an episode its statistics look at: at most 32, evenly spread."""
    return frozenset(np.unique(np.linspace(0, num_frames - 1, min(num_frames, 32)).round().astype(int)).tolist())
