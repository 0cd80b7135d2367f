"""The endless global order of samples: a pure function of the seed and the position in the stream.

    position --schedule--> dataset, and how many of its samples came before --permutation of that epoch--> sample

There is no shuffle buffer and no state: any process, thread or resumed run asks for the positions it needs, whole
arrays at once. Epochs belong to datasets: each set of a mixture gives all its samples once, in a fresh order, before
any of them comes again, however often the others were gone through. A mixture as a whole has no epochs.
"""

import functools
import heapq
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Int32, Int64, UInt64

from vla_jax.core import errors
from vla_jax.data.samples import draws

_ROUNDS = 8
_LARGEST_PERIOD = 1 << 16  # positions; the schedule of a mixture repeats after at most so many


class GlobalOrder:
    """Every epoch of every dataset an exact, fresh permutation of its samples, computed by position.

    With several datasets, `weights` are the fractions of the stream that each supplies (by default in proportion to
    their sizes). They are kept exactly when they have a common denominator of at most 65536, such as 0.25, 0.1 or
    thirds, and rounded to multiples of 1/65536 otherwise; `shares` says which. In any prefix of the stream every
    dataset is less than one sample away from its share.
    """

    def __init__(self, num_samples: Sequence[int], seed: int, weights: Sequence[float] | None = None):
        """Raises ConfigError for an empty dataset, a seed that is not 32 bits, or weights that are not positive."""
        if not 0 <= seed < 2**32:
            raise errors.ConfigError("seed", expected="an unsigned 32-bit integer", found=seed)
        if not num_samples or min(num_samples) < 1:
            raise errors.ConfigError("the order of samples", expected="datasets with samples", found=tuple(num_samples))
        weights = tuple(num_samples) if weights is None else tuple(weights)
        if len(weights) != len(num_samples) or not all(0 < weight < math.inf for weight in weights):
            raise errors.ConfigError(
                "weights", expected=f"{len(num_samples)} positive numbers, one per dataset", found=weights
            )
        self._num_samples, self._seed = tuple(map(int, num_samples)), seed
        self._counts = integer_shares(weights)
        self._schedule, self._rank = _schedule(self._counts)

    @property
    def shares(self) -> tuple[Fraction, ...]:
        """The exact fraction of the stream that each dataset supplies."""
        return tuple(Fraction(count, sum(self._counts)) for count in self._counts)

    def __call__(self, start: int, stop: int) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
        """The dataset and the sample within it for every position of `range(start, stop)`."""
        return self.at(np.arange(start, stop, dtype=np.int64))

    def at(self, positions: Int64[np.ndarray, "n"]) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
        """The same for any positions, in any order."""
        period, offset = np.divmod(positions, len(self._schedule))
        datasets = self._schedule[offset].astype(np.int64)
        samples = np.empty_like(datasets)
        for number, (size, count) in enumerate(zip(self._num_samples, self._counts, strict=True)):
            rows = slice(None) if len(self._counts) == 1 else np.flatnonzero(datasets == number)
            epoch, index = np.divmod(period[rows] * count + self._rank[offset[rows]], size)
            samples[rows] = permute(index, size, draws.fold(self._seed, number, epoch))
        return datasets, samples


def permute(index: Int64[np.ndarray, "n"], size: int, keys: UInt64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
    """Where the permutation of `range(size)` that belongs to a key sends an index.

    A Feistel network over the smallest near-square grid with at least `size` cells: a cell outside `range(size)` is
    sent on until it falls inside (cycle walking), which keeps the map one to one. The grid has fewer than
    2 * sqrt(size) cells too many, so hardly any index walks. Source: Black and Rogaway, "Ciphers with arbitrary finite
    domains" (2002).
    """
    width = math.isqrt(size - 1) + 1
    height = -(-size // width)
    found = _feistel(index.astype(np.uint64), np.uint64(height), np.uint64(width), keys)
    outside = np.flatnonzero(found >= size)
    while outside.size:
        found[outside] = _feistel(found[outside], np.uint64(height), np.uint64(width), keys[outside])
        outside = outside[found[outside] >= size]
    return found.astype(np.int64)


def _feistel(cell: UInt64[np.ndarray, "n"], height: np.uint64, width: np.uint64, keys: np.ndarray) -> np.ndarray:
    """A keyed permutation of the cells of a grid: each round shifts one coordinate by a hash of the other."""
    row, column = np.divmod(cell, width)
    for number in range(_ROUNDS):
        with np.errstate(over="ignore"):
            round_keys = keys + np.uint64(number * 0x9E3779B97F4A7C15 % 2**64)
        if number % 2 == 0:
            row = _shift(row, column, height, round_keys)
        else:
            column = _shift(column, row, width, round_keys)
    return row * width + column


def _shift(moved: np.ndarray, other: np.ndarray, bound: np.uint64, keys: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        hashed = draws.mix(other + keys) >> np.uint64(32)
    moved = moved + ((hashed * bound) >> np.uint64(32))  # the product of 32-bit numbers, scaled back to [0, bound)
    return np.where(moved >= bound, moved - bound, moved)


def integer_shares(weights: Sequence[float]) -> tuple[int, ...]:
    """How often each dataset comes in one period: whole numbers in proportion to the weights, at least 1 each.

    Exact where the fractions have a common denominator of at most 65536; floats count as the fraction they stand for.
    """
    total = sum(map(Fraction, weights))
    shares = [_simplest(Fraction(weight) / total) for weight in weights]
    if sum(shares) != 1:
        shares = [Fraction(weight) / total for weight in weights]
    denominator = math.lcm(*(share.denominator for share in shares))
    period = denominator if denominator <= _LARGEST_PERIOD else _LARGEST_PERIOD
    counts = [max(1, math.floor(share * period)) for share in shares]
    # The largest remainders are rounded up; datasets lifted to 1 are paid for by the largest ones.
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i] * period, i))
    left = period - sum(counts)
    for i in by_remainder[: max(left, 0)]:
        counts[i] += 1
    while sum(counts) > period:
        counts[counts.index(max(counts))] -= 1
    return tuple(counts)


def _simplest(share: Fraction) -> Fraction:
    """The fraction a float was written as (0.1 and 1/3 have no exact one), if it has a small denominator."""
    simple = share.limit_denominator(_LARGEST_PERIOD)
    return simple if abs(simple - share) < Fraction(1, 10**13) else share


@functools.lru_cache(maxsize=16)
def _schedule(counts: tuple[int, ...]) -> tuple[Int32[np.ndarray, "period"], Int32[np.ndarray, "period"]]:
    """For every position of a period its dataset, and how many positions before it have the same one.

    Earliest deadline first: sample k (from 0) of a dataset with fraction w comes at position floor(k / w) or later and
    before position ceil((k + 1) / w), which keeps every prefix within one sample of the shares. Such a schedule always
    exists: R. Tijdeman, "The chairman assignment problem" (1980).
    """
    period = sum(counts)
    schedule, rank = np.empty(period, np.int32), np.empty(period, np.int32)
    given = [0] * len(counts)
    released: list[tuple[int, int]] = [(-(-period // count), i) for i, count in enumerate(counts)]  # (deadline, i)
    heapq.heapify(released)
    waiting: list[tuple[int, int]] = []  # (first position, i)
    for position in range(period):
        while waiting and waiting[0][0] <= position:
            i = heapq.heappop(waiting)[1]
            heapq.heappush(released, (-(-(given[i] + 1) * period // counts[i]), i))
        i = heapq.heappop(released)[1]
        schedule[position], rank[position] = i, given[i]
        given[i] += 1
        heapq.heappush(waiting, (given[i] * period // counts[i], i))
    return schedule, rank
