"""Batches, chunks and resets, on an environment that counts."""

import jax
import jax.numpy as jnp
import numpy as np

from vla_jax.core.types import Observation
from vla_jax.envs.base import EnvState
from vla_jax.envs.wrappers import BatchedEnv, ChunkedEnv, reset_where


class _Counter:
    """Counts the first action entry up to a goal drawn at reset; reaching it ends the task, 6 steps end the episode."""

    spec = None

    def reset(self, key):
        zero = jnp.zeros(())
        return EnvState(
            physics={"count": zero, "goal": jax.random.randint(key, (), 2, 9).astype(jnp.float32)},
            key=key,
            env_step=jnp.zeros((), jnp.int32),
            instruction=jnp.zeros((), jnp.int32),
            reward=zero,
            discount=jnp.ones(()),
            done=jnp.zeros((), bool),
            success=jnp.zeros((), bool),
            info={},
        )

    def step(self, state, action):
        count = state.physics["count"] + action[0]
        success = count >= state.physics["goal"]
        stepped = state.replace(
            physics={**state.physics, "count": count},
            env_step=state.env_step + 1,
            reward=success.astype(jnp.float32),
            discount=1 - success.astype(jnp.float32),
            done=success | (state.env_step + 1 >= 6),
            success=success,
        )
        return jax.tree.map(lambda old, new: jnp.where(state.done, old, new), state.replace(reward=0.0), stepped)

    def observe(self, state):
        count = state.physics["count"][None]
        return Observation(images={}, image_mask={}, state=count, prompt=jnp.zeros(1, int), prompt_mask=count > 0)


_ENV = ChunkedEnv(BatchedEnv(_Counter()))


def _states(*goals):
    states = _ENV.reset(jax.random.split(jax.random.key(0), len(goals)))
    return states.replace(physics={**states.physics, "goal": jnp.array(goals, jnp.float32)})


def test_a_chunk_stops_where_the_episode_ends():
    # Goals 2, 4 and 100 with ones: done after 2, after 4, and at the limit of 6.
    chunk = jax.jit(_ENV.step)(_states(2, 4, 100), jnp.ones((3, 5, 1)))
    np.testing.assert_array_equal(chunk.rewards, [[0, 1, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(chunk.discounts, [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    np.testing.assert_array_equal(chunk.mask, [[1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    # The final count of an episode stays observable: a wrapper that resets inside the chunk would show 3, 1 or 0.
    np.testing.assert_array_equal(_ENV.observe(chunk.state).state[:, 0], [2, 4, 5])


def test_a_time_limit_inside_a_chunk_masks_but_does_not_terminate():
    chunk = _ENV.step(_ENV.step(_states(100), jnp.ones((1, 4, 1))).state, jnp.ones((1, 4, 1)))
    np.testing.assert_array_equal(chunk.mask, [[1, 1, 0, 0]])
    np.testing.assert_array_equal(chunk.discounts, [[1, 1, 1, 1]])
    assert chunk.state.done.all()


def test_a_chunk_is_its_steps_one_by_one():
    states, actions = _states(3, 9), jax.random.uniform(jax.random.key(1), (2, 4, 1), maxval=2.0)
    chunk = _ENV.step(states, actions)
    for i in range(4):
        states = BatchedEnv(_Counter()).step(states, actions[:, i])
        np.testing.assert_array_equal(chunk.rewards[:, i], states.reward)
    np.testing.assert_array_equal(chunk.state.physics["count"], states.physics["count"])


def test_one_environment_chunks_like_a_batch_of_one():
    alone = ChunkedEnv(_Counter()).step(jax.tree.map(lambda leaf: leaf[0], _states(2)), jnp.ones((5, 1)))
    batch = _ENV.step(_states(2), jnp.ones((1, 5, 1)))
    np.testing.assert_array_equal(alone.rewards, batch.rewards[0])
    np.testing.assert_array_equal(alone.mask, batch.mask[0])


def test_only_finished_episodes_are_replaced():
    chunk = _ENV.step(_states(2, 100), jnp.ones((2, 3, 1)))
    keys = jax.random.split(jax.random.key(2), 2)
    fresh = jax.jit(lambda states, keys: reset_where(_ENV, states, keys))(chunk.state, keys)
    np.testing.assert_array_equal(fresh.physics["count"], [0, 3])
    np.testing.assert_array_equal(fresh.env_step, [0, 3])
    np.testing.assert_array_equal(fresh.done, [False, False])
    np.testing.assert_array_equal(jax.random.key_data(fresh.key)[0], jax.random.key_data(keys)[0])
    np.testing.assert_array_equal(jax.random.key_data(fresh.key)[1], jax.random.key_data(chunk.state.key)[1])


def test_a_mask_of_its_own_resets_others():
    fresh = reset_where(_ENV, _states(5, 5), jax.random.split(jax.random.key(3), 2), jnp.array([False, True]))
    assert fresh.physics["goal"][0] == 5
