"""Learning without resets: tasks that undo each other, one policy each, and a graph that says whose turn it is.

    forward: A -> B        success: backward's turn        failure: forward tries again
    backward: B -> A

An episode ends at success or after `episode_length` steps, and the next begins where it ended: `resume_where` takes
the place of `wrappers.reset_where`. Every policy learns from the transitions of its own turns (`rows_of`). Source: SERL
(arXiv 2401.16013), its forward and backward tasks.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from vla_jax.core import errors
from vla_jax.core.types import Observation
from vla_jax.envs.base import Env, EnvSpec, EnvState

Success = Callable[[EnvState], Bool[Array, ""]]  # of a state of the environment inside


@dataclasses.dataclass(frozen=True)
class TaskGraph:
    """Which task follows on the success of each; a failed one is tried again. Names are for logs and reports."""

    names: tuple[str, ...] = ("forward", "backward")
    after_success: tuple[int, ...] = (1, 0)

    def __post_init__(self):
        indices = range(len(self.names))
        if len(self.after_success) != len(self.names) or any(task not in indices for task in self.after_success):
            raise errors.ConfigError(
                "TaskGraph.after_success", expected=f"one of {list(indices)} per task", found=self.after_success
            )

    def follow(self, task: Int[Array, "*b"], success: Bool[Array, "*b"]) -> Int[Array, "*b"]:
        return jnp.where(success, jnp.array(self.after_success)[task], task)


class Turn(struct.PyTreeNode):
    """The physics of a reset-free environment, and whose turn it is."""

    inner: Any
    task: Int[Array, ""]
    episodes: Int[Array, ""]  # finished since the last reset


@dataclasses.dataclass(frozen=True)
class ResetFree:
    """An environment whose own ends do not count. Raises ConfigError unless there is one success test per task."""

    env: Env
    successes: tuple[Success, ...]
    graph: TaskGraph = TaskGraph()
    reset_every: int | None = None  # episodes after which the environment is reset all the same

    def __post_init__(self):
        if len(self.successes) != len(self.graph.names):
            raise errors.ConfigError(
                "ResetFree.successes", expected=f"one per task of {self.graph.names}", found=len(self.successes)
            )

    @property
    def spec(self) -> EnvSpec:
        return self.env.spec

    def reset(self, key: Key[Array, ""]) -> EnvState:
        state, zero = self.env.reset(key), jnp.zeros((), jnp.int32)
        return state.replace(physics=Turn(state.physics, zero, zero))

    def step(self, state: EnvState, action: Float[Array, "a"]) -> EnvState:
        """As the environment inside, with reward 1, discount 0 and done at the success of the task whose turn it is."""
        turn: Turn = state.physics
        inner = self.env.step(self.unwrapped(state).replace(done=jnp.zeros((), bool)), action)
        success = jax.lax.switch(turn.task, self.successes, inner)
        env_step = state.env_step + 1
        stepped = inner.replace(
            physics=turn.replace(inner=inner.physics),
            env_step=env_step,
            reward=success.astype(jnp.float32),
            discount=1 - success.astype(jnp.float32),
            done=success | (env_step >= self.spec.episode_length),
            success=success,
        )
        frozen = state.replace(reward=jnp.zeros(()))
        return jax.tree.map(lambda old, new: jnp.where(state.done, old, new), frozen, stepped)

    def observe(self, state: EnvState) -> Observation:
        return self.env.observe(self.unwrapped(state))

    def unwrapped(self, state: EnvState) -> EnvState:
        return state.replace(physics=state.physics.inner)

    def resume(self, state: EnvState, key: Key[Array, ""]) -> EnvState:
        """The next episode, from where this one ended, by the task that the graph names."""
        turn: Turn = state.physics
        episodes = turn.episodes + 1
        off, zero = jnp.zeros((), bool), jnp.zeros(())
        resumed = state.replace(
            physics=turn.replace(task=self.graph.follow(turn.task, state.success), episodes=episodes),
            env_step=jnp.zeros((), jnp.int32),
            reward=zero,
            discount=zero + 1,
            done=off,
            success=off,
        )
        if self.reset_every is None:
            return resumed
        is_due = episodes >= self.reset_every
        return jax.tree.map(lambda new, old: jnp.where(is_due, new, old), self.reset(key), resumed)


def resume_where(env: ResetFree, states: EnvState, keys: Key[Array, "b"]) -> EnvState:
    """The next episode in place of the finished ones of a batch; the others are returned unchanged."""
    resumed = jax.vmap(env.resume)(states, keys)
    done = states.done

    def choose(new, old):
        return jnp.where(done.reshape(done.shape + (1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(choose, resumed, states)


def rows_of(task: int, turns: Int[Array, "b"], valid: Bool[Array, "b"]) -> Bool[Array, "b"]:
    """Which rows of a decision go into the buffer of one task's policy."""
    return valid & (turns == task)
