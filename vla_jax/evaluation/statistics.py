"""How sure a benchmark number is: intervals, paired tests, and how many episodes a claim needs.

Success rates get Wilson intervals, other means a seeded bootstrap. Two policies evaluated from the same initial states
are compared pair by pair, which removes the variance that easy and hard initial states share. Everything here is numpy
on small arrays; `success` means a boolean array with one entry per episode.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from vla_jax.core import errors

_RESAMPLED_VALUES_AT_ONCE = 2_000_000  # keeps the bootstrap of a long run below 50 MB
_EXACT_SIGN_FLIPS = 16  # up to 2^16 sign patterns are enumerated, beyond that they are drawn


class Interval(NamedTuple):
    """A confidence interval, both ends included."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"[{self.low:.3f}, {self.high:.3f}]"


@dataclasses.dataclass(frozen=True)
class PairedComparison:
    """What a paired comparison of runs a and b found; `difference` is b minus a."""

    mean_a: float
    mean_b: float
    difference: float
    interval: Interval  # of the difference
    p_value: float  # two-sided, of "no difference"
    test: str  # "exact McNemar" or "sign-flip permutation"
    pairs: int
    needed_pairs: int | None  # to find this difference with the asked power; None when the difference is 0


def wilson(successes: int, episodes: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a success rate; (0, 1) without episodes.

    Unlike the normal approximation it never leaves [0, 1] and has a width at 0 and at `episodes` successes.
    Source: Wilson 1927; Newcombe 1998 (Statistics in Medicine 17:857), method 3.
    """
    if not 0 <= successes <= episodes:
        raise errors.ConfigError(
            "Wilson interval of a success rate", expected="0 <= successes <= episodes", found=f"{successes}, {episodes}"
        )
    if episodes == 0:
        return Interval(0.0, 1.0)
    z = _normal_quantile(confidence)
    rate = successes / episodes
    centre = rate + z**2 / (2 * episodes)
    spread = z * math.sqrt(rate * (1 - rate) / episodes + z**2 / (4 * episodes**2))
    scale = 1 + z**2 / episodes
    # at the ends the formula is exact, rounding is not
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == episodes else (centre + spread) / scale
    return Interval(low, high)


def bootstrap_mean(
    values: Float[np.ndarray, "n"],
    confidence: float = 0.95,
    *,
    method: Literal["percentile", "bca"] = "bca",
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval of a mean. "bca" corrects for bias and skew, "percentile" does not.

    Source: Efron 1987 (JASA 82:171), eqs. 3.8, 6.4 and 6.6. Raises ConfigError without values.
    """
    values = _filled("bootstrap of a mean", values)
    means = _resampled_means(values, num_resamples, np.random.default_rng(seed))
    levels = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    if method == "bca":
        levels = _bca_levels(values, means, levels)
    low, high = np.quantile(means, levels)
    return Interval(float(low), float(high))


def bootstrap_seeds(
    values: Sequence[Float[np.ndarray, "n"]], confidence: float = 0.95, *, num_resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile interval of the mean over training seeds: seeds are resampled, then the episodes of each.

    `values` holds the per-episode values of every seed. Pooling the episodes instead would treat seeds that differ as
    one policy and give an interval that is too narrow. With fewer than five seeds even this one is too narrow.
    """
    values = [_filled("bootstrap over seeds", episodes) for episodes in values]
    draw = np.random.default_rng(seed)
    # the mean of one resampled seed, drawn often enough for every place it may take
    means = np.array([_resampled_means(v, num_resamples * len(values), draw) for v in values])
    chosen = draw.integers(len(values), size=(num_resamples, len(values)))
    columns = np.arange(num_resamples * len(values)).reshape(num_resamples, len(values))
    low, high = np.quantile(means[chosen, columns].mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def interquartile_mean(scores: Float[np.ndarray, "*n"]) -> float:
    """Mean of the middle half of all scores: less swayed by outliers than the mean, less wasteful than the median.

    A quarter of the scores, rounded down, is dropped on each side. Source: arXiv 2108.13264, section 4.3.
    """
    ordered = np.sort(_filled("interquartile mean", scores), axis=None)
    dropped = ordered.size // 4
    return float(ordered[dropped : ordered.size - dropped].mean())


def stratified_bootstrap(
    scores: Float[np.ndarray, "seeds tasks"],
    statistic: Callable[[Float[np.ndarray, "seeds tasks"]], float] = interquartile_mean,
    confidence: float = 0.95,
    *,
    num_resamples: int = 2_000,
    seed: int = 0,
) -> Interval:
    """Percentile interval of `statistic` where seeds are resampled within each task and the tasks are kept.

    Source: arXiv 2108.13264, section 4.2.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or scores.size == 0:
        raise errors.ConfigError(
            "stratified bootstrap", expected="scores [seeds, tasks]", found=f"shape {scores.shape}"
        )
    num_seeds, num_tasks = scores.shape
    draw = np.random.default_rng(seed)
    estimates = [
        statistic(scores[draw.integers(num_seeds, size=(num_seeds, num_tasks)), np.arange(num_tasks)])
        for _ in range(num_resamples)
    ]
    low, high = np.quantile(estimates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value of McNemar's test from the discordant pairs: those that only a, or only b, solved.

    Under "no difference" each of them is a fair coin; concordant pairs say nothing.
    """
    discordant = only_a + only_b
    if discordant == 0:
        return 1.0
    tail = sum(math.comb(discordant, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**discordant)


def sign_flip(differences: Float[np.ndarray, "n"], *, num_resamples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of "the paired differences are symmetric around 0", by flipping their signs.

    All sign patterns are enumerated up to 16 non-zero differences; beyond that `num_resamples` of them are drawn and
    the observed one is counted in, so that the value is never 0.
    """
    differences = _filled("sign-flip test", differences)
    differences = differences[differences != 0]
    if differences.size == 0:
        return 1.0
    observed = abs(differences.sum())
    at_least = observed - 1e-12 * np.abs(differences).sum()  # sums in another order round differently
    if differences.size <= _EXACT_SIGN_FLIPS:
        patterns = np.arange(2**differences.size)[:, None] >> np.arange(differences.size) & 1
        return float(np.mean(np.abs((2 * patterns - 1) @ differences) >= at_least))
    draw = np.random.default_rng(seed)
    as_extreme = 0
    for size in _chunk_sizes(num_resamples, differences.size):
        signs = draw.integers(0, 2, size=(size, differences.size), dtype=np.int8) * 2 - 1
        as_extreme += int(np.sum(np.abs(signs @ differences) >= at_least))
    return (1 + as_extreme) / (1 + num_resamples)


def compare_success(
    success_a: Bool[np.ndarray, "n"], success_b: Bool[np.ndarray, "n"], confidence: float = 0.95, power: float = 0.8
) -> PairedComparison:
    """Two policies from the same initial states, entry i of both arrays being initial state i.

    Difference of success rates with Newcombe's paired interval, exact McNemar test, and the pairs needed to tell
    policies with these discordant rates apart at level `1 - confidence` with `power`.
    """
    success_a, success_b = _paired(np.asarray(success_a, bool), np.asarray(success_b, bool))
    both, neither = int(np.sum(success_a & success_b)), int(np.sum(~success_a & ~success_b))
    only_a, only_b = int(np.sum(success_a & ~success_b)), int(np.sum(~success_a & success_b))
    pairs = success_a.size
    return PairedComparison(
        mean_a=float(success_a.mean()),
        mean_b=float(success_b.mean()),
        difference=(only_b - only_a) / pairs,
        interval=newcombe_paired(both, only_b, only_a, neither, confidence),
        p_value=mcnemar(only_a, only_b),
        test="exact McNemar",
        pairs=pairs,
        needed_pairs=needed_pairs(only_a / pairs, only_b / pairs, confidence, power),
    )


def compare_means(
    values_a: Float[np.ndarray, "n"],
    values_b: Float[np.ndarray, "n"],
    confidence: float = 0.95,
    power: float = 0.8,
    *,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> PairedComparison:
    """As `compare_success` for any per-episode value: bootstrap over pairs, sign-flip test, normal power formula."""
    values_a, values_b = _paired(np.asarray(values_a, np.float64), np.asarray(values_b, np.float64))
    differences = values_b - values_a
    mean, deviation = float(differences.mean()), float(differences.std(ddof=min(1, differences.size - 1)))
    quantiles = _normal_quantile(confidence) + NormalDist().inv_cdf(power)
    return PairedComparison(
        mean_a=float(values_a.mean()),
        mean_b=float(values_b.mean()),
        difference=mean,
        interval=bootstrap_mean(differences, confidence, num_resamples=num_resamples, seed=seed),
        p_value=sign_flip(differences, num_resamples=num_resamples, seed=seed),
        test="sign-flip permutation",
        pairs=differences.size,
        needed_pairs=None if mean == 0 else max(1, math.ceil((quantiles * deviation / mean) ** 2)),
    )


def newcombe_paired(both: int, only_first: int, only_second: int, neither: int, confidence: float = 0.95) -> Interval:
    """Interval of `first rate - second rate` for paired successes, from the four counts.

    Source: Newcombe 1998 (Statistics in Medicine 17:2635), method 10: Wilson limits of both rates, joined with the
    correlation of the pairs, continuity-corrected when it is positive.
    """
    pairs = both + only_first + only_second + neither
    if pairs == 0:
        return Interval(-1.0, 1.0)
    first, second = (both + only_first) / pairs, (both + only_second) / pairs
    first_limits = wilson(both + only_first, pairs, confidence)
    second_limits = wilson(both + only_second, pairs, confidence)
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    determinant = both * neither - only_first * only_second
    if determinant > 0:
        determinant = max(determinant - pairs / 2, 0)
    correlation = determinant / math.sqrt(margins) if margins else 0.0

    def joined(first_arm: float, second_arm: float) -> float:
        return math.sqrt(max(first_arm**2 - 2 * correlation * first_arm * second_arm + second_arm**2, 0.0))

    difference = first - second
    return Interval(
        difference - joined(first - first_limits.low, second_limits.high - second),
        difference + joined(first_limits.high - first, second - second_limits.low),
    )


def needed_pairs(only_a_rate: float, only_b_rate: float, confidence: float = 0.95, power: float = 0.8) -> int | None:
    """Paired episodes after which McNemar's test finds these discordant rates with probability `power`.

    None when the rates are equal: no number of episodes separates equal policies.
    Source: Connett, Smith and McHugh 1987 (Statistics in Medicine 6:531).
    """
    discordant, difference = only_a_rate + only_b_rate, abs(only_b_rate - only_a_rate)
    if difference == 0:
        return None
    under_null = _normal_quantile(confidence) * math.sqrt(discordant)
    under_difference = NormalDist().inv_cdf(power) * math.sqrt(discordant - difference**2)
    return math.ceil(((under_null + under_difference) / difference) ** 2)


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise errors.ConfigError("confidence level", expected="between 0 and 1, for example 0.95", found=confidence)
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _bca_levels(
    values: Float[np.ndarray, "n"], means: Float[np.ndarray, "resamples"], levels: Float[np.ndarray, "2"]
) -> Float[np.ndarray, "2"]:
    centred = values - values.mean()
    cubes, squares = np.sum(centred**3), np.sum(centred**2)
    if squares == 0:
        return levels  # all values equal: every resample has the same mean
    acceleration = cubes / (6 * squares**1.5)  # the jackknife values of a mean are -centred / (n - 1)
    observed = values.mean()
    below = np.mean(means < observed) + np.mean(means == observed) / 2
    normal = NormalDist()
    bias = normal.inv_cdf(float(np.clip(below, 1 / (2 * means.size), 1 - 1 / (2 * means.size))))
    quantiles = bias + np.array([normal.inv_cdf(level) for level in levels])
    return np.array([normal.cdf(bias + q / (1 - acceleration * q)) for q in quantiles])


def _resampled_means(
    values: Float[np.ndarray, "n"], count: int, draw: np.random.Generator
) -> Float[np.ndarray, "count"]:
    chunks = [
        values[draw.integers(values.size, size=(size, values.size))].mean(axis=1)
        for size in _chunk_sizes(count, values.size)
    ]
    return np.concatenate(chunks)


def _chunk_sizes(count: int, width: int) -> Iterator[int]:
    at_once = max(1, _RESAMPLED_VALUES_AT_ONCE // width)
    for start in range(0, count, at_once):
        yield min(at_once, count - start)


def _filled(place: str, values: Shaped[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    values = np.asarray(values, np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        raise errors.ConfigError(place, expected="at least one value, all finite", found=f"{values.size} values")
    return values


def _paired(
    a: Shaped[np.ndarray, "n"], b: Shaped[np.ndarray, "n"]
) -> tuple[Shaped[np.ndarray, "n"], Shaped[np.ndarray, "n"]]:
    if a.shape != b.shape or a.ndim != 1 or a.size == 0:
        raise errors.ConfigError(
            "paired comparison",
            expected="one value per initial state in both runs",
            found=f"shapes {a.shape} and {b.shape}",
            fix="evaluate both runs with the same seed and number of episodes",
        )
    return a, b
