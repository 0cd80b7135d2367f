"""PA-RL's operator on values with known gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_jax.core import errors
from vla_jax.samplers.action_ascent import AscentOptions, choose, optimize_actions

KEY = jax.random.key(0)
CANDIDATES = jax.random.uniform(KEY, (4, 6, 3), minval=-1, maxval=1)
SLOPE = jnp.array([2.0, -1.0, 0.5])


def linear(actions):
    return (actions * SLOPE[None, None]).sum(-1)


def test_a_linear_value_moves_every_entry_by_steps_times_slope_until_the_box():
    options = AscentOptions(num_kept=6, num_steps=7, step_size=0.05)
    actions, q_values, _ = optimize_actions(linear, CANDIDATES, options)
    order = jnp.argsort(-linear(CANDIDATES), axis=1)
    start = jnp.take_along_axis(CANDIDATES, order[..., None], axis=1)
    expected = jnp.clip(start + 7 * 0.05 * SLOPE[None, None], -1, 1)
    np.testing.assert_allclose(actions, expected, atol=1e-6)
    np.testing.assert_allclose(q_values, linear(expected), atol=1e-5)


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from([1e-3, 0.3, 50.0]))
def test_a_quadratic_value_never_falls_however_large_the_step(seed, step_size):
    optimum = jax.random.uniform(jax.random.key(seed), (3,), minval=-1, maxval=1)
    value = lambda actions: -jnp.square(actions - optimum[None, None]).sum(-1)  # noqa: E731
    before = jnp.sort(value(CANDIDATES), axis=1)[:, ::-1][:, :4]
    actions, q_values, _ = optimize_actions(value, CANDIDATES, AscentOptions(4, 5, step_size))
    assert (q_values >= before - 1e-6).all()
    np.testing.assert_allclose(value(actions), q_values, atol=1e-5)


def test_without_steps_it_is_best_of_n():
    actions, q_values, _ = optimize_actions(linear, CANDIDATES, AscentOptions(num_kept=1, num_steps=0))
    best = linear(CANDIDATES).argmax(1)
    np.testing.assert_array_equal(actions[:, 0], CANDIDATES[jnp.arange(4), best])
    np.testing.assert_array_equal(q_values[:, 0], linear(CANDIDATES).max(1))


def test_one_candidate_without_steps_is_the_policy_itself():
    one = CANDIDATES[:, :1]
    np.testing.assert_array_equal(optimize_actions(linear, one, AscentOptions(1, 0))[0], one)


def test_of_equal_points_the_later_one_counts():
    # a value that is flat where it is read and has a slope: all points are worth 0, and the walk goes up
    flat = lambda actions: linear(actions) - jax.lax.stop_gradient(linear(actions))  # noqa: E731
    actions, _, trace = optimize_actions(flat, CANDIDATES, AscentOptions(6, 3, 0.01))
    np.testing.assert_allclose(actions, jnp.clip(trace.actions[0] + 3 * 0.01 * SLOPE[None, None], -1, 1), atol=1e-6)
    assert trace.actions.shape == (3, 4, 6, 3) and trace.q_values.shape == (3, 4, 6)


def test_equal_candidates_are_drawn_evenly_and_the_best_without_temperature():
    draws = jax.vmap(lambda key: choose(key, jnp.zeros((1, 4)), 1.0)[0])(jax.random.split(KEY, 4000))
    shares = np.bincount(draws, minlength=4) / 4000
    np.testing.assert_allclose(shares, 0.25, atol=0.03)  # three standard deviations are 0.021
    np.testing.assert_array_equal(choose(None, jnp.array([[0.0, 3.0], [2.0, 1.0]])), [1, 0])


def test_a_draw_follows_the_softmax_at_its_temperature():
    q_values = jnp.array([[0.0, 2.0]])
    draws = jax.vmap(lambda key: choose(key, q_values, 2.0)[0])(jax.random.split(KEY, 4000))
    np.testing.assert_allclose(draws.mean(), jax.nn.sigmoid(1.0), atol=0.03)


def test_more_kept_than_there_are_is_refused():
    with pytest.raises(errors.ConfigError, match="at least num_kept = 7"):
        optimize_actions(linear, CANDIDATES, AscentOptions(num_kept=7))
