"""Simulated trajectories of the MJX suites as RLDS episodes: pictures are drawn only of the frames worth keeping."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from vla_jax.data.formats.features import Episode, demonstration_flags
from vla_jax.envs.base import Env, EnvState

_FRAMES_PER_RENDER = 256


class Recorder:
    """Keeps the compiled program that draws a fixed number of frames per call."""

    def __init__(self, env: Env):
        self._env = env
        self._observe = jax.jit(self._observe_frames)

    def episodes(
        self,
        states: EnvState,
        actions: Float[Array, "b t a"],
        kept: Int[np.ndarray, "k"],
        metadata: Sequence[Mapping[str, Any]],
    ) -> list[Episode]:
        """The trajectories at places `kept`, in that order, with the metadata of each.

        Leaves of `states` have leading axes `b t`: the state before every action; from where it is done on, nothing was
        acted. Episodes end with success.
        """
        lengths = np.asarray((~states.done).sum(axis=1))
        instructions = np.asarray(states.instruction[:, 0])
        num_steps = states.done.shape[1]
        frames = np.concatenate(
            [np.arange(n) + i * num_steps for i, n in zip(kept, lengths[kept], strict=True)] or [[]]
        )
        images, robot_states = self._render(states, frames.astype(np.int64))
        episodes, start = [], 0
        for i, about in zip(kept, metadata, strict=True):
            rows = slice(start, start + lengths[i])
            start = rows.stop
            steps = {
                **{f"observation/{camera}": pictures[rows] for camera, pictures in images.items()},
                "observation/state": robot_states[rows],
                "action": np.asarray(actions[i, : lengths[i]]),
                "language_instruction": self._env.spec.instructions[instructions[i]],
                **demonstration_flags(int(lengths[i])),
            }
            episodes.append(Episode(steps, about))
        return episodes

    def _render(self, states: EnvState, frames: Int[np.ndarray, "n"]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Observations of some of the `b t` states, numbered through, a fixed number per call of one program."""
        padded = np.resize(frames, -(-len(frames) // _FRAMES_PER_RENDER) * _FRAMES_PER_RENDER)
        pieces = [jax.device_get(self._observe(states, part)) for part in padded.reshape(-1, _FRAMES_PER_RENDER)]
        if not pieces:
            return {}, np.zeros((0, self._env.spec.state_dim), np.float32)
        images, robot_states = jax.tree.map(lambda *parts: np.concatenate(parts)[: len(frames)], *pieces)
        return images, robot_states

    def _observe_frames(self, states: EnvState, frames: Int[Array, "n"]):
        chosen = jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])[frames], states)
        observation = jax.vmap(self._env.observe)(chosen)
        return observation.images, observation.state
