"""Environments as pure functions of one environment; `envs/wrappers.py` batches, chunks and resets them.

    state = env.reset(key)
    state = env.step(state, action)          # physics, reward, discount, done: cheap
    observation = env.observe(state)         # renders the cameras: only where a policy looks

Rendering is a function of its own because it costs many physics steps and a policy looks once per chunk.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from vla_jax.core.types import Observation


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """What a policy, a dataset and a report must know of an environment."""

    name: str
    instructions: tuple[str, ...]
    action_names: tuple[str, ...]  # robot_action_dim of them; every action entry is in [-1, 1]
    state_names: tuple[str, ...]
    cameras: Mapping[str, tuple[int, int]]  # name -> (height, width)
    episode_length: int  # control steps
    control_hz: float

    @property
    def action_dim(self) -> int:
        return len(self.action_names)

    @property
    def state_dim(self) -> int:
        return len(self.state_names)


class EnvState(struct.PyTreeNode):
    """One environment between two control steps."""

    physics: Any  # the simulator's own pytree, targets and goals included
    key: Key[Array, ""]  # for what the environment itself draws
    env_step: Int[Array, ""]
    instruction: Int[Array, ""]  # index into EnvSpec.instructions
    reward: Float[Array, ""]
    discount: Float[Array, ""]  # 0 where the task ended (success or failure), 1 otherwise, at a time limit too
    done: Bool[Array, ""]  # the episode ends here for any reason
    success: Bool[Array, ""]
    info: dict[str, Float[Array, ""]]  # named reward terms and diagnostics


class Env(Protocol):
    spec: EnvSpec

    def reset(self, key: Key[Array, ""]) -> EnvState:
        """A fresh episode with its own instruction, poses and randomization."""
        ...

    def step(self, state: EnvState, action: Float[Array, "a"]) -> EnvState:
        """One control step with `action` clipped to [-1, 1]. A state that is `done` is returned unchanged, reward 0."""
        ...

    def observe(self, state: EnvState) -> Observation:
        """What the policy sees: unbatched, `state` in physical units (not normalized), the prompt tokens."""
        ...
