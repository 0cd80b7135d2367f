import jax
import jax.numpy as jnp

from vla_jax.losses import td

ON, OFF = True, False


def test_chunk_of_one_is_one_step_td():
    rewards, discounts = jnp.array([[0.5], [2.0]]), jnp.array([[1.0], [0.0]])
    returns, factor = td.chunk_return(rewards, discounts, jnp.ones((2, 1), bool), 0.9)
    assert jnp.allclose(returns, jnp.array([0.5, 2.0]))
    assert jnp.allclose(factor, jnp.array([0.9, 0.0]))


def test_rewards_after_the_first_are_discounted_and_the_bootstrap_factor_is_discount_to_the_h():
    returns, factor = td.chunk_return(jnp.ones((1, 3)), jnp.ones((1, 3)), jnp.ones((1, 3), bool), 0.5)
    assert jnp.allclose(returns, 1 + 0.5 + 0.25)  # an inclusive cumprod would give 0.5 + 0.25 + 0.125
    assert jnp.allclose(factor, 0.125)


def test_termination_inside_the_chunk_keeps_its_reward_and_cuts_the_bootstrap():
    rewards = jnp.array([[0.0, 1.0, 7.0]])
    returns, factor = td.chunk_return(rewards, jnp.array([[1.0, 0.0, 1.0]]), jnp.array([[ON, ON, OFF]]), 0.5)
    assert jnp.allclose(returns, 0.5)
    assert factor[0] == 0


def test_a_time_limit_inside_the_chunk_bootstraps_over_the_steps_really_run():
    _, factor = td.chunk_return(jnp.zeros((1, 4)), jnp.ones((1, 4)), jnp.array([[ON, ON, OFF, OFF]]), 0.5)
    assert jnp.allclose(factor, 0.25)


def test_unrun_steps_change_nothing():
    key = jax.random.key(0)
    rewards, junk = jax.random.normal(key, (2, 5, 4))
    mask = jnp.arange(4)[None] < jnp.array([1, 2, 3, 4, 0])[:, None]
    expected = td.chunk_return(jnp.where(mask, rewards, 0.0), jnp.ones((5, 4)), mask, 0.9)
    found = td.chunk_return(jnp.where(mask, rewards, junk), jnp.where(mask, 1.0, 0.0), mask, 0.9)
    assert jnp.allclose(jnp.stack(expected), jnp.stack(found))


def test_double_q_takes_the_slow_value_of_the_fast_ones_choice():
    fast, slow = jnp.array([[1.0, 3.0, 2.0], [0.0, -1.0, -2.0]]), jnp.array([[9.0, 4.0, 5.0], [6.0, 7.0, 8.0]])
    found = td.double_q_targets(jnp.array([0.5, 1.0]), jnp.array([0.9, 0.0]), fast, slow)
    assert jnp.allclose(found, jnp.array([0.5 + 0.9 * 4.0, 1.0]))  # the slow ones' own maximum would give 0.5 + 0.9 * 9
