from pathlib import Path

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_jax.losses import returns, td


def episodes(seed, batch=3, length=12):
    """Random rewards with terminations and time limits strewn in, and values for every next state."""
    rng = np.random.default_rng(seed)
    ended = rng.random((batch, length)) < 0.2
    truncated = ended & (rng.random((batch, length)) < 0.5)
    return (
        rng.normal(size=(batch, length)),
        (~(ended & ~truncated)).astype(float),
        truncated,
        rng.normal(size=(batch, length)),
        rng.normal(size=(batch, length)),
    )


def looped_lambda_returns(rewards, discounts, truncated, next_values, discount, decay):
    found = np.zeros_like(rewards)
    for row in range(len(rewards)):
        following = 0.0
        for t in reversed(range(rewards.shape[1])):
            is_end = truncated[row, t] or t == rewards.shape[1] - 1
            value = next_values[row, t]
            after = value if is_end else (1 - decay) * value + decay * following
            following = found[row, t] = rewards[row, t] + discount * discounts[row, t] * after
    return found


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.95, 1.0]))
def test_lambda_returns_are_those_of_a_loop(seed, decay):
    rewards, discounts, truncated, next_values, values = episodes(seed)
    found = returns.lambda_returns(rewards, discounts, jnp.asarray(truncated), next_values, 0.9, decay)
    expected = looped_lambda_returns(rewards, discounts, truncated, next_values, 0.9, decay)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    advantages = returns.generalized_advantages(
        rewards, discounts, jnp.asarray(truncated), values, next_values, 0.9, decay
    )
    np.testing.assert_allclose(advantages, expected - values, rtol=1e-5, atol=1e-5)


def test_no_trace_is_one_step_td():
    rewards, discounts, truncated, next_values, _ = episodes(0)
    found = returns.lambda_returns(rewards, discounts, jnp.asarray(truncated), next_values, 0.9, 0.0)
    np.testing.assert_allclose(found, rewards + 0.9 * discounts * next_values, rtol=1e-5)


def test_a_full_trace_without_ends_is_the_n_step_return():
    rewards, _, _, next_values, _ = episodes(1)
    ones = np.ones_like(rewards)
    found = returns.lambda_returns(rewards, ones, jnp.zeros(rewards.shape, bool), next_values, 0.9, 1.0)
    expected, factor = td.chunk_return(rewards, ones, jnp.ones(rewards.shape, bool), 0.9)
    np.testing.assert_allclose(found[:, 0], expected + factor * next_values[:, -1], rtol=1e-5)


def test_the_advantage_of_true_values_is_zero():
    rewards = jnp.array([[1.0, 2.0, 3.0]])
    values = jnp.array([[1 + 0.5 * (2 + 0.5 * 3), 2 + 0.5 * 3, 3.0]])
    next_values = jnp.array([[2 + 0.5 * 3, 3.0, 7.0]])
    discounts = jnp.array([[1.0, 1.0, 0.0]])
    still = jnp.zeros((1, 3), bool)
    for decay in (0.0, 0.5, 1.0):
        found = returns.generalized_advantages(rewards, discounts, still, values, next_values, 0.5, decay)
        np.testing.assert_allclose(found, 0, atol=1e-6)


def test_nothing_flows_across_the_end_of_an_episode():
    rewards, ends = jnp.array([[0.0, 0.0, 5.0, 5.0]]), jnp.array([[False, True, False, False]])
    found = returns.monte_carlo_returns(rewards, jnp.ones((1, 4)), ends, 0.9)
    np.testing.assert_allclose(found[0, :2], 0)
    died = returns.monte_carlo_returns(rewards, jnp.array([[1.0, 0.0, 1.0, 1.0]]), jnp.zeros((1, 4), bool), 0.9)
    np.testing.assert_allclose(died[0, :2], 0)


def test_a_failure_at_minus_one_per_step_returns_what_never_arriving_does():
    discount = 0.9
    tails = jnp.full((2, 6), -1 / (1 - discount))
    rewards = jnp.array([[-1.0] * 6, [-1.0] * 5 + [0.0]])
    discounts = jnp.ones((2, 6)).at[1, -1].set(0)
    found = returns.monte_carlo_returns(rewards, discounts, jnp.zeros((2, 6), bool), discount, tails)
    np.testing.assert_allclose(found[0], -1 / (1 - discount), rtol=1e-6)
    steps_left = jnp.arange(5, -1, -1)
    np.testing.assert_allclose(found[1], -(1 - discount**steps_left) / (1 - discount), rtol=1e-5, atol=1e-6)


def test_rlax_agrees():
    with np.load(Path(__file__).parents[1] / "fixtures" / "rlax_losses.npz") as stored:
        rewards, factors, values = stored["rewards"], stored["discounts"], stored["values"]
        still = jnp.zeros(rewards.shape, bool)
        found = returns.lambda_returns(rewards, factors / 0.97, still, values[1:], 0.97, 0.9)
        np.testing.assert_allclose(found, stored["lambda_returns"], rtol=1e-5, atol=1e-6)
        found = returns.generalized_advantages(rewards, factors / 0.97, still, values[:-1], values[1:], 0.97, 0.9)
        np.testing.assert_allclose(found, stored["advantages"], rtol=1e-5, atol=1e-6)
