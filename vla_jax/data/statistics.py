"""Statistics of columns in one pass, chunk by chunk: bounded memory at any number of frames, and no image is touched.

    summary = summarize(lambda frames: dataset.columns["action"][frames], dataset.num_frames)
    summary.merge(summary_of_another_shard)
    summary.finish()                                  # FieldStatistics

Count, minimum and maximum are exact. Mean and variance are merged by the pairwise update of Chan, Golub and LeVeque
(Algorithms for computing the sample variance, 1983, eq. 2.1), which does not cancel where values are far from zero.

Quantiles follow one rule: up to `EXACT_FRAMES` frames all values are kept and quantiles are exact; beyond, values are
counted in bins of a float32's leading 20 bits (sign, exponent and 11 bits of mantissa), whose order is that of the
values. A quantile then is off by at most `RELATIVE_ERROR` times the larger of the order statistics around it, whatever
outliers a column has: there is no range to choose. (Below 1e-38 a number counts as 0.) Bins are the same for every
shard, so shards merge exactly, and in any order.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64

from vla_jax.core import errors
from vla_jax.data.formats.episodes import EpisodeDataset
from vla_jax.data.normalization import FieldStatistics, Statistics

EXACT_FRAMES = 2**20  # frames whose values are kept; 16 dims are 64 MB
RELATIVE_ERROR = 2.0**-11  # of a quantile of more frames than that
CHUNK_FRAMES = 2**18
_VERSION = 1  # raise it when the same columns would give other numbers
_DROPPED_BITS = 12  # of a float32's 32
_NUM_BINS = 1 << (32 - _DROPPED_BITS)
_ZERO_BIN = _NUM_BINS // 2
_SMALLEST = np.finfo(np.float32).tiny

Read = Callable[[Int64[np.ndarray, "n"]], Float[np.ndarray, "n d"]]  # frame numbers -> rows of a field


class Summary:
    """What is known of a field of `dim` numbers per frame after some of its frames."""

    def __init__(self, dim: int, exact_frames: int = EXACT_FRAMES):
        self._exact_frames = exact_frames
        self.count = 0
        self._mean = np.zeros(dim)
        self._squares = np.zeros(dim)  # sum of squared distances from the mean
        self._min, self._max = np.full(dim, np.inf, np.float32), np.full(dim, -np.inf, np.float32)
        self._kept: list[Float[np.ndarray, "n d"]] | None = []  # None: counted in bins
        self._bins: Int64[np.ndarray, "d bins"] | None = None

    @property
    def dim(self) -> int:
        return len(self._mean)

    @property
    def is_exact(self) -> bool:
        """Whether quantiles are exact."""
        return self._bins is None

    def add(self, values: Float[np.ndarray, "n d"], place: str = "statistics") -> None:
        """Take in more frames. Raises DataError naming `place` where a number is not finite."""
        values = np.ascontiguousarray(values, np.float32)
        if values.ndim != 2 or values.shape[1] != self.dim:
            raise errors.DataError(place, expected=f"rows of {self.dim} numbers", found=f"shape {list(values.shape)}")
        if len(values) == 0:
            return
        low, high = values.min(0), values.max(0)  # both carry a NaN on
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            bad = ~np.isfinite(values)
            raise errors.DataError(
                f"{place}: NaN or infinity",
                expected="finite numbers",
                found=f"{int(bad.any(1).sum())} frames, dims {np.flatnonzero(bad.any(0)).tolist()}",
                fix="`vla-jax data lint` lists the frames; drop those episodes",
            )
        mean = values.mean(0, dtype=np.float64)
        centred = values - mean
        self._join_moments(len(values), mean, np.einsum("nd,nd->d", centred, centred))
        self._min, self._max = np.minimum(self._min, low), np.maximum(self._max, high)
        self._keep([values])

    def merge(self, other: "Summary") -> None:
        """Take in what another summary of the same field has seen."""
        if other.dim != self.dim:
            raise errors.DataError(
                "statistics of different fields cannot be merged", expected=f"{self.dim} dims", found=other.dim
            )
        if other.count == 0:
            return
        self._join_moments(other.count, other._mean, other._squares)
        self._min, self._max = np.minimum(self._min, other._min), np.maximum(self._max, other._max)
        if other._bins is None:
            self._keep(other._kept)
        else:
            self._fold()
            self._bins += other._bins

    def finish(self) -> FieldStatistics:
        """Raises DataError when nothing was added."""
        if self.count == 0:
            raise errors.DataError("statistics", expected="at least one frame", found="none")
        q01, q99 = self.quantiles((0.01, 0.99))
        rows = (self._mean, np.sqrt(self._squares / self.count), q01, q99, self._min, self._max)
        return FieldStatistics(*(tuple(np.asarray(row, np.float64).tolist()) for row in rows), count=self.count)

    def quantiles(self, fractions: tuple[float, ...]) -> Float64[np.ndarray, "q d"]:
        """As `np.quantile` has them: linear between the order statistics at `fraction * (count - 1)`."""
        if self._bins is None:
            return np.quantile(np.concatenate(self._kept).astype(np.float64), fractions, axis=0)
        return np.stack([self._binned_quantiles(dim, np.asarray(fractions)) for dim in range(self.dim)], axis=1)

    def _join_moments(self, count: int, mean: Float64[np.ndarray, "d"], squares: Float64[np.ndarray, "d"]) -> None:
        total, apart = self.count + count, mean - self._mean
        self._squares = self._squares + squares + apart**2 * (self.count * count / total)
        self._mean = self._mean + apart * (count / total)
        self.count = total

    def _keep(self, chunks: list[Float[np.ndarray, "n d"]]) -> None:
        """Keep the chunks' values while all fit, else count them; `count` already includes them."""
        if self._bins is None and self.count <= self._exact_frames:
            self._kept += chunks
            return
        self._fold()
        for chunk in chunks:
            self._count(chunk)

    def _fold(self) -> None:
        if self._bins is None:
            self._bins = np.zeros((self.dim, _NUM_BINS), np.int64)
            for chunk in self._kept:
                self._count(chunk)
            self._kept = None

    def _count(self, values: Float[np.ndarray, "n d"]) -> None:
        for dim in range(self.dim):
            keys = _bin_of(values[:, dim])
            first = int(keys.min())
            counts = np.bincount(keys - first)
            self._bins[dim, first : first + len(counts)] += counts

    def _binned_quantiles(self, dim: int, fractions: Float64[np.ndarray, "q"]) -> Float64[np.ndarray, "q"]:
        """The values of a bin are taken as evenly spread over it, within the field's extremes."""
        bins = np.flatnonzero(self._bins[dim])
        ends = np.cumsum(self._bins[dim, bins])
        starts = ends - self._bins[dim, bins]

        def order_statistic(rank: Int64[np.ndarray, "q"]) -> Float64[np.ndarray, "q"]:
            at = np.searchsorted(ends, rank, side="right")
            low, high = _edges(bins[at])
            within = (rank - starts[at] + 0.5) / (ends[at] - starts[at])
            return np.clip(low + (high - low) * within, self._min[dim], self._max[dim])

        place = fractions * (self.count - 1)
        below = np.floor(place).astype(np.int64)
        above = np.minimum(below + 1, self.count - 1)
        low, high = order_statistic(below), order_statistic(above)
        return low + (high - low) * (place - below)


def summarize(read: Read, num_frames: int, place: str = "statistics", *, chunk_frames: int = CHUNK_FRAMES) -> Summary:
    """One pass over the rows that `read` gives, `chunk_frames` at a time. Raises DataError naming `place`."""
    summary = Summary(read(np.zeros(1, np.int64)).shape[-1])
    for start in range(0, num_frames, chunk_frames):
        summary.add(read(np.arange(start, min(start + chunk_frames, num_frames))), place)
    return summary


def fingerprint(dataset: EpisodeDataset, names: Sequence[str]) -> str:
    """Changes when a number of these columns or a bound of an episode changes, and not when the set is moved or indexed
    again. Reads the columns once: about a tenth of what their statistics cost."""
    digest = hashlib.sha256(np.asarray(dataset.episode_starts, np.int64).tobytes())
    for name in names:
        column = dataset.columns[name]
        digest.update(json.dumps([name, column.dtype.str, column.shape]).encode())
        for start in range(0, len(column), CHUNK_FRAMES):
            digest.update(np.ascontiguousarray(column[start : start + CHUNK_FRAMES]))
    return digest.hexdigest()


def default_cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vla_jax" / "statistics"


def cached(parts: Mapping[str, Any], compute: Callable[[], Statistics], folder: str | Path | None = None) -> Statistics:
    """`compute()`, or what it gave for the same `parts` before: JSON values that name the data (fingerprints) and
    everything of the config that the numbers depend on. Kept in `folder`, by default `$XDG_CACHE_HOME/vla_jax`."""
    key = hashlib.sha256(json.dumps([_VERSION, parts], sort_keys=True).encode()).hexdigest()[:32]
    path = Path(folder or default_cache_folder()) / f"{key}.json"
    if path.is_file():
        return Statistics.load(path)
    computed = compute()
    computed.save(path)
    return computed


def _bin_of(values: Float[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
    """The leading bits of a float32, turned so that larger values have larger numbers; 0 has a bin of its own."""
    bits = np.where(np.abs(values) < _SMALLEST, np.float32(0), values).view(np.uint32)
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return (ordered >> _DROPPED_BITS).astype(np.int64)


def _edges(bins: Int64[np.ndarray, "n"]) -> tuple[Float64[np.ndarray, "n"], Float64[np.ndarray, "n"]]:
    """The smallest and the largest float32 of every bin."""
    first = (bins << _DROPPED_BITS).astype(np.uint32)
    last = np.where(bins == _ZERO_BIN, first, first | np.uint32((1 << _DROPPED_BITS) - 1))

    def value(ordered: np.ndarray) -> np.ndarray:
        bits = np.where(ordered >> 31, ordered & np.uint32((1 << 31) - 1), ~ordered)
        return bits.astype(np.uint32).view(np.float32).astype(np.float64)

    return value(first), value(last)
