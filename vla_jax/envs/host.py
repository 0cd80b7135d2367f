"""Environments that run on the host, one step after the other: simulators in C, other people's packages, robots.

    observation = env.reset(seed=0)
    while not done:
        chunk = env.step(actions)                # "h a" in [-1, 1]; stops where the episode ends
        done, observation = chunk.done, chunk.observation

One of them is one lane: an actor process owns one, or several one after the other. Everything is numpy, unbatched, so
that it can cross a process boundary. `HostEnv` is to Gymnasium and robots what `base.Env` is to the MJX suites: the
meaning of done, discount and mask is the same.
"""

import dataclasses
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Float32

from vla_jax.core import errors
from vla_jax.core.types import Observation, PromptTable
from vla_jax.envs.base import EnvSpec


@dataclasses.dataclass(frozen=True)
class HostChunk:
    """What executing a chunk gave. Steps behind the end of the episode were not run: mask False, reward 0, discount 1.

    `done` = terminated or truncated. Where the task ended the discount of the last executed step is 0; where only time
    ran out it stays 1 and `truncated` is true. A chunk that does both counts as terminated.
    """

    rewards: Float32[np.ndarray, "h"]
    discounts: Float32[np.ndarray, "h"]
    mask: Bool[np.ndarray, "h"]  # False: not executed
    done: bool
    truncated: bool  # ended without the task having ended: bootstrap from `observation`
    success: bool  # the task was solved at any step of the episode so far
    observation: Observation  # after the last executed step, of the ended episode too


class HostEnv(Protocol):
    """One environment on the host, in lanes of its own."""

    @property
    def spec(self) -> EnvSpec: ...

    def reset(self, seed: int) -> Observation:
        """A fresh episode, equal for equal seeds. Numpy, unbatched, `state` in physical units."""
        ...

    def step(self, actions: Float[np.ndarray, "h a"]) -> HostChunk:
        """Run a chunk, entries clipped to [-1, 1]. Raises EnvError before the first reset, after the end of an
        episode, for another shape and for NaN."""
        ...

    def close(self) -> None:
        """Let go of the simulator; a second call does nothing."""
        ...


def check_chunk(actions: Float[np.ndarray, "h a"], spec: EnvSpec) -> Float32[np.ndarray, "h a"]:
    """The chunk as float32 clipped to [-1, 1]. Raises EnvError unless it is [h >= 1, spec.action_dim] and finite."""
    actions = np.asarray(actions, np.float32)
    if actions.ndim != 2 or len(actions) == 0 or actions.shape[1] != spec.action_dim:
        raise errors.EnvError(
            f"step of {spec.name}",
            expected=f"actions [h >= 1, {spec.action_dim}]",
            found=list(actions.shape),
            fix="cut the policy's padded action dims off with spec.action_dim",
        )
    if not np.isfinite(actions).all():
        raise errors.EnvError(f"step of {spec.name}", expected="finite actions", found="NaN or infinity")
    return np.clip(actions, -1.0, 1.0)


def no_prompts(spec: EnvSpec) -> PromptTable:
    """A row of one masked token per instruction, for policies that read no language."""
    rows = max(1, len(spec.instructions))
    return PromptTable(tokens=np.zeros((rows, 1), np.int32), mask=np.zeros((rows, 1), bool))
