"""Experience for learners whose rows have more steps than a decision: windows of it, cut when they are drawn.

decisions of 5 steps       a a a a a  b b b b b  c c c . .   the episode ends in the third
window of 10 at the first  a a a a a  b b b b b              next observation: what c saw
window of 10 at the second            b b b b b  c c c - -   next observation: the last one
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from vla_jax.core import errors
from vla_jax.core.types import Transitions
from vla_jax.data.replay import windows
from vla_jax.data.trajectories import Steps
from vla_jax.training.online import ReplaySource


class WindowSource(ReplaySource):
    """As `ReplaySource`, with rows of `window` steps that begin at a decision; `stride` steps are run per decision."""

    def __init__(self, *args: Any, window: int, stride: int, **options: Any):
        """Raises ConfigError where `window` is no multiple of `stride`, or the buffer holds no window."""
        if window % stride:
            raise errors.ConfigError(
                "rows of experience",
                expected=f"a multiple of the {stride} steps of a decision",
                found=f"{window} steps",
            )
        self._window, self._stride = window, stride
        super().__init__(*args, **options)

    def _make_buffer(self, row: Transitions) -> windows.StepBuffer:
        num_envs, decisions = self._config.num_envs, self._config.capacity // self._config.num_envs
        if decisions <= self._window // self._stride:
            enough = num_envs * (self._window // self._stride)
            raise errors.ConfigError(
                "ReplayConfig.capacity",
                expected=f"above {enough}: a window and one decision more in each of {num_envs} environments",
                found=self._config.capacity,
            )
        columns = (row.actions, row.rewards, row.discounts)
        step = Steps(row.observation, *(jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in columns))
        return windows.init(num_envs, decisions * self._stride, step)

    def _keep(self, buffer: Any, rows: Transitions, finished: Bool[Array, "b"]) -> windows.StepBuffer:
        is_over = ~rows.action_mask & ~finished[:, None]  # the episode ended before this step: its row is arrived at

        def at_each_step(now: Array, after: Array) -> Array:
            where = is_over.reshape(*is_over.shape, *(1 for _ in now.shape[1:]))
            return jnp.where(where, after[:, None], now[:, None])

        observations = jax.tree.map(at_each_step, rows.observation, rows.next_observation)
        steps = Steps(observations, rows.actions, rows.rewards, rows.discounts)
        return windows.insert(buffer, steps, rows.action_mask)

    def _num_kept(self, buffer: Any) -> Int[Array, ""]:
        return buffer.size // self._stride * self._config.num_envs

    def _draw_met(self, buffer: Any, key: Key[Array, ""], shape: tuple[int, ...]) -> Transitions:
        return windows.sample(buffer, key, shape, self._window, stride=self._stride)
