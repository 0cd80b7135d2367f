import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vla_jax.data.samples import draws


def test_the_mixer_is_splitmix64():
    # First outputs of SplitMix64 seeded with 0, as published with the generator.
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        states = golden * np.arange(1, 4, dtype=np.uint64)
    expected = np.array([0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F], np.uint64)
    np.testing.assert_array_equal(draws.mix(states), expected)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**50))
def test_a_draw_depends_on_its_own_key_alone(seed, position):
    alone = draws.uniform(draws.sample_keys(seed, np.array([position])), "camera")
    among = draws.uniform(draws.sample_keys(seed, position + np.arange(5)), "camera")
    assert alone[0] == among[0]


def test_draws_are_uniform_and_purposes_independent():
    keys = draws.sample_keys(7, np.arange(100_000))
    first, second = draws.uniform(keys, "camera"), draws.uniform(keys, "goal")
    # standard error of a uniform mean is 0.289 / sqrt(n), of a correlation 1 / sqrt(n)
    assert abs(first.mean() - 0.5) < 5 * 0.289 / 100_000**0.5
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / 100_000**0.5
    assert (first >= 0).all() and (first < 1).all()


def test_integers_cover_their_range():
    keys = draws.sample_keys(0, np.arange(30_000))
    counts = np.bincount(draws.integers(keys, "text", 3), minlength=3)
    assert len(counts) == 3 and (np.abs(counts - 10_000) < 5 * 82).all()  # sqrt(30000 * 1/3 * 2/3) = 82
    assert draws.integers(keys, "text", np.where(keys % np.uint64(2) == 0, 1, 4)).max() == 3


def test_the_order_of_parts_matters():
    assert draws.fold(0, 1, 2) != draws.fold(0, 2, 1)
