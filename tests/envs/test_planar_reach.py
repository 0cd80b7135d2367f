"""The point between two goals, and what its demonstrations lack."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.core import errors
from vla_jax.core.types import PromptTable
from vla_jax.envs.planar import reach
from vla_jax.envs.planar.reach import DemonstratorConfig, ReachConfig

PROMPTS = PromptTable(jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool))
ENV = ReachConfig().make(PROMPTS)
GOAL = np.array(ReachConfig().goal)


def at(position):
    return ENV.reset(jax.random.key(0)).replace(physics=jnp.asarray(position, jnp.float32))


@pytest.mark.parametrize("side", [1, -1])
def test_either_goal_pays_once_and_ends_the_task(side):
    state = ENV.step(at(side * (GOAL - [0.1, 0.0])), jnp.array([side * 1.0, 0.0]))
    assert state.reward == 1 and state.done and state.success and state.discount == 0
    after = ENV.step(state, jnp.array([1.0, 1.0]))
    assert after.reward == 0 and (after.physics == state.physics).all()


def test_just_outside_the_radius_nothing_is_paid():
    state = ENV.step(at(GOAL - [0.141, 0.0]), jnp.array([1.0, 0.0]))  # leaves 0.041, and the radius is 0.04
    assert state.reward == 0 and not state.done and state.discount == 1
    np.testing.assert_allclose(state.info["goal_distance"], 0.041, atol=1e-6)


def test_the_time_limit_is_no_end_of_the_task():
    state = ENV.reset(jax.random.key(0))
    for _ in range(ENV.spec.episode_length):
        state = ENV.step(state, jnp.zeros(2))
    assert state.done and not state.success and state.discount == 1


def test_demonstrations_take_both_sides_and_most_of_them_miss():
    rows = reach.demonstrate(ENV, jax.random.key(0), 400)
    assert rows.actions.shape == (400, 16, 1, 2) and rows.next_observation.state.shape == (400, 16, 2)
    right = np.asarray(rows.next_observation.state[:, -1, 0] > 0)
    assert 0.4 < right.mean() < 0.6
    success = np.asarray(rows.extras["success"])
    assert (success == success[:, :1]).all() and 0.05 < success[:, 0].mean() < 0.5
    np.testing.assert_array_equal(success[:, 0], np.asarray(rows.rewards).sum((1, 2)) == 1)
    # a row moves from its observation to its next one, where it was run
    moved = rows.next_observation.state - rows.observation.state
    np.testing.assert_allclose(moved[rows.action_mask[..., 0]], 0.1 * rows.actions[rows.action_mask], atol=1e-5)


def test_shifted_demonstrations_stay_that_many_steps_short_of_the_goal():
    config = DemonstratorConfig(aim_range=(0.0, 0.0), shift=(0.04, 0.04), noise=0.0)
    env = ReachConfig(radius=0.001).make(PROMPTS)
    rows = reach.demonstrate(env, jax.random.key(0), 20, config)
    short = GOAL - np.abs(rows.next_observation.state[:, -1])
    np.testing.assert_allclose(short, np.full((20, 2), 0.1 * 0.04), atol=1e-6)


def test_goals_that_touch_the_start_are_refused():
    with pytest.raises(errors.ConfigError, match="outside the start"):
        ReachConfig(goal=(0.1, 0.1))
