"""Recorded episodes as Transitions for reinforcement learning: chunks or n-step returns, with or without new goals.

    frames            3 4 5 6 7 |     one episode; `last_step` "acts", `is_terminal` at 7
    chunk of 3 at 4   4 5 6           next observation 7
    chunk of 3 at 6   6 7 -           next observation 7, never looked at: its discount is 0
    cut off instead   6 - -           next observation 7, to bootstrap from: nobody saw what the action at 7 led to

A time limit is not an end: only the terminal flag of an episode's last step makes a discount 0.
"""

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt64

from vla_jax.core.types import Transitions
from vla_jax.data import columns
from vla_jax.data.demonstrations import FrameDataset, is_terminal
from vla_jax.data.samples import goals, windows


class TransitionDataset(FrameDataset):
    """Batches for reinforcement learning. `config.transitions` says what steps mean; every sample is a chunk of
    `action_horizon` steps, or, with `n_step` above 1, one action and the return of the steps from there on.

    With `config.goals` rewards and ends are those of reaching the goal, and `Transitions.goal` is its observation.
    `extras["weight"]` is 0 where a picture is damaged, and 1 elsewhere.
    """

    def allocate(self, num_rows: int) -> Transitions:
        steps = (num_rows, self.config.action_horizon)
        return Transitions(
            observation=self._observations.allocate(num_rows),
            actions=np.empty((*steps, self.action_dim), np.float32),
            rewards=np.empty(steps, np.float32),
            discounts=np.empty(steps, np.float32),
            action_mask=np.empty(steps, bool),
            next_observation=self._observations.allocate(num_rows),
            extras={"weight": np.empty(num_rows, np.float32)},
            goal=None if self.config.goals is None else self._observations.allocate(num_rows),
        )

    def fill(
        self,
        out: Transitions,
        rows: Int64[np.ndarray, "b"],
        frames: Int64[np.ndarray, "b"],
        keys: UInt64[np.ndarray, "b"],
    ) -> None:
        dataset, config = self.dataset, self.config
        episodes = dataset.episode_of(frames)
        stops = np.asarray(dataset.episode_starts)[episodes + 1]
        chosen = None if config.goals is None else goals.draw_goals(frames, stops, keys, config.goals)
        num_steps = max(config.action_horizon, config.transitions.n_step)
        rewards, discounts, is_run = self._steps(frames, episodes, stops, chosen, num_steps)
        after = np.minimum(frames + is_run.sum(axis=1), stops - 1)
        if config.transitions.n_step > 1:
            rewards, discounts = n_step_return(rewards, discounts, is_run, config.transitions.discount)
            is_run = is_run[:, :1]
        actions, _ = columns.action_chunks(dataset, config, frames, stops)
        self._put_actions(out.actions, rows, actions)
        out.rewards[rows], out.discounts[rows], out.action_mask[rows] = rewards, discounts, is_run
        is_whole = self._observations.fill(out.observation, rows, frames, keys)
        is_whole &= self._observations.fill(out.next_observation, rows, after, keys)
        if chosen is not None:
            is_whole &= self._observations.fill(out.goal, rows, chosen, keys)
        out.extras["weight"][rows] = is_whole

    def _steps(
        self,
        frames: Int64[np.ndarray, "b"],
        episodes: Int64[np.ndarray, "b"],
        stops: Int64[np.ndarray, "b"],
        chosen: Int64[np.ndarray, "b"] | None,
        num_steps: int,
    ) -> tuple[Float32[np.ndarray, "b n"], Float32[np.ndarray, "b n"], Bool[np.ndarray, "b n"]]:
        """Rewards, discounts and mask of the steps from every frame on."""
        config = self.config.transitions
        if chosen is not None:
            rewards, discounts, is_run = goals.relabel(frames, chosen, num_steps, self.config.goals)
            is_run &= frames[:, None] + np.arange(num_steps) < stops[:, None] - 1
            return rewards * is_run, discounts * is_run, is_run
        ends = is_terminal(self.dataset, config)[episodes]
        # The last step whose outcome is known: the last of the episode only if it acted and ended the task.
        last = stops - 1 if config.last_step == "acts" else stops - 2
        known = np.where(ends, last, stops - 2)
        ahead, is_run = windows.action_windows(frames, known + 1, num_steps)
        rewards = columns.vectors(self.dataset, (config.reward_key,), ahead)[..., 0] * is_run
        discounts = (is_run & ~(ends[:, None] & (ahead == known[:, None]))).astype(np.float32)
        return rewards, discounts, is_run


def n_step_return(
    rewards: Float32[np.ndarray, "b n"],
    discounts: Float32[np.ndarray, "b n"],
    is_run: Bool[np.ndarray, "b n"],
    discount: float,
) -> tuple[Float32[np.ndarray, "b 1"], Float32[np.ndarray, "b 1"]]:
    """The discounted sum of the rewards of the steps that were run, and what stands for the discount of all of them.

    A learner that multiplies the second by its own `discount` gets `discount ** m` after `m` steps, and 0 when one of
    them ended the task.
    """
    through = np.cumprod(np.where(is_run, discount * discounts, 1.0), axis=1)
    before = np.concatenate([np.ones_like(through[:, :1]), through[:, :-1]], axis=1)
    total = (rewards * before * is_run).sum(axis=1, keepdims=True)
    return total.astype(np.float32), (through[:, -1:] / discount).astype(np.float32)
