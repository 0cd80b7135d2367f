"""Rewards by pose and by classifier, around a point whose picture grows brighter."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.envs.line_env import Line
from vla_jax.envs import rewards

KEY = jax.random.key(0)


def brightness(observation):
    return observation.images["front"].astype(jnp.float32).mean((1, 2, 3)) / 255


def test_every_entry_of_a_pose_must_be_within_its_threshold():
    target, thresholds = jnp.array([0.5, 0.0, 0.1]), jnp.array([0.01, 0.01, 0.2])
    poses = target[None] + jnp.array([[0.0, 0, 0], [0.009, -0.009, 0.19], [0.011, 0, 0], [0, 0, -0.21]])
    np.testing.assert_array_equal(rewards.pose_success(poses, target, thresholds), [True, True, False, False])


def test_reaching_the_pose_ends_the_episode_with_reward_one():
    by_pose = rewards.by_pose(lambda state: state.physics[None], jnp.array([2.0]), jnp.array([0.1]))
    env = rewards.SuccessReward(Line(), by_pose)
    state = env.step(env.reset(KEY), jnp.array([1.0]))
    assert (float(state.reward), float(state.discount), bool(state.done)) == (0.0, 1.0, False)
    state = env.step(state, jnp.array([1.05]))
    assert (float(state.reward), float(state.discount), bool(state.done)) == (1.0, 0.0, True)
    again = env.step(state, jnp.array([1.0]))
    assert float(again.reward) == 0.0 and float(again.physics) == float(state.physics)


def test_a_classifier_rewards_from_its_threshold_on():
    """(100 + 50 x) / 255 reaches 0.5 at x = 0.55."""
    env = rewards.SuccessReward(Line(), rewards.by_classifier(Line(), brightness))
    below, above = (env.step(env.reset(KEY), jnp.array([x])) for x in (0.5, 0.6))
    assert not below.success and above.success and float(above.reward) == 1.0
    strict = rewards.SuccessReward(Line(), rewards.by_classifier(Line(), brightness, threshold=0.85))
    assert not strict.step(strict.reset(KEY), jnp.array([0.6])).success


def test_a_check_of_the_geometry_must_hold_too():
    fooled = rewards.by_classifier(Line(), brightness, check=lambda state: state.physics < 1)
    env = rewards.SuccessReward(Line(), fooled)
    assert env.step(env.reset(KEY), jnp.array([0.6])).success
    assert not env.step(env.reset(KEY), jnp.array([2.0])).success


def test_time_ends_an_episode_without_ending_the_task():
    env = rewards.SuccessReward(Line(), lambda state: jnp.zeros((), bool))
    state = env.reset(KEY)
    for _ in range(env.spec.episode_length):
        state = env.step(state, jnp.zeros(1))
    assert state.done and float(state.discount) == 1.0 and not state.success
