import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from vla_jax.core import errors
from vla_jax.evaluation import statistics


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    # Newcombe 1998, table I, row "method 3"; a normal approximation gives [0.2522, 0.3638] for the first row
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(successes, episodes, low, high):
    assert statistics.wilson(successes, episodes) == pytest.approx((low, high), abs=6e-5)


@given(episodes=st.integers(1, 500), data=st.data())
def test_wilson_holds_the_rate_stays_in_range_and_mirrors_failures(episodes, data):
    successes = data.draw(st.integers(0, episodes))
    low, high = statistics.wilson(successes, episodes)
    assert 0 <= low <= successes / episodes <= high <= 1
    mirrored = statistics.wilson(episodes - successes, episodes)
    assert (low, high) == pytest.approx((1 - mirrored.high, 1 - mirrored.low))


def test_no_episodes_say_nothing():
    assert statistics.wilson(0, 0) == (0.0, 1.0)


def test_more_successes_than_episodes_raise():
    with pytest.raises(errors.ConfigError, match="found     3, 2"):
        statistics.wilson(3, 2)


def test_one_seed_is_the_plain_bootstrap():
    values = np.random.default_rng(0).normal(size=80)
    plain = statistics.bootstrap_mean(values, method="percentile")
    assert statistics.bootstrap_seeds([values]) == pytest.approx(plain, abs=0.02)


def test_seeds_that_differ_widen_the_interval_that_pooling_gives():
    seeds = [np.repeat([1.0, 0.0], [ones, 100 - ones]) for ones in (20, 50, 80, 50, 50)]
    pooled = statistics.bootstrap_mean(np.concatenate(seeds))
    low, high = statistics.bootstrap_seeds(seeds)
    # variance of the mean: seed means vary by 0.19^2 / 5 = 0.0072, episodes of a seed by 0.21 / 500 = 0.0004
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(0.0076), rel=0.06)
    assert pooled.high - pooled.low < 0.09


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_bootstrap_agrees_with_scipy(method):
    values = np.random.default_rng(1).exponential(size=40)
    ours = statistics.bootstrap_mean(values, method=method)
    theirs = scipy.stats.bootstrap((values,), np.mean, method=method, rng=3).confidence_interval
    # two seeds of scipy's own differ by up to 0.02 here; percentile and bca differ by 0.06 and more
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.03)


def test_bootstrap_is_a_function_of_its_seed():
    values = np.arange(20.0)
    assert statistics.bootstrap_mean(values, seed=1) == statistics.bootstrap_mean(values, seed=1)
    assert statistics.bootstrap_mean(values, seed=1) != statistics.bootstrap_mean(values, seed=2)


def test_bootstrap_of_equal_values_has_no_width():
    assert statistics.bootstrap_mean(np.full(7, 0.25)) == (0.25, 0.25)


def test_bootstrap_of_a_long_run_does_not_depend_on_its_chunks(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    whole = statistics.bootstrap_mean(values, num_resamples=400)
    monkeypatch.setattr(statistics, "_RESAMPLED_VALUES_AT_ONCE", 300)
    assert statistics.bootstrap_mean(values, num_resamples=400) == whole


@given(only_a=st.integers(0, 60), only_b=st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(only_a, only_b):
    expected = scipy.stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert statistics.mcnemar(only_a, only_b) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_survives_thousands_of_pairs():
    assert statistics.mcnemar(1900, 2100) == pytest.approx(scipy.stats.binomtest(1900, 4000).pvalue, rel=1e-6)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),  # Newcombe 1998 (paired), table II: negative correlation, no correction
        # Altman et al. 2000, page 52, prints 0.011 and 0.226; without the continuity correction [0.0222, 0.2168]
        ((14, 5, 0, 22), 0.0115, 0.2265),
    ],
)
def test_the_paired_interval_is_newcombes(counts, low, high):
    assert statistics.newcombe_paired(*counts) == pytest.approx((low, high), abs=6e-5)


def test_the_paired_interval_mirrors_when_the_runs_swap():
    low, high = statistics.newcombe_paired(20, 10, 2, 18)
    assert statistics.newcombe_paired(20, 2, 10, 18) == pytest.approx((-high, -low))


def test_comparing_a_run_with_itself_finds_nothing():
    success = np.array([True, False, True, True])
    found = statistics.compare_success(success, success)
    assert (found.difference, found.p_value, found.needed_pairs) == (0.0, 1.0, None)
    assert found.interval.low <= 0 <= found.interval.high


def test_the_difference_is_b_minus_a_and_only_discordant_pairs_count():
    a = np.array([True] * 40 + [False] * 10)
    b = np.array([True] * 40 + [True] * 8 + [False] * 2)
    found = statistics.compare_success(a, b)
    assert found.difference == pytest.approx(0.16)
    assert found.p_value == pytest.approx(2 * 0.5**8)  # eight fair coins all on one side, two-sided
    assert found.interval.low > 0
    order = np.random.default_rng(0).permutation(50)
    assert statistics.compare_success(a[order], b[order]) == found


def test_the_needed_pairs_give_the_asked_power():
    pairs = statistics.needed_pairs(0.10, 0.20)
    draw = np.random.default_rng(0)
    counts = draw.multinomial(pairs, [0.10, 0.20, 0.70], size=600)
    rejected = [statistics.mcnemar(int(a), int(b)) < 0.05 for a, b, _ in counts]
    # the exact test is conservative, so the power is a little below 0.8; half the pairs give about 0.5
    assert 0.72 < np.mean(rejected) < 0.85


def test_equal_rates_cannot_be_separated():
    assert statistics.needed_pairs(0.1, 0.1) is None


def test_sign_flip_enumerates_small_runs():
    differences = np.array([0.5, 1.0, -0.25, 2.0])
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=4)]
    assert statistics.sign_flip(differences) == np.mean(np.array(sums) >= 3.25)


def test_sign_flip_draws_signs_for_long_runs():
    differences = np.random.default_rng(0).normal(0.3, 1.0, 40)
    t_test = scipy.stats.ttest_1samp(differences, 0).pvalue
    assert statistics.sign_flip(differences) == pytest.approx(t_test, abs=0.02)
    assert statistics.sign_flip(np.full(200, 1.0)) == pytest.approx(1 / 10_001)  # never 0


def test_pairing_removes_what_the_initial_states_share():
    difficulty = np.random.default_rng(0).normal(size=60)
    noise = 0.1 * np.random.default_rng(1).normal(size=60)
    found = statistics.compare_means(difficulty, difficulty + 0.1 + noise)
    assert found.p_value < 0.001 and found.interval.low > 0
    shuffled = statistics.compare_means(difficulty, np.roll(difficulty, 7) + 0.1 + noise)
    assert shuffled.p_value > 0.2
    assert shuffled.needed_pairs > 20 * found.needed_pairs


def test_unpaired_runs_raise():
    with pytest.raises(errors.ConfigError, match="same seed"):
        statistics.compare_success(np.ones(3, bool), np.ones(4, bool))


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30))
def test_the_interquartile_mean_is_scipys_trimmed_mean(scores):
    assert statistics.interquartile_mean(np.array(scores)) == pytest.approx(scipy.stats.trim_mean(scores, 0.25))


def test_the_stratified_bootstrap_never_mixes_tasks():
    scores = np.tile([0.0, 1.0], (5, 1))  # seeds agree: resampling within a task changes nothing
    assert statistics.stratified_bootstrap(scores, num_resamples=50) == (0.5, 0.5)


def test_the_stratified_bootstrap_covers_the_spread_of_seeds():
    scores = np.random.default_rng(0).normal(0.5, 0.1, size=(10, 4))
    low, high = statistics.stratified_bootstrap(scores, lambda s: float(s.mean()))
    assert (high - low) / 2 == pytest.approx(1.96 * 0.1 / math.sqrt(40), rel=0.35)
