"""Recorded trajectories that live on the device, flat, and the batches gathered from them inside a jit.

    row              0 1 2 3 4 | 5 6 7        two episodes; each row is an observation and the action taken there
    discount         1 1 1 1 0 | 1 1 1        the first ended its task at row 4, the second was cut off
    acts             1 1 1 1 1 | 1 1 0        what the action at 7 led to was never seen: 7 is only arrived at
    chunk of 3 at 3  3 4 -  mask 1 1 0        next observation 4, never looked at: its discount is 0
    chunk of 3 at 5  5 6 -  mask 1 1 0        next observation 7, to bootstrap from: being cut off is no end

    starts = chunk_starts(trajectories, action_horizon=5)              # once, on the host
    batch = chunk_batch(trajectories, starts, key, (256,), 5)          # inside the jit, any leading shape
    batch = goal_batch(trajectories, starts, key, (256,), 5, config)   # rewards of reaching a hindsight goal

Where trajectories come from (arrays, episodes, datasets on disk) is in `trajectory_sets.py`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from vla_jax.core import errors
from vla_jax.core.types import Transitions


class Steps(struct.PyTreeNode):
    """Rows of an observation and what was done there; `*n` are the first axes of all leaves."""

    observations: Any  # [*n, s], or a pytree of such arrays, for example an `Observation`
    actions: Float[Array, "*n a"]
    rewards: Float[Array, "*n"]
    discounts: Float[Array, "*n"]  # 0 where the action ended the task, 1 elsewhere


class Trajectories(Steps):
    """`n` rows, episode after episode. Leaves are device arrays, `n` is their first axis.

    The last row of an episode acts only if its discount is 0; otherwise it holds the observation that the episode was
    cut off at, and its action and reward are never read. A discount of 0 before the last row (a task that was already
    solved while the recording went on) is allowed: nothing behind it counts.
    """

    episode_start: Int[Array, "n"]  # first row of the row's episode
    episode_stop: Int[Array, "n"]  # the row behind its last
    mc_returns: Float[Array, "n"] | None = None  # see trajectory_sets.with_mc_returns
    goals: Any = None  # what stands for a row when it is a goal; None: its observation

    @property
    def num_rows(self) -> int:
        return self.rewards.shape[0]


@dataclasses.dataclass(frozen=True)
class HindsightConfig:
    """How goals are drawn: three probabilities. Defaults: DQC's (arXiv 2512.10926)."""

    current: float = 0.2  # the row itself, which then succeeds at once
    future: float = 0.5  # a later row of the episode
    random: float = 0.3  # any row of any episode
    geometric_discount: float | None = None  # chance, at every step, that a future goal lies further; None: uniform

    def __post_init__(self):
        chances = (self.current, self.future, self.random)
        if min(chances) < 0 or abs(sum(chances) - 1) > 1e-6:
            raise errors.ConfigError(
                "HindsightConfig.current, future and random", expected="probabilities that add up to 1", found=chances
            )
        given = self.geometric_discount
        if given is not None and not 0 <= given < 1:
            raise errors.ConfigError(
                "HindsightConfig.geometric_discount", expected="a value in [0, 1) or None", found=given
            )


def chunk_starts(
    trajectories: Trajectories,
    action_horizon: int,
    *,
    whole: bool = True,
    arrives: bool = False,
    rows: Bool[np.ndarray, "n"] | None = None,
) -> Int[Array, "starts"]:
    """The rows that chunks may start at, computed on the host.

    With `whole` all `action_horizon` steps were run; without it a row that acts is enough and the rest is masked. With
    `arrives` (for `goal_batch`) every step must lead to a row, so a last row that ended its task is no step. `rows`
    restricts the starts, for example to `trajectory_sets.best_episodes`. Raises DataError when none is left.
    """
    discounts, stops = np.asarray(trajectories.discounts), np.asarray(trajectories.episode_stop)
    row = np.arange(trajectories.num_rows)
    # the last row of an episode is a step only if its action ended the task
    steps_end = stops - 1 if arrives else np.where(discounts[stops - 1] == 0, stops, stops - 1)
    allowed = row + (action_horizon if whole else 1) <= steps_end
    if rows is not None:
        allowed &= np.asarray(rows)
    if not allowed.any():
        raise errors.DataError(
            "trajectories: no row to start a chunk at",
            expected=f"an episode of at least {action_horizon if whole else 1} steps",
            found=f"{trajectories.num_rows} rows, the longest episode of {_longest(trajectories)} rows",
            fix="lower action_horizon, or take chunks that are cut short (whole=False)",
        )
    return jnp.asarray(np.flatnonzero(allowed), jnp.int32)


def chunk_batch(
    trajectories: Trajectories,
    starts: Int[Array, "starts"],
    key: Key[Array, ""],
    shape: tuple[int, ...],
    action_horizon: int,
) -> Transitions:
    """Chunks from rows drawn uniformly with replacement; leaves get the leading `shape`.

    `extras["mc_return"]` is the return from the first step on, where the trajectories have it.
    """
    return chunks_at(trajectories, _draw(key, starts, shape), action_horizon)


def chunks_at(trajectories: Trajectories, rows: Int[Array, "*b"], action_horizon: int) -> Transitions:
    """The chunk of every row: up to `action_horizon` steps of its own episode, the observation after the last of them.

    Steps past the end are masked: action that of the last step, reward 0, discount as before them.
    """
    stops = trajectories.episode_stop[rows]
    steps_end = stops - (trajectories.discounts[stops - 1] != 0)
    index, mask = _window(rows, steps_end, action_horizon)
    extras = {} if trajectories.mc_returns is None else {"mc_return": trajectories.mc_returns[rows]}
    return gather(trajectories, rows, index, mask, jnp.minimum(rows + mask.sum(axis=-1), stops - 1), extras)


def gather(
    steps: Steps,
    rows: Int[Array, "*b"],
    index: Int[Array, "*b h"],
    mask: Bool[Array, "*b h"],
    next_rows: Int[Array, "*b"],
    extras: dict[str, Array],
) -> Transitions:
    """Chunks that start at `rows`, run the steps `index` where `mask` and lead to `next_rows`, all flat rows."""
    return Transitions(
        observation=_take(steps.observations, rows),
        actions=steps.actions[index],
        rewards=jnp.where(mask, steps.rewards[index], 0.0),
        discounts=jnp.cumprod(jnp.where(mask, steps.discounts[index], 1.0), axis=-1),
        action_mask=mask,
        next_observation=_take(steps.observations, next_rows),
        extras=extras,
    )


def goal_batch(
    trajectories: Trajectories,
    starts: Int[Array, "starts"],
    key: Key[Array, ""],
    shape: tuple[int, ...],
    action_horizon: int,
    config: HindsightConfig,
) -> Transitions:
    """As `chunk_batch`, with hindsight goals and the rewards of reaching them; see `goals_at`.

    `starts` must be made with `arrives=True`: a hindsight goal is a row, so every step has to lead to one.
    """
    start_key, goal_key = jax.random.split(key)
    rows = _draw(start_key, starts, shape)
    return goals_at(trajectories, rows, draw_goals(trajectories, goal_key, rows, config), action_horizon)


def draw_goals(
    trajectories: Trajectories, key: Key[Array, ""], rows: Int[Array, "*b"], config: HindsightConfig
) -> Int[Array, "*b"]:
    """A goal row for every row. The last row of an episode is its own future.

    Unlike DQC's released code, every later row is equally likely (there the first and the last are half as likely), and
    random goals come from all rows, not only from those that chunks may start at.
    """
    kind_key, future_key, random_key = jax.random.split(key, 3)
    left = trajectories.episode_stop[rows] - 1 - rows
    if config.geometric_discount is None:
        ahead = jax.random.randint(future_key, rows.shape, 1, jnp.maximum(left, 1) + 1)
    else:
        ahead = jax.random.geometric(future_key, 1 - config.geometric_discount, rows.shape, dtype=jnp.int32)
    future = rows + jnp.minimum(ahead, left)
    anywhere = jax.random.randint(random_key, rows.shape, 0, trajectories.num_rows)
    kind = jax.random.uniform(kind_key, rows.shape)
    later = jnp.where(kind < config.current + config.future, future, anywhere)
    return jnp.where(kind < config.current, rows, later).astype(jnp.int32)


def goals_at(
    trajectories: Trajectories, rows: Int[Array, "*b"], goals: Int[Array, "*b"], action_horizon: int
) -> Transitions:
    """The chunk of every row with the rewards of reaching a goal row, which ends the task.

    Being at the goal is worth 1. With the goal `j` rows ahead in the same episode and `j < action_horizon`, the reward
    of step `j` is 1 and the discounts are 0 from there on, so that `td.chunk_return` is `discount**j` with factor 0.
    Else all rewards are 0 and all discounts 1: return 0, factor `discount**k`. `action_mask` says which steps the
    episode has, before the goal or after. `extras["num_steps"]` is `k = min(action_horizon, j, steps left)`, the
    distance to `next_observation`, and `extras["success"]` that the goal was reached. Rewards and ends of the recorded
    task play no part. Source: DQC (arXiv 2512.10926).
    """
    last = trajectories.episode_stop[rows] - 1
    index, mask = _window(rows, last, action_horizon)
    ahead = goals - rows
    steps = jnp.minimum(action_horizon, last - rows)
    success = (ahead >= 0) & (ahead < action_horizon) & (goals <= last)
    num_steps = jnp.where(success, ahead, steps)
    reached = success[..., None] & (_steps(rows, action_horizon) == ahead[..., None])
    goal_rows = trajectories.observations if trajectories.goals is None else trajectories.goals
    return Transitions(
        observation=_take(trajectories.observations, rows),
        actions=trajectories.actions[index],
        rewards=reached.astype(jnp.float32),
        discounts=1.0 - jnp.cumsum(reached, axis=-1).astype(jnp.float32),
        action_mask=mask | reached,  # a goal that is the last row is reached behind the last step
        next_observation=_take(trajectories.observations, rows + num_steps),
        extras={"num_steps": num_steps, "success": success},
        goal=_take(goal_rows, goals),
    )


def _window(
    rows: Int[Array, "*b"], steps_end: Int[Array, "*b"], action_horizon: int
) -> tuple[Int[Array, "*b h"], Bool[Array, "*b h"]]:
    """The rows of the steps from every row on, held at the last step, and which are steps of the episode."""
    index = rows[..., None] + _steps(rows, action_horizon)
    end = steps_end[..., None]
    return jnp.maximum(jnp.minimum(index, end - 1), rows[..., None]), index < end


def _steps(rows: Int[Array, "*b"], action_horizon: int) -> Int[Array, "*b h"]:
    return jnp.broadcast_to(jnp.arange(action_horizon), (*rows.shape, action_horizon))


def _draw(key: Key[Array, ""], starts: Int[Array, "starts"], shape: tuple[int, ...]) -> Int[Array, "*b"]:
    return starts[jax.random.randint(key, shape, 0, starts.shape[0])]


def _take(tree: Any, rows: Int[Array, "*b"]) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def _longest(trajectories: Trajectories) -> int:
    return int(np.max(np.asarray(trajectories.episode_stop) - np.asarray(trajectories.episode_start), initial=0))
