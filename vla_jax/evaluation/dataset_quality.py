"""How good and how varied is a set of trajectories: trajectory quality (TQ) and state-action coverage (SACo).

Source: Schweighofer et al., A Dataset Perspective on Offline Reinforcement Learning, arXiv 2111.04714.
    TQ   = (mean return - g_min) / (g_max - g_min)          exploitation: 0 is a random policy, 1 the best one seen
    SACo = distinct (state, action) here / in the reference   exploration: 1 is the reference, often a replay buffer

States and actions become keys by bins whose limits are those of the reference. Distinct keys are counted exactly, or,
for sets whose keys do not fit into memory, by a HyperLogLog sketch (Flajolet et al. 2007) of 1 % standard error; both
kinds of counter merge over shards. Unlike the authors' exact counter, which adds state and action arrays, a key is the
concatenation of both.
"""

import dataclasses
from typing import Protocol

import numpy as np
from jaxtyping import Float, Float64, Int32, Int64, UInt8, UInt64

from vla_jax.core import errors
from vla_jax.data.formats.episodes import EpisodeDataset

NUM_BINS = 100  # per dim, as in the paper
_INDEX_BITS = 14  # 2^14 registers: a standard error of 1.04 / 128 = 0.8 %
_CHUNK_FRAMES = 1 << 18
_EXACT_KEYS = 10**7  # beyond, a sketch counts


@dataclasses.dataclass(frozen=True)
class Limits:
    """Where bins begin and end, per dim."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def of(cls, values: Float[np.ndarray, "n d"]) -> "Limits":
        """The extremes of the reference set."""
        if len(values) == 0 or not np.isfinite(values).all():
            raise errors.DataError("limits of bins", expected="finite numbers", found=f"{len(values)} rows")
        return cls(tuple(values.min(0).tolist()), tuple(values.max(0).tolist()))


@dataclasses.dataclass(frozen=True)
class QualityCard:
    """One set in six numbers; None where the set does not say, or nothing was given to compare with."""

    tq: float | None
    saco: float | None
    num_trajectories: int
    mean_length: float
    reward_sparsity: float | None  # share of frames whose reward is 0
    action_entropy: float  # mean over dims of the entropy of the binned values, 0 (constant) to 1 (uniform)
    mean_return: float | None  # of finished episodes
    unique: int  # distinct state-action bins
    unique_is_exact: bool


class Counter(Protocol):
    """Counts distinct rows of bins."""

    def add(self, bins: Int32[np.ndarray, "n d"]) -> None: ...

    def count(self) -> int: ...


class ExactCounter:
    """The distinct keys themselves, as hashes of 64 bits: the chance that any two of 10^7 meet is 3 in a million."""

    def __init__(self) -> None:
        self._keys: UInt64[np.ndarray, keys] = np.zeros(0, np.uint64)

    def add(self, bins: Int32[np.ndarray, "n d"]) -> None:
        self._keys = np.union1d(self._keys, hash_rows(bins))

    def merge(self, other: "ExactCounter") -> None:
        self._keys = np.union1d(self._keys, other._keys)

    def count(self) -> int:
        return len(self._keys)


class HyperLogLog:
    """An estimate of the number of distinct keys in 16 kB, however many there are.

    Every register holds the longest run of leading zeros among the hashes that fall to it. The estimate is Ertl's
    (arXiv 1702.01284, algorithm 6), which has no bias from 0 to the largest counts and so needs no table.
    """

    def __init__(self, index_bits: int = _INDEX_BITS):
        if not 4 <= index_bits <= 20:
            raise errors.ConfigError("HyperLogLog.index_bits", expected="4 to 20", found=index_bits)
        self._index_bits = index_bits
        self._registers: UInt8[np.ndarray, registers] = np.zeros(1 << index_bits, np.uint8)

    @property
    def standard_error(self) -> float:
        """Relative."""
        return 1.04 / np.sqrt(len(self._registers))

    def add(self, bins: Int32[np.ndarray, "n d"]) -> None:
        hashes = hash_rows(bins)
        register = (hashes >> np.uint64(64 - self._index_bits)).astype(np.int64)
        rest = hashes & np.uint64((1 << (64 - self._index_bits)) - 1)
        np.maximum.at(self._registers, register, (64 - self._index_bits + 1 - _bit_length(rest)).astype(np.uint8))

    def merge(self, other: "HyperLogLog") -> None:
        if other._index_bits != self._index_bits:
            raise errors.ConfigError(
                "HyperLogLog.index_bits", expected=f"{self._index_bits}, as here", found=other._index_bits
            )
        self._registers = np.maximum(self._registers, other._registers)

    def count(self) -> int:
        longest = 64 - self._index_bits
        m = len(self._registers)
        histogram = np.bincount(self._registers, minlength=longest + 2)
        z = m * _tau(1 - histogram[longest + 1] / m)
        for k in range(longest, 0, -1):
            z = 0.5 * (z + histogram[k])
        z += m * _sigma(histogram[0] / m)
        return round(m * m / (2 * np.log(2)) / z) if np.isfinite(z) else 0


def trajectory_quality(returns: Float[np.ndarray, "episodes"], g_min: float, g_max: float) -> float:
    """TQ of undiscounted returns of finished episodes; below 0 or above 1 is possible.

    `g_min`: mean return of a uniformly random policy; `g_max`: the best evaluation return seen.
    """
    if len(returns) == 0 or not g_max > g_min:
        raise errors.ConfigError(
            "trajectory quality",
            expected="at least one return, and g_max above g_min",
            found=f"{len(returns)} returns, g_min={g_min}, g_max={g_max}",
        )
    return (float(np.mean(returns)) - g_min) / (g_max - g_min)


def saco(unique: int, reference_unique: int) -> float:
    """SACo of two counts made with the same limits; above 1 is possible."""
    if reference_unique < 1:
        raise errors.ConfigError("SACo", expected="a reference with state-actions", found=reference_unique)
    return unique / reference_unique


def digitize(values: Float[np.ndarray, "n d"], limits: Limits, num_bins: int = NUM_BINS) -> Int32[np.ndarray, "n d"]:
    """The bin of every value: its place among `num_bins` equally spaced edges from low to high, both included.

    Values below the lowest edge get bin 0, those from the highest edge on get bin `num_bins`. A dim without width has
    one bin.
    """
    if num_bins < 2:
        raise errors.ConfigError("num_bins", expected="at least 2", found=num_bins)
    low, high = np.array(limits.low), np.array(limits.high)
    if values.ndim != 2 or values.shape[1] != len(low):
        raise errors.DataError("bins", expected=f"rows of {len(low)} numbers, as the limits", found=values.shape)
    width = np.where(high > low, high - low, 1.0) / (num_bins - 1)
    # The small shift puts a value that lies on an edge of its grid (a discrete feature) above it for certain.
    place = np.floor((np.asarray(values, np.float64) - low) / width + 1e-9) + 1
    return np.where(high > low, np.clip(place, 0, num_bins), 0).astype(np.int32)


def unique_state_actions(
    states: Float[np.ndarray, "n s"],
    actions: Float[np.ndarray, "n a"],
    limits: Limits,
    counter: Counter,
    num_bins: int = NUM_BINS,
) -> None:
    """Add the state-actions to `counter`; `limits` are those of states and actions side by side."""
    counter.add(digitize(np.concatenate([states, actions], axis=1), limits, num_bins))


def hash_rows(rows: Int32[np.ndarray, "n d"]) -> UInt64[np.ndarray, "n"]:
    """64 well mixed bits per row, different when any entry or the order of entries differs (splitmix64 per entry)."""
    state = np.full(len(rows), np.uint64(1))
    for column in rows.T:
        state = _mix(state ^ _mix(column.astype(np.uint32).astype(np.uint64)))
    return state


def finished_returns(dataset: EpisodeDataset, reward_name: str = "reward") -> Float64[np.ndarray, "episodes"]:
    """Undiscounted returns of the episodes; those that a set marks as unfinished (no last step) are left out."""
    rewards = np.asarray(dataset.columns[reward_name], np.float64).reshape(-1)
    starts = np.asarray(dataset.episode_starts)
    returns = np.add.reduceat(rewards, starts[:-1])
    if "is_last" not in dataset.columns:
        return returns
    return returns[np.asarray(dataset.columns["is_last"]).reshape(-1)[starts[1:] - 1].astype(bool)]


def quality_card(
    dataset: EpisodeDataset,
    state_names: tuple[str, ...] = ("observation/state",),
    action_names: tuple[str, ...] = ("action",),
    *,
    reference: EpisodeDataset | None = None,
    g_min: float | None = None,
    g_max: float | None = None,
    reward_name: str = "reward",
    exact_keys: int = _EXACT_KEYS,
) -> QualityCard:
    """The card of a set, in one pass over its columns; no picture is touched.

    SACo compares with `reference` (the authors take the replay buffer of a training run, of the same size), whose
    extremes are then the limits of the bins; without one, the set's own extremes are, and SACo stays None. TQ needs
    `g_min` and `g_max`. A sketch counts where there are more than `exact_keys` frames.
    """
    names = (*state_names, *action_names)
    limits = _limits(reference or dataset, names)
    is_exact = max(dataset.num_frames, reference.num_frames if reference else 0) <= exact_keys
    unique, histogram = _count(dataset, names, limits, is_exact)
    has_reward = reward_name in dataset.columns
    returns = finished_returns(dataset, reward_name) if has_reward else np.zeros(0)
    num_action_dims = sum(_width(dataset, name) for name in action_names)
    return QualityCard(
        tq=trajectory_quality(returns, g_min, g_max) if len(returns) and None not in (g_min, g_max) else None,
        saco=None if reference is None else saco(unique, _count(reference, names, limits, is_exact)[0]),
        num_trajectories=len(dataset),
        mean_length=dataset.num_frames / len(dataset),
        reward_sparsity=float(np.mean(np.asarray(dataset.columns[reward_name]) == 0)) if has_reward else None,
        action_entropy=_entropy(histogram[-num_action_dims:]),
        mean_return=float(returns.mean()) if len(returns) else None,
        unique=unique,
        unique_is_exact=is_exact,
    )


def _count(
    dataset: EpisodeDataset, names: tuple[str, ...], limits: Limits, is_exact: bool
) -> tuple[int, Int64[np.ndarray, "d bins"]]:
    """Distinct keys, and how often every bin of every dim was met."""
    counter: Counter = ExactCounter() if is_exact else HyperLogLog()
    histogram = np.zeros((len(limits.low), NUM_BINS + 1), np.int64)
    for rows in _chunks(dataset, names):
        bins = digitize(rows, limits)
        counter.add(bins)
        for dim, column in enumerate(bins.T):
            histogram[dim] += np.bincount(column, minlength=NUM_BINS + 1)
    return counter.count(), histogram


def _limits(dataset: EpisodeDataset, names: tuple[str, ...]) -> Limits:
    parts = [Limits.of(rows) for rows in _chunks(dataset, names)]
    low, high = np.min([part.low for part in parts], axis=0), np.max([part.high for part in parts], axis=0)
    return Limits(tuple(low.tolist()), tuple(high.tolist()))


def _chunks(dataset: EpisodeDataset, names: tuple[str, ...]):
    for name in names:
        if name not in dataset.columns:
            raise errors.DataError(
                f'{dataset.place}: no numbers called "{name}"', fix=errors.closest(name, dataset.columns)
            )
    for start in range(0, dataset.num_frames, _CHUNK_FRAMES):
        parts = [np.asarray(dataset.columns[name][start : start + _CHUNK_FRAMES], np.float64) for name in names]
        yield np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)


def _width(dataset: EpisodeDataset, name: str) -> int:
    return int(np.prod(dataset.columns[name].shape[1:], dtype=np.int64))


def _entropy(histogram: Int64[np.ndarray, "d bins"]) -> float:
    shares = histogram / histogram.sum(1, keepdims=True)
    entropies = -(shares * np.log(np.where(shares > 0, shares, 1))).sum(1) / np.log(NUM_BINS)
    return float(entropies.mean())


def _mix(x: UInt64[np.ndarray, "n"]) -> UInt64[np.ndarray, "n"]:
    """The finalizer of splitmix64 (Steele et al. 2014) after its increment: a bijection of 64 bits."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _bit_length(x: UInt64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
    """Digits of a number in base 2; 0 has none. In two halves, because a float64 rounds above 53 bits."""
    high, low = (x >> np.uint64(32)).astype(np.float64), (x & np.uint64(0xFFFFFFFF)).astype(np.float64)
    return np.where(high > 0, 32 + np.frexp(high)[1], np.frexp(low)[1])


def _sigma(x: float) -> float:
    """x + sum over k >= 1 of x^(2^k) 2^(k-1): the part of the empty registers."""
    if x == 1:
        return np.inf
    total, factor, last = x, 1.0, -1.0
    while total != last:
        x, last = x * x, total
        total, factor = total + x * factor, 2 * factor
    return total


def _tau(x: float) -> float:
    """The part of the full registers."""
    if x in (0.0, 1.0):
        return 0.0
    total, factor, last = 1 - x, 1.0, -1.0
    while total != last:
        x, last, factor = np.sqrt(x), total, 0.5 * factor
        total -= (1 - x) ** 2 * factor
    return total / 3
