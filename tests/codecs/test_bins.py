import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.codecs.bins import BinCodec, quantile_bins, uniform_bins
from vla_jax.core import errors

ACTIONS = np.random.default_rng(0).uniform(-1, 1, (500, 3)).astype(np.float32)


@pytest.mark.parametrize("num_bins", [2, 7, 256])
def test_a_round_trip_is_off_by_at_most_half_a_bin(num_bins):
    codec = uniform_bins(3, num_bins)
    back = jax.jit(lambda x: codec.decode(codec.encode(x)))(ACTIONS)
    assert jnp.abs(back - ACTIONS).max() <= 1 / num_bins + 1e-6


def test_quantile_bins_hold_equally_many_actions_and_bound_the_round_trip_by_their_width():
    skewed = ACTIONS**3
    codec = quantile_bins(skewed, 10, min_width=1e-6)
    tokens = np.asarray(codec.encode(skewed))
    for dim in range(3):
        counts = np.bincount(tokens[:, dim], minlength=10)
        assert abs(counts - 50).max() <= 1
    edges = np.asarray(codec.edges)
    half_widths = np.take_along_axis(np.diff(edges).T, tokens, axis=0) / 2
    assert (np.abs(codec.decode(codec.encode(skewed)) - skewed) <= half_widths + 1e-6).all()


def test_tokens_survive_decoding_and_outliers_get_the_outer_bins():
    codec = quantile_bins(ACTIONS, 6)
    tokens = jnp.tile(jnp.arange(6)[:, None], (1, 3))
    assert jnp.array_equal(codec.encode(codec.decode(tokens)), tokens)
    assert jnp.array_equal(codec.encode(jnp.array([[-9.0] * 3, [9.0] * 3])), jnp.array([[0] * 3, [5] * 3]))


def test_a_two_valued_dim_keeps_both_values():
    gripper = np.where(ACTIONS[:, :1] > 0, 1.0, -1.0)
    codec = quantile_bins(gripper, 16)
    np.testing.assert_allclose(codec.decode(codec.encode(gripper)), gripper, atol=16 * 1e-3)


def test_leading_dims_are_free():
    codec = quantile_bins(ACTIONS, 6)
    chunk = ACTIONS[:24].reshape(2, 3, 4, 3)
    assert jnp.array_equal(codec.encode(chunk).reshape(24, 3), codec.encode(ACTIONS[:24]))
    assert jnp.array_equal(codec.decode(codec.encode(chunk)).reshape(24, 3), codec.decode(codec.encode(ACTIONS[:24])))


def test_impossible_codecs_are_rejected():
    for make in (
        lambda: uniform_bins(3, 1),
        lambda: uniform_bins(3, 4, low=1, high=1),
        lambda: quantile_bins(np.zeros((0, 3)), 4),
        lambda: quantile_bins(np.full((5, 3), np.nan), 4),
        lambda: BinCodec(((0.0, 1.0, 0.5),)),
        lambda: BinCodec(((0.0, 1.0, 2.0), (0.0, 1.0, 2.0, 3.0))),
    ):
        with pytest.raises(errors.ConfigError):
            make()
