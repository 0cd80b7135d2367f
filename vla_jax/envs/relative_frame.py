"""Observations and actions in the frame of the tool, so that what is learned in one place holds in another.

    env = RelativeFrame(PickCubeConfig(arm="slides").make(prompts), FrameLayout(position=(0, 1, 2), ...))

The pose is told from where the tool was at the start of the episode, velocities and other things' places from where it
is now; an action is a motion in the tool's axes. Where an operator's action comes in the base frame, `to_tool` says
what the policy would have had to do for it: that is what a buffer must store. Source: SERL (arXiv 2401.16013), its
relative frame; its code's matrix is `serl_compat` (see `core/lie.py`).
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Key

from vla_jax.core import errors, lie
from vla_jax.core.types import Observation
from vla_jax.envs.base import Env, EnvSpec, EnvState

Dims = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class FrameLayout:
    """Which state and action entries mean what. Empty: there are none such."""

    position: Dims  # of the tool, in metres in the base frame
    rotation: Dims = ()  # the first two columns of its rotation, six entries; without them it never turns
    velocity: Dims = ()  # linear, in the base's axes
    points: tuple[Dims, ...] = ()  # places of other things, in the base frame
    translation_action: Dims = (0, 1, 2)
    rotation_action: Dims = ()

    def __post_init__(self):
        threes = (self.position, self.translation_action, *self.points)
        optional = ((self.rotation, 6), (self.velocity, 3), (self.rotation_action, 3))
        if any(len(dims) != 3 for dims in threes) or any(dims and len(dims) != n for dims, n in optional):
            raise errors.ConfigError("FrameLayout", expected="three entries each, six for the rotation", found=self)


class FramedPhysics(struct.PyTreeNode):
    inner: Any
    start: Float[Array, "4 4"]  # the tool's pose when the episode began


@dataclasses.dataclass(frozen=True)
class RelativeFrame:
    """An environment seen and moved in the tool's frame. Raises ConfigError for `serl_compat` without rotations."""

    env: Env
    layout: FrameLayout
    serl_compat: bool = False

    def __post_init__(self):
        if self.serl_compat and not self.layout.rotation_action:
            raise errors.ConfigError(
                "RelativeFrame.serl_compat", expected="an action with rotations, which it mixes with translations",
                found=self.layout,
            )  # fmt: skip

    @property
    def spec(self) -> EnvSpec:
        return self.env.spec

    def reset(self, key: Key[Array, ""]) -> EnvState:
        state = self.env.reset(key)
        return state.replace(physics=FramedPhysics(state.physics, self._pose(self.env.observe(state).state)))

    def step(self, state: EnvState, action: Float[Array, "a"]) -> EnvState:
        inner = self.unwrapped(state)
        stepped = self.env.step(inner, self.to_base(state, action))
        return stepped.replace(physics=FramedPhysics(stepped.physics, state.physics.start))

    def observe(self, state: EnvState) -> Observation:
        observation = self.env.observe(self.unwrapped(state))
        return observation.replace(state=self._seen(observation.state, state.physics.start))

    def unwrapped(self, state: EnvState) -> EnvState:
        """The state of the environment inside."""
        return state.replace(physics=state.physics.inner)

    def to_base(self, state: EnvState, action: Float[Array, "a"]) -> Float[Array, "a"]:
        """An action in the tool's axes as the environment inside takes it."""
        return self._turned(self._matrix(state), action)

    def to_tool(self, state: EnvState, action: Float[Array, "a"]) -> Float[Array, "a"]:
        """The inverse of `to_base`, for actions that somebody gave in the base frame."""
        return self._turned(jnp.linalg.inv(self._matrix(state)), action)

    def _matrix(self, state: EnvState) -> Float[Array, "6 6"]:
        now = self._pose(self.env.observe(self.unwrapped(state)).state)
        return lie.frame_matrix(now, serl_compat=self.serl_compat)

    def _pose(self, state: Float[Array, "s"]) -> Float[Array, "4 4"]:
        if not self.layout.rotation:
            return lie.pose(state[jnp.array(self.layout.position)], jnp.eye(3))
        columns = state[jnp.array(self.layout.rotation)].reshape(2, 3)
        return lie.pose(state[jnp.array(self.layout.position)], lie.from_columns(columns[0], columns[1]))

    def _seen(self, state: Float[Array, "s"], start: Float[Array, "4 4"]) -> Float[Array, "s"]:
        layout, now = self.layout, self._pose(state)
        since, back = lie.relative(start, now), lie.inverse(now)
        seen = state.at[jnp.array(layout.position)].set(lie.position(since))
        if layout.rotation:
            seen = seen.at[jnp.array(layout.rotation)].set(lie.rotation(since)[:, :2].T.ravel())
        if layout.velocity:
            dims = jnp.array(layout.velocity)
            seen = seen.at[dims].set(lie.rotation(back) @ state[dims])
        for dims in map(jnp.array, layout.points):
            seen = seen.at[dims].set(lie.rotation(back) @ state[dims] + lie.position(back))
        return seen

    def _turned(self, matrix: Float[Array, "6 6"], action: Float[Array, "a"]) -> Float[Array, "a"]:
        layout = self.layout
        dims = jnp.array(layout.translation_action + layout.rotation_action)
        size = len(layout.translation_action) + len(layout.rotation_action)
        return action.at[dims].set(matrix[:size, :size] @ action[dims])
