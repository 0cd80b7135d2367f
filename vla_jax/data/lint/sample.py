"""The numbers of whole episodes spread over a set: what the checks of actions look at."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int64

from vla_jax.core import errors
from vla_jax.data.formats.episodes import EpisodeDataset
from vla_jax.data.lint.settings import LintConfig

_CUT = np.pi  # a step of more than half a turn is a wrapped angle, not a movement


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """States and actions of some episodes, one after the other."""

    states: Float64[np.ndarray, "n s"]
    actions: Float64[np.ndarray, "n a"]
    starts: Int64[np.ndarray, "episodes_plus_one"]  # first row of every episode, then n
    frames: Int64[np.ndarray, "n"]  # their numbers in the set

    @property
    def lengths(self) -> Int64[np.ndarray, "episodes"]:
        return np.diff(self.starts)

    def steps(self, ahead: int) -> Int64[np.ndarray, "m"]:
        """The rows whose episode goes on for `ahead` more frames."""
        left = np.repeat(self.starts[1:], self.lengths) - np.arange(len(self.states))
        return np.flatnonzero(left > ahead)

    def movements(self, rows: Int64[np.ndarray, "m"], ahead: int = 1) -> Float64[np.ndarray, "m s"]:
        """How far every state dim went in `ahead` steps from each row; a wrapped angle goes the short way."""
        total = np.zeros((len(rows), self.states.shape[1]))
        for step in range(ahead):
            moved = self.states[rows + step + 1] - self.states[rows + step]
            total += moved - 2 * np.pi * np.round(moved / (2 * np.pi)) * (np.abs(moved) > _CUT)
        return total

    def summed_actions(self, rows: Int64[np.ndarray, "m"], ahead: int = 1) -> Float64[np.ndarray, "m a"]:
        return sum(self.actions[rows + step] for step in range(ahead))

    def keep(self, rows: Bool[np.ndarray, "n"]) -> "Sample":
        """Without the episodes that have a row which is not kept."""
        whole = [bool(rows[start:stop].all()) for start, stop in zip(self.starts[:-1], self.starts[1:], strict=True)]
        kept = np.repeat(whole, self.lengths)
        lengths = self.lengths[np.asarray(whole, bool)]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Sample(self.states[kept], self.actions[kept], starts, self.frames[kept])


def draw(dataset: EpisodeDataset, config: LintConfig) -> Sample:
    """All episodes where the set has at most `max_frames`, else some, evenly spread. Raises DataError where a feature
    is missing."""
    starts = np.asarray(dataset.episode_starts)
    count = len(dataset)
    if dataset.num_frames > config.max_frames:
        count = max(1, len(dataset) * config.max_frames // dataset.num_frames)
    chosen = np.unique(np.linspace(0, len(dataset) - 1, count).round().astype(np.int64))
    frames = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in chosen])
    bounds = np.concatenate([[0], np.cumsum(np.diff(starts)[chosen])]).astype(np.int64)
    states, actions = (vectors(dataset, names, frames) for names in (config.state_names, config.action_names))
    return Sample(states, actions, bounds, frames)


def vectors(
    dataset: EpisodeDataset, names: Sequence[str], frames: Int64[np.ndarray, "n"]
) -> Float64[np.ndarray, "n d"]:
    """Rows of features, joined; a scalar is a vector of one. Raises DataError where a feature is missing."""
    parts = [np.zeros((len(frames), 0))]
    for name in names:
        if name not in dataset.columns:
            raise errors.DataError(
                f'{dataset.place}: no numbers called "{name}"', fix=errors.closest(name, dataset.columns)
            )
        parts.append(np.asarray(dataset.columns[name][frames], np.float64).reshape(len(frames), -1))
    return np.concatenate(parts, axis=1)
