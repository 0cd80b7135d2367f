"""A JAX environment behind the host contract says what the environment itself says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.evaluation.point_env import PointEnv
from vla_jax.core import errors
from vla_jax.envs.hosted import HostedEnv


def test_it_steps_as_the_environment_does():
    env, hosted = PointEnv(), HostedEnv(PointEnv())
    state, seen = env.reset(jax.random.key(7)), hosted.reset(7)
    jax.tree.map(np.testing.assert_array_equal, seen, env.observe(state))
    actions = np.array([[0.3, -0.2], [2.0, 0.1]], np.float32)  # clipped
    chunk = hosted.step(actions)
    for action in actions:
        state = env.step(state, jnp.asarray(action))
    np.testing.assert_allclose(chunk.observation.state, state.physics, rtol=1e-6)
    np.testing.assert_allclose(chunk.rewards, -0.01, rtol=1e-5)
    assert chunk.mask.all() and not chunk.done and chunk.observation.state.dtype == np.float32


def test_an_end_inside_of_a_chunk_masks_the_rest_and_a_time_limit_keeps_the_discount():
    hosted, ends = HostedEnv(PointEnv()), set()
    for seed in range(12):
        hosted.reset(seed)
        for _ in range(10):
            # to the corner at (1, 1) or the time limit: 12 steps are no multiple of 5
            chunk = hosted.step(np.full((5, 2), 0.8, np.float32))
            if chunk.done:
                break
        assert chunk.done and chunk.mask.any()
        assert chunk.truncated == bool(chunk.discounts.min() == 1)
        last = int(chunk.mask.sum())
        assert (chunk.discounts[last:] == 1).all() and (chunk.rewards[last:] == 0).all()
        assert chunk.truncated or chunk.discounts[last - 1] == 0
        ends.add((chunk.truncated, chunk.success))
    assert (True, False) in ends and len(ends) > 1


def test_misuse_is_refused():
    hosted = HostedEnv(PointEnv())
    with pytest.raises(errors.EnvError, match="reset first"):
        hosted.step(np.zeros((1, 2)))
    hosted.reset(0)
    with pytest.raises(errors.EnvError, match="finite"):
        hosted.step(np.full((1, 2), np.nan))
    with pytest.raises(errors.EnvError, match=r"actions \[h >= 1, 2\]"):
        hosted.step(np.zeros((1, 3)))
    hosted.close()
    with pytest.raises(errors.EnvError, match="reset first"):
        hosted.step(np.zeros((1, 2)))
