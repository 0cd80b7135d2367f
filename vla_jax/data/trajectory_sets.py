"""Where `Trajectories` come from: arrays, episodes, datasets on disk; and what is computed of them once, on the host.

from_arrays(observations, actions, rewards, discounts, episode_lengths)
from_episodes(episodes)
from_dataset(config, normalizer)                  low-dimensional columns of an RLDS or LeRobot set
with_mc_returns(trajectories, discount)           the return from every row on
best_episodes(trajectories, percent)              rows of the episodes with the highest returns
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

from vla_jax.core import errors
from vla_jax.core.types import Observation
from vla_jax.data import columns, demonstrations
from vla_jax.data.formats.episodes import EpisodeDataset
from vla_jax.data.normalization import Normalizer
from vla_jax.data.schema import DatasetConfig, TransitionConfig
from vla_jax.data.trajectories import Trajectories


@dataclasses.dataclass(frozen=True, eq=False)
class Episode:
    """One episode of `t` steps. `observations` (an array, or a pytree of them) may have one row more than there are
    actions: the one arrived at. Without it, the last action of an episode that was cut off is not used."""

    observations: Any  # [t, s] or [t + 1, s]
    actions: Float[np.ndarray, "t a"]
    rewards: Float[np.ndarray, "t"]
    terminated: bool  # the last action ended the task; False: a time limit or the end of the recording


def from_arrays(
    observations: Any,
    actions: Float[np.ndarray, "n a"],
    rewards: Float[np.ndarray, "n"],
    discounts: Float[np.ndarray, "n"],
    episode_lengths: Int[np.ndarray, "episodes"],
    goals: Any = None,
) -> Trajectories:
    """Flat arrays, episode after episode, as float32 on the device. See `Trajectories` for what a last row means.

    Raises DataError when lengths disagree or a number is not finite.
    """
    lengths = np.asarray(episode_lengths, np.int64)
    num_rows = int(lengths.sum())
    named = {"actions": actions, "rewards": rewards, "discounts": discounts, "observations": observations}
    named |= {} if goals is None else {"goals": goals}
    for name, tree in named.items():
        for leaf in jax.tree.leaves(tree):
            if len(leaf) != num_rows:
                raise errors.DataError(
                    f"trajectories: {name}", expected=f"{num_rows} rows, the sum of episode_lengths", found=len(leaf)
                )
            if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(leaf).all():
                raise errors.DataError(
                    f"trajectories: {name}, row {_first_bad(leaf)}", expected="finite numbers", found="NaN or infinity"
                )
    if num_rows == 0 or lengths.min() < 1:
        raise errors.DataError("trajectories: episode_lengths", expected="at least 1 each", found=lengths.tolist()[:8])
    stops = np.cumsum(lengths)
    return Trajectories(
        observations=jax.tree.map(_on_device, observations),
        actions=_on_device(actions),
        rewards=_on_device(rewards),
        discounts=_on_device(discounts),
        episode_start=jnp.asarray(np.repeat(stops - lengths, lengths), jnp.int32),
        episode_stop=jnp.asarray(np.repeat(stops, lengths), jnp.int32),
        goals=jax.tree.map(_on_device, goals),
    )


def from_episodes(episodes: Sequence[Episode]) -> Trajectories:
    """Episodes in order. Where there is one observation more than actions, the last row gets a zero action that is
    never used. Raises DataError as `from_arrays` does, and for an episode whose lengths do not fit."""
    parts = [_rows_of(i, episode) for i, episode in enumerate(episodes)]
    observations = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(e.observations for e in episodes))
    actions, rewards, discounts = (np.concatenate(column) for column in zip(*parts, strict=True))
    return from_arrays(observations, actions, rewards, discounts, np.array([len(part[1]) for part in parts]))


def from_dataset(config: DatasetConfig, normalizer: Normalizer, cache_folder: str | Path | None = None) -> Trajectories:
    """The episodes of a set on disk that `config` selects, without pictures and instructions.

    Observations are `Observation`s of the normalized state; `config.transitions` says which reward and which end.
    Raises DataError when the set lacks what the config asks for, ConfigError for settings that need more than columns.
    """
    wanted = {"cameras": config.cameras, "first_frames": config.first_frames, "kept_frames": config.kept_frames}
    wanted["action_kind"] = None if config.action_kind == "as recorded" else config.action_kind
    for name, value in wanted.items():
        if value:
            raise errors.ConfigError(f"DatasetConfig.{name} of resident trajectories", expected="none", found=value)
    if config.transitions is None:
        raise errors.ConfigError("DatasetConfig.transitions", expected="a TransitionConfig", found=None)
    dataset = demonstrations.open_dataset(config, cache_folder)
    chosen = np.unique(demonstrations.select(dataset, config).episodes)
    bounds = np.asarray(dataset.episode_starts)
    lengths = np.diff(bounds)[chosen]
    frames = np.concatenate([np.arange(*bounds[i : i + 2]) for i in chosen])
    discounts = _discounts(dataset, config.transitions, chosen)
    state = normalizer.normalize_state(columns.vectors(dataset, config.state_names, frames))
    actions = normalizer.normalize_actions(columns.vectors(dataset, config.action_names, frames))
    rewards = columns.vectors(dataset, (config.transitions.reward_key,), frames)[:, 0]
    return from_arrays(state_observations(state), actions, rewards, discounts, lengths)


def rewards_of(dataset: EpisodeDataset, config: TransitionConfig) -> Trajectories:
    """Rewards and ends of all episodes of a set, frame by frame, without what was seen and done."""
    lengths = np.diff(np.asarray(dataset.episode_starts))
    everything, nothing = np.arange(lengths.sum()), np.zeros((lengths.sum(), 0), np.float32)
    rewards = columns.vectors(dataset, (config.reward_key,), everything)[:, 0]
    return from_arrays(nothing, nothing, rewards, _discounts(dataset, config, np.arange(len(lengths))), lengths)


def state_observations(state: Float[np.ndarray, "*b s"]) -> Observation:
    """Observations without pictures; the prompt is one masked token."""
    shape = (*state.shape[:-1], 1)
    return Observation({}, {}, state, np.zeros(shape, np.int32), np.zeros(shape, bool))


def with_mc_returns(trajectories: Trajectories, discount: float, tail_value: float = 0.0) -> Trajectories:
    """The trajectories with the discounted return from every row to the end of its episode.

    `tail_value` stands for what would have followed an episode that was cut off. In tasks with reward -1 until success
    it is that of never arriving: `-1 / (1 - discount)`. Source: Cal-QL (arXiv 2303.05479), section 5.
    """
    rewards, discounts = (np.asarray(x, np.float64) for x in (trajectories.rewards, trajectories.discounts))
    starts = np.unique(np.asarray(trajectories.episode_start))
    lengths = np.diff(np.append(starts, trajectories.num_rows))
    found = np.empty_like(rewards)
    # one backward pass over all episodes side by side
    for back in range(int(lengths.max())):
        rows = (starts + lengths - 1 - back)[lengths > back]
        if back == 0:
            found[rows] = np.where(discounts[rows] == 0, rewards[rows], tail_value)
        else:
            found[rows] = rewards[rows] + discount * discounts[rows] * found[rows + 1]
    return trajectories.replace(mc_returns=_on_device(found))


def best_episodes(trajectories: Trajectories, percent: float) -> Bool[np.ndarray, "n"]:
    """True for the rows of the `percent` % of episodes with the highest undiscounted return, at least one episode.

    Of equal returns the earlier episode is better. A reward that was never earned (of a row that does not act) or that
    lies behind the end of the task does not count. Raises ConfigError unless 0 < percent <= 100.
    """
    if not 0 < percent <= 100:
        raise errors.ConfigError("best_episodes: percent", expected="a value in (0, 100]", found=percent)
    returns = np.asarray(with_mc_returns(trajectories, discount=1.0).mc_returns)
    starts, episode = np.unique(np.asarray(trajectories.episode_start), return_inverse=True)
    num_best = max(1, round(len(starts) * percent / 100))
    best = np.argsort(-returns[starts], kind="stable")[:num_best]
    return np.isin(episode, best)


def _discounts(
    dataset: EpisodeDataset, config: TransitionConfig, episodes: Int[np.ndarray, "e"]
) -> Float32[np.ndarray, "n"]:
    """Of the rows of these episodes: 0 at the step that ended the task."""
    lengths = np.diff(np.asarray(dataset.episode_starts))[episodes]
    discounts, last = np.ones(lengths.sum(), np.float32), np.cumsum(lengths) - 1
    ends = demonstrations.is_terminal(dataset, config)[episodes]
    if config.last_step == "shows":  # the last row is only arrived at: the step before it ended the task
        ends, last = ends & (lengths > 1), last - 1
    discounts[last[ends]] = 0
    return discounts


def _rows_of(number: int, episode: Episode) -> tuple[Float32[np.ndarray, "n a"], np.ndarray, np.ndarray]:
    """Actions, rewards and discounts of an episode, one row per observation."""
    num_steps, lengths = len(episode.actions), {len(leaf) for leaf in jax.tree.leaves(episode.observations)}
    num_rows = lengths.pop() if len(lengths) == 1 else -1
    if num_rows - num_steps not in (0, 1) or len(episode.rewards) != num_steps:
        raise errors.DataError(
            f"episode {number}",
            expected=f"{num_steps} rewards and {num_steps} or {num_steps + 1} observations, as there are actions",
            found=f"{len(episode.rewards)} rewards, {'observations of unequal lengths' if num_rows < 0 else num_rows}",
        )
    extra = num_rows - num_steps
    discounts = np.ones(num_rows, np.float32)
    if episode.terminated:
        discounts[num_steps - 1] = 0
    actions = np.pad(np.asarray(episode.actions, np.float32), ((0, extra), (0, 0)))
    return actions, np.pad(np.asarray(episode.rewards, np.float32), (0, extra)), discounts


def _on_device(leaf: np.ndarray) -> Array:
    is_real = np.issubdtype(leaf.dtype, np.floating)
    return jnp.asarray(leaf, jnp.float32 if is_real else leaf.dtype)


def _first_bad(leaf: np.ndarray) -> int:
    return int(np.flatnonzero(~np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1))[0])
