"""What the planar tasks share: time, termination, freezing, prompts; a task says how its point starts, moves and ends.

    class ReachEnv(PlanarEnv):
        def start(self, key, instruction): ...       # physics of a fresh episode
        def move(self, physics, action): ...         # physics one control step later
        def judge(self, physics, following): ...     # what the step was worth, and whether it ended the task
        def look(self, physics): ...                 # the state vector that a policy sees
        def expert(self, state): ...                 # the action of a controller that solves the task

Nothing is rendered, so that a study of a learning algorithm costs its updates and little else.
"""

import abc
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from vla_jax.core import errors
from vla_jax.core.types import Observation, PromptTable
from vla_jax.envs.base import EnvSpec, EnvState

ACTION_NAMES = ("dx", "dy")


class Outcome(struct.PyTreeNode):
    """What one step gave."""

    reward: Float[Array, ""]
    success: Bool[Array, ""]
    terminal: Bool[Array, ""]  # the task ended, well or badly: nothing comes after
    info: dict[str, Float[Array, ""]]


class PlanarEnv(abc.ABC):
    """One environment by the contract of `envs/base.py`, without cameras."""

    def __init__(self, spec: EnvSpec, prompts: PromptTable):
        """Raises ConfigError unless `prompts` has one row per instruction and episodes have steps."""
        if prompts.tokens.shape[0] != len(spec.instructions):
            raise errors.ConfigError(
                f"prompts of {spec.name}",
                expected=f"{len(spec.instructions)} rows, one per config.instructions",
                found=f"{prompts.tokens.shape[0]} rows",
            )
        if spec.episode_length < 1:
            raise errors.ConfigError(f"episode_length of {spec.name}", expected=">= 1", found=spec.episode_length)
        self.spec, self.prompts = spec, jax.tree.map(jnp.asarray, prompts)

    @abc.abstractmethod
    def start(self, key: Key[Array, ""], instruction: Int[Array, ""]) -> Any:
        """The physics of a fresh episode, a pytree."""

    @abc.abstractmethod
    def move(self, physics: Any, action: Float[Array, "a"]) -> Any:
        """The physics one control step later; `action` is already clipped to [-1, 1]."""

    @abc.abstractmethod
    def judge(self, physics: Any, following: Any) -> Outcome:
        """The outcome of the step from `physics` to `following`."""

    @abc.abstractmethod
    def look(self, physics: Any) -> Float[Array, "s"]:
        """The entries that `spec.state_names` names."""

    @abc.abstractmethod
    def expert(self, state: EnvState) -> Float[Array, "a"]:
        """The action of a controller that solves the task, in [-1, 1]; it may see all of the state."""

    def reset(self, key: Key[Array, ""]) -> EnvState:
        instruction_key, start_key, key = jax.random.split(key, 3)
        instruction = jax.random.randint(instruction_key, (), 0, len(self.spec.instructions))
        physics = self.start(start_key, instruction)
        info = jax.eval_shape(self.judge, physics, physics).info
        return EnvState(
            physics=physics,
            key=key,
            env_step=jnp.zeros((), jnp.int32),
            instruction=instruction,
            reward=jnp.zeros(()),
            discount=jnp.ones(()),
            done=jnp.zeros((), bool),
            success=jnp.zeros((), bool),
            info={name: jnp.zeros(()) for name in info},
        )

    def step(self, state: EnvState, action: Float[Array, "a"]) -> EnvState:
        """One control step; a state that is `done` is returned unchanged, reward 0."""
        following = self.move(state.physics, jnp.clip(action, -1, 1))
        outcome = self.judge(state.physics, following)
        env_step = state.env_step + 1
        stepped = state.replace(
            physics=following,
            env_step=env_step,
            reward=outcome.reward,
            discount=1 - outcome.terminal.astype(jnp.float32),
            done=outcome.terminal | (env_step >= self.spec.episode_length),
            success=outcome.success,
            info=outcome.info,
        )
        frozen = state.replace(reward=jnp.zeros(()))
        return jax.tree.map(functools.partial(jnp.where, state.done), frozen, stepped)

    def observe(self, state: EnvState) -> Observation:
        return Observation(
            images={},
            image_mask={},
            state=self.look(state.physics),
            prompt=self.prompts.tokens[state.instruction],
            prompt_mask=self.prompts.mask[state.instruction],
        )
