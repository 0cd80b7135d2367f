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
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8

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
    """One environment on the host."""

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


@dataclasses.dataclass(frozen=True)
class VectorChunk:
    """What executing a chunk in each of `n` lanes gave, as `HostChunk` says of one; observe to see where they are."""

    rewards: Float32[np.ndarray, "n h"]
    discounts: Float32[np.ndarray, "n h"]
    mask: Bool[np.ndarray, "n h"]  # all False: the episode had ended before this chunk
    done: Bool[np.ndarray, "n"]
    truncated: Bool[np.ndarray, "n"]
    success: Bool[np.ndarray, "n"]


class HostVectorEnv(Protocol):
    """Lanes that step side by side. Nothing resets itself, and pictures are drawn only by `observe`.

    `done`, `success` and `env_steps` are of the episode that runs or ran last in every lane.
    """

    spec: EnvSpec
    done: Bool[np.ndarray, "n"]
    success: Bool[np.ndarray, "n"]
    env_steps: Int[np.ndarray, "n"]

    @property
    def num_lanes(self) -> int: ...

    def reset(
        self, seeds: Sequence[int], tasks: Sequence[int] | None = None, lanes: Sequence[int] | None = None
    ) -> None:
        """Start episodes in `lanes` (all by default). A task is an index into `spec.instructions`."""
        ...

    def step(self, actions: Float[np.ndarray, "n h a"], lanes: Sequence[int] | None = None) -> VectorChunk: ...

    def observe(self, lanes: Sequence[int] | None = None) -> Observation: ...

    def close(self) -> None: ...


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


def checked_prompts(prompts: PromptTable | None, spec: EnvSpec) -> PromptTable:
    """`prompts` as numpy, or those of nothing. Raises ConfigError unless there is one row per instruction."""
    if prompts is None:
        return no_prompts(spec)
    if len(prompts.tokens) != len(spec.instructions):
        raise errors.ConfigError(
            f"prompts of {spec.name}",
            expected=f"{len(spec.instructions)} rows, one per instruction",
            found=f"{len(prompts.tokens)} rows",
        )
    return PromptTable(tokens=np.asarray(prompts.tokens), mask=np.asarray(prompts.mask))


def observation(
    images: dict[str, UInt8[np.ndarray, "*b h w 3"]],
    state: Float32[np.ndarray, "*b s"],
    tasks: Int[np.ndarray, "*b"],
    prompts: PromptTable,
) -> Observation:
    """What a policy is given, every camera there; row `tasks` of the prompts."""
    return Observation(
        images=images,
        image_mask={name: np.ones(tasks.shape, bool) for name in images},
        state=state,
        prompt=prompts.tokens[tasks],
        prompt_mask=prompts.mask[tasks],
    )


def check_runs(is_running: bool, spec: EnvSpec) -> None:
    """Raises EnvError where no episode runs."""
    if not is_running:
        raise errors.EnvError(f"step of {spec.name}", expected="an episode that runs", found="none", fix="reset first")


def checked_lanes(lanes: Sequence[int] | None, num_lanes: int) -> list[int]:
    """The lanes as a list, all by default."""
    return list(range(num_lanes)) if lanes is None else [int(lane) for lane in lanes]


def check_rows(call: str, spec: EnvSpec, lanes: Sequence[int], **rows: Sequence) -> None:
    """Raises EnvError unless there is one of each per lane."""
    if any(len(each) != len(lanes) for each in rows.values()):
        found = ", ".join(f"{len(each)} {name}" for name, each in rows.items())
        raise errors.EnvError(f"{call} of {spec.name}", expected=f"{len(lanes)} of each, one per lane", found=found)
