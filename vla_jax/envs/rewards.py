"""Rewards for tasks that have none: success by pose, or by a learned classifier of what the cameras see.

    env = SuccessReward(env, by_pose(read_pose, target, thresholds))
    env = SuccessReward(env, by_classifier(env, classify, threshold=0.85, check=near_the_socket))

The classifier itself is `learners/success_classifier.py` or `learners/vice.py`; here it is a function of pictures.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from vla_jax.core.types import Observation
from vla_jax.envs.base import Env, EnvSpec, EnvState

Success = Callable[[EnvState], Bool[Array, ""]]
Classify = Callable[[Observation], Float[Array, "b"]]  # a batch of observations -> probability of success


@dataclasses.dataclass(frozen=True)
class SuccessReward:
    """Reward 1 and the end of the episode where `success` says so; the environment's own rewards do not count."""

    env: Env
    success: Success

    @property
    def spec(self) -> EnvSpec:
        return self.env.spec

    def reset(self, key: Key[Array, ""]) -> EnvState:
        return self.env.reset(key)

    def step(self, state: EnvState, action: Float[Array, "a"]) -> EnvState:
        stepped = self.env.step(state.replace(done=jnp.zeros((), bool)), action)
        success = self.success(stepped)
        reward = success.astype(jnp.float32)
        timed_out = stepped.env_step >= self.spec.episode_length
        stepped = stepped.replace(reward=reward, discount=1 - reward, done=success | timed_out, success=success)
        frozen = state.replace(reward=jnp.zeros(()))
        return jax.tree.map(lambda old, new: jnp.where(state.done, old, new), frozen, stepped)

    def observe(self, state: EnvState) -> Observation:
        return self.env.observe(state)


def pose_success(
    pose: Float[Array, "*b p"], target: Float[Array, "p"], thresholds: Float[Array, "p"]
) -> Bool[Array, "*b"]:
    """Whether every entry is nearer to its target than its threshold: metres, then radians. Source: SERL's tasks."""
    ones = (1,) * (pose.ndim - 1)
    return (jnp.abs(pose - target.reshape(*ones, -1)) < thresholds.reshape(*ones, -1)).all(-1)


def by_pose(
    read: Callable[[EnvState], Float[Array, "p"]], target: Float[Array, "p"], thresholds: Float[Array, "p"]
) -> Success:
    return lambda state: pose_success(read(state), target, thresholds)


def by_classifier(env: Env, classify: Classify, threshold: float = 0.5, check: Success | None = None) -> Success:
    """Success where the probability is at least `threshold` and `check`, if there is one, holds too.

    SERL takes 0.5; HIL-SERL 0.85 and a check of the geometry, because policies find what fools a classifier.
    """

    def success(state: EnvState) -> Bool[Array, ""]:
        seen = jax.tree.map(lambda leaf: leaf[None], env.observe(state))
        is_likely = classify(seen)[0] >= threshold
        return is_likely if check is None else is_likely & check(state)

    return success
