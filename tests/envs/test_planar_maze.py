"""The maze: walls, ends, both rewards, and demonstrations with two routes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_jax.core import errors
from vla_jax.core.types import PromptTable
from vla_jax.envs.planar import maze
from vla_jax.envs.planar.maze import MazeConfig, demonstrate

PROMPTS = PromptTable(jnp.zeros((1, 3), jnp.int32), jnp.ones((1, 3), bool))
ENV = MazeConfig().make(PROMPTS)
step = jax.jit(ENV.step)


def at(*position, env=ENV):
    return env.reset(jax.random.key(0)).replace(physics=jnp.array(position))


@pytest.mark.parametrize(
    ("position", "action", "expected"),
    [
        ((-0.9, 0.0), (1.0, -0.5), (-0.8, -0.05)),  # free
        ((-0.55, 0.0), (1.0, 1.0), (-0.55, 0.1)),  # the block stops x and leaves y
        ((0.0, 0.45), (0.5, -1.0), (0.05, 0.45)),  # its upper side stops y
        ((-0.95, 0.0), (-1.0, 0.0), (-0.95, 0.0)),  # the square's border
        ((-0.9, 0.0), (9.0, 0.0), (-0.8, 0.0)),  # actions are clipped
    ],
)
def test_walls_stop_the_entry_that_meets_them(position, action, expected):
    np.testing.assert_allclose(step(at(*position), jnp.array(action)).physics, expected, atol=1e-6)


@jax.jit
def is_always_free(start_key, actions):
    def walk(state, action):
        state = ENV.step(state, action)
        return state, maze.is_free(state.physics)

    return jax.lax.scan(walk, ENV.reset(start_key), actions)[1].all()


@settings(max_examples=30)
@given(st.integers(0, 100_000))
def test_no_walk_ever_enters_a_wall(seed):
    start_key, act_key = jax.random.split(jax.random.key(seed))
    assert is_always_free(start_key, jax.random.uniform(act_key, (48, 2), minval=-2, maxval=2))


@pytest.mark.parametrize(("reward", "before", "arrived"), [("steps", -1.0, 0.0), ("goal", 0.0, 1.0)])
def test_arriving_ends_the_task_and_pays(reward, before, arrived):
    env = MazeConfig(reward).make(PROMPTS)
    on_the_way = env.step(at(0.55, 0.5, env=env), jnp.array([1.0, 0.0]))
    assert (on_the_way.reward, on_the_way.discount, bool(on_the_way.done)) == (before, 1, False)
    there = env.step(at(0.63, 0.0, env=env), jnp.array([1.0, 0.0]))
    assert (there.reward, there.discount, bool(there.done), bool(there.success)) == (arrived, 0, True, True)
    after = env.step(there, jnp.array([1.0, 0.0]))
    assert after.reward == 0 and after.env_step == there.env_step
    np.testing.assert_array_equal(after.physics, there.physics)


def test_a_time_limit_ends_the_episode_and_not_the_task():
    state = step(at(-0.9, 0.0).replace(env_step=jnp.asarray(47, jnp.int32)), jnp.zeros(2))
    assert bool(state.done) and state.discount == 1 and not bool(state.success)


def test_demonstrations_take_both_routes_and_are_often_too_late():
    demos = demonstrate(ENV, jax.random.key(1), 200)
    assert demos.observation.state.shape == (200, 49, 2) and demos.actions.shape == (200, 48, 2)
    assert 0.35 < demos.upper.mean() < 0.65
    assert 0.1 < demos.success.mean() < 0.8
    # rows follow one another, and nothing moves behind an end
    moved = jnp.abs(jnp.diff(demos.observation.state, axis=1)).max(-1) > 0
    assert not (moved & ~demos.acts).any()
    # -1 for every step but the one that arrives
    np.testing.assert_array_equal(demos.rewards.sum(1), -(demos.acts.sum(1) - demos.success))
    np.testing.assert_array_equal((demos.discounts == 0).any(1), demos.success)
    in_the_middle = jnp.abs(demos.observation.state[..., 0]) < 0.4
    above = demos.observation.state[..., 1] > 0
    assert (above == demos.upper[:, None])[in_the_middle].all()


def test_prompts_of_another_suite_are_refused():
    with pytest.raises(errors.ConfigError, match="1 rows, one per config"):
        MazeConfig().make(PromptTable(jnp.zeros((2, 3), jnp.int32), jnp.ones((2, 3), bool)))
    with pytest.raises(errors.ConfigError, match="steps or goal"):
        MazeConfig(reward="dense")
