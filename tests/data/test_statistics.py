"""Streaming statistics against numpy over whole columns."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.memory_set import clean_set
from vla_jax.core import errors
from vla_jax.data import statistics
from vla_jax.data.normalization import FieldStatistics, Statistics
from vla_jax.data.statistics import RELATIVE_ERROR, Summary


def columns(num_frames, seed=0):
    """Dims that trouble a histogram: heavy tails, an offset, zeros, two values, a constant."""
    rng = np.random.default_rng(seed)
    return np.stack(
        [
            rng.standard_t(1.5, num_frames) * 100,
            2.5 + 0.05 * rng.normal(size=num_frames),
            np.maximum(rng.normal(size=num_frames), 0),
            rng.choice([-1.0, 1.0], num_frames),
            np.full(num_frames, -3.25),
        ],
        axis=1,
    ).astype(np.float32)


def streamed(values, exact_frames, chunk=1000):
    summary = Summary(values.shape[1], exact_frames)
    for start in range(0, len(values), chunk):
        summary.add(values[start : start + chunk])
    return summary


def test_a_column_that_fits_has_exact_statistics():
    values = columns(5000)
    found, expected = streamed(values, 5000).finish(), FieldStatistics.of(values)
    assert found.count == expected.count and found.min == expected.min and found.max == expected.max
    np.testing.assert_array_equal((found.q01, found.q99), (expected.q01, expected.q99))
    np.testing.assert_allclose((found.mean, found.std), (expected.mean, expected.std), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.3, 0.5, 0.99, 1.0])
def test_binned_quantiles_keep_the_stated_error(fraction):
    values = columns(20_000)
    summary = streamed(values, exact_frames=100)
    assert not summary.is_exact
    place = fraction * (len(values) - 1)
    ordered = np.sort(values, axis=0).astype(np.float64)
    around = np.abs(ordered[[int(np.floor(place)), int(np.ceil(place))]]).max(0)
    error = np.abs(summary.quantiles((fraction,))[0] - np.quantile(values.astype(np.float64), fraction, axis=0))
    assert (error <= RELATIVE_ERROR * around).all()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False), min_size=2, max_size=60),
    st.floats(0, 1),
)
def test_the_error_bound_holds_for_any_numbers(numbers, fraction):
    values = np.array(numbers, np.float32)[:, None]
    summary = streamed(values, exact_frames=0, chunk=7)
    ordered, place = np.sort(values[:, 0]).astype(np.float64), fraction * (len(values) - 1)
    around = np.abs(ordered[[int(np.floor(place)), min(int(np.floor(place)) + 1, len(values) - 1)]]).max()
    error = abs(summary.quantiles((fraction,))[0, 0] - np.quantile(ordered, fraction))
    assert error <= RELATIVE_ERROR * around * (1 + 1e-9)


@pytest.mark.parametrize("exact_frames", [10, 10**6])
def test_shards_merge_to_the_whole_in_any_order(exact_frames):
    values = columns(3000)
    parts = [streamed(part, exact_frames) for part in np.split(values, [500, 505, 2000])]
    whole, merged = streamed(values, exact_frames).finish(), Summary(values.shape[1], exact_frames)
    for part in parts[::-1]:
        merged.merge(part)
    found = merged.finish()
    assert (found.count, found.min, found.max, found.q01, found.q99) == (
        whole.count, whole.min, whole.max, whole.q01, whole.q99,
    )  # fmt: skip
    np.testing.assert_allclose((found.mean, found.std), (whole.mean, whole.std), rtol=1e-9, atol=1e-12)


def test_an_exact_and_a_binned_shard_merge_either_way():
    values = columns(2000)
    small, large = values[:50], values[50:]
    first, second = streamed(small, 100), streamed(large, 100)
    first.merge(second)
    other = streamed(large, 100)
    other.merge(streamed(small, 100))
    assert (first.finish().q01, first.finish().q99) == (other.finish().q01, other.finish().q99)


def test_the_variance_survives_an_offset():
    # Sums of squares in float64 would leave about one digit of a spread of 1e-4 at 4096; float32 resolves 5e-4 there.
    values = (4096 + np.random.default_rng(0).choice([0, 2**-10], 10_000))[:, None].astype(np.float32)
    found = streamed(values, 10**6, chunk=333).finish()
    assert found.std[0] == pytest.approx(values.astype(np.float64).std(), rel=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_refused_with_its_dim(bad):
    values = columns(10)
    values[3, 2] = bad
    with pytest.raises(errors.DataError, match=r"here: NaN or infinity(.|\n)*1 frames, dims \[2\]"):
        Summary(5).add(values, "here")


def test_nothing_has_no_statistics():
    with pytest.raises(errors.DataError, match="at least one frame"):
        Summary(2).finish()


def test_summarize_reads_every_frame_once_in_chunks():
    values, asked = columns(2500), []

    def read(frames):
        asked.append(frames)
        return values[frames]

    found = statistics.summarize(read, len(values), chunk_frames=1000)
    np.testing.assert_array_equal(np.concatenate(asked[1:]), np.arange(2500))  # the first call asks for the width
    assert max(map(len, asked)) == 1000 and found.count == 2500


def test_statistics_are_computed_once_per_fingerprint(tmp_path):
    field, calls = FieldStatistics.of(columns(50)), []

    def compute():
        calls.append(1)
        return Statistics(field, field)

    first = statistics.cached({"data": "a", "keys": ["state"]}, compute, tmp_path)
    assert statistics.cached({"keys": ["state"], "data": "a"}, compute, tmp_path) == first and len(calls) == 1
    statistics.cached({"data": "b", "keys": ["state"]}, compute, tmp_path)
    assert len(calls) == 2


def test_a_fingerprint_follows_every_number_and_bound_and_nothing_else():
    names = ("observation/state", "action")
    first, same, changed, cut, other = (clean_set(num_episodes=3, num_steps=20) for _ in range(5))
    same.place = "somewhere else"
    changed.columns["action"][33, 2] = np.nextafter(changed.columns["action"][33, 2], 9)
    cut.lengths = (20, 19, 21)
    other.columns["reward"] = np.ones(60, np.float32)  # not asked for
    expected = statistics.fingerprint(first, names)
    assert statistics.fingerprint(same, names) == statistics.fingerprint(other, names) == expected
    assert len({expected, statistics.fingerprint(changed, names), statistics.fingerprint(cut, names)}) == 3
    assert statistics.fingerprint(first, names[:1]) != expected
