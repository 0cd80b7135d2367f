import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_jax.core import errors
from vla_jax.core.types import Transitions
from vla_jax.data.replay import mixing


def batch(shape, value, xp=jnp, **extras):
    ones = xp.ones((*shape, 1), xp.float32)
    filled = xp.full((*shape, 1, 2), value, xp.float32)
    return Transitions(value * ones, filled, ones, ones, ones > 0, value * ones, extras)


def sampler(value):
    return lambda key, shape: batch(shape, value)


def test_half_of_every_minibatch_comes_from_each_source():
    mixed = jax.jit(lambda key: mixing.mix(key, (3, 2, 8), (sampler(5.0), sampler(7.0)), (0.5, 0.5)))(jax.random.key(0))
    assert mixed.actions.shape == (3, 2, 8, 1, 2)
    assert (mixed.extras["source"].sum(axis=-1) == 4).all()
    np.testing.assert_array_equal(mixed.observation[..., 0], np.where(mixed.extras["source"] == 0, 5, 7))


@given(st.integers(0, 300), st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any))
def test_counts_add_up_and_are_as_near_as_whole_numbers_can_be(batch_size, weights):
    fractions = [weight / sum(weights) for weight in weights]
    counts = mixing.split_counts(batch_size, fractions)
    assert sum(counts) == batch_size
    assert all(abs(n - batch_size * f) < 1 for n, f in zip(counts, fractions, strict=True))
    assert all(n == 0 for n, f in zip(counts, fractions, strict=True) if f == 0)


def test_fractions_that_do_not_add_up_are_refused():
    with pytest.raises(errors.ConfigError, match="adding up to 1"):
        mixing.split_counts(8, (0.5, 0.4))


@given(st.integers(1, 64), st.lists(st.integers(0, 1000), min_size=2, max_size=4).filter(any), st.floats(0, 0.999))
def test_counts_in_proportion_are_the_share_rounded(batch_size, sizes, draw):
    counts = mixing.counts_in_proportion(batch_size, sizes, draw)
    assert sum(counts) == batch_size
    assert all(abs(n - batch_size * size / sum(sizes)) < 1 + 1e-9 for n, size in zip(counts, sizes, strict=True))


def test_in_proportion_a_small_buffer_gets_its_share_on_average():
    """1 row of 41 in a batch of 8: rounding to the nearest would never take it."""

    def draw(key):
        return mixing.mix_in_proportion(key, (4000, 8), (sampler(5.0), sampler(7.0)), (jnp.array(1), jnp.array(40)))

    mixed = jax.jit(draw)(jax.random.key(0))
    per_batch = (mixed.extras["source"] == 0).sum(axis=-1)
    assert set(np.unique(per_batch)) == {0, 1}
    assert abs(per_batch.mean() - 8 / 41) < 0.03
    np.testing.assert_array_equal(mixed.observation[..., 0], np.where(mixed.extras["source"] == 0, 5, 7))
    host = [mixing.counts_in_proportion(8, (1, 40), u)[0] for u in np.arange(0.0005, 1, 0.001)]
    assert abs(np.mean(host) - 8 / 41) < 0.002


def test_host_batches_stay_on_the_host():
    joined = mixing.join([batch((3,), 1.0, np), batch((5,), 2.0, np)])
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(joined))
    assert joined.extras["source"].tolist() == [0] * 3 + [1] * 5


def test_sources_that_differ_are_named():
    with pytest.raises(errors.DataError, match=r"(?s)differ in their fields.*mc_return"):
        mixing.join([batch((3,), 1.0), batch((3,), 1.0, mc_return=jnp.ones(3))])
    other = batch((3,), 1.0).replace(actions=jnp.ones((3, 1, 4)))
    with pytest.raises(errors.DataError, match=r"(?s)\.actions.*\[1, 2\].*\[1, 4\]"):
        mixing.join([batch((3,), 1.0), other])
