"""Which frames of a dataset are sampled, and how samples are counted: by frame, or by episode.

    episode filter, train or validation side  ->  whole episodes
    first frames, kept frames                 ->  ranges of frames inside them

By frame, one epoch visits every selected frame once, so long episodes weigh more. By episode, one epoch visits every
episode once, at a random one of its selected frames, so all episodes weigh the same. Memory is a few numbers per range.
"""

import dataclasses
import re
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int64, UInt64

from vla_jax.core import errors
from vla_jax.data.formats.episodes import EpisodeDataset
from vla_jax.data.samples import draws, kept_frames, splits

SampleBy = Literal["frame", "episode"]


@dataclasses.dataclass(frozen=True, eq=False)
class FrameSelection:
    """Sorted half-open ranges of frames, none longer than its episode."""

    starts: Int64[np.ndarray, "ranges"]
    stops: Int64[np.ndarray, "ranges"]
    episodes: Int64[np.ndarray, "ranges"]  # that each range lies in
    sample_by: SampleBy = "frame"

    @cached_property
    def _before(self) -> Int64[np.ndarray, "ranges_plus_one"]:
        """Selected frames before each range."""
        return np.concatenate([[0], np.cumsum(self.stops - self.starts)])

    @cached_property
    def _episode_before(self) -> Int64[np.ndarray, "episodes_plus_one"]:
        """Selected frames before each episode that has any."""
        firsts = np.flatnonzero(np.diff(self.episodes, prepend=-1))
        return np.append(self._before[firsts], self._before[-1])

    @property
    def num_frames(self) -> int:
        return int(self._before[-1])

    @property
    def num_episodes(self) -> int:
        return len(self._episode_before) - 1

    @property
    def num_samples(self) -> int:
        """Of one epoch."""
        return self.num_episodes if self.sample_by == "episode" else self.num_frames

    def frame(self, index: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
        """The selected frame of this number, in the order of the dataset."""
        ranges = np.searchsorted(self._before, index, side="right") - 1
        return self.starts[ranges] + index - self._before[ranges]

    def __call__(self, samples: Int64[np.ndarray, "n"], keys: UInt64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
        """The frame of every sample of an epoch; by episode, drawn by the sample's key."""
        if self.sample_by == "frame":
            return self.frame(samples)
        first, stop = self._episode_before[samples], self._episode_before[samples + 1]
        return self.frame(first + draws.integers(keys, "frame of the episode", stop - first))


def select(
    dataset: EpisodeDataset,
    *,
    episode_filter: tuple[str, str] | None = None,
    holdout: float = 0.0,
    subset: splits.Subset = "train",
    kept_frames_path: str | None = None,
    first_frames: int | None = None,
    skip_last: Bool[np.ndarray, "episodes"] | None = None,
    sample_by: SampleBy = "frame",
) -> FrameSelection:
    """The frames that pass everything asked for. `episode_filter` is a text feature of episodes and a regular
    expression found in it; `skip_last` marks episodes whose last frame is left out.

    Raises DataError when nothing passes, saying how many episodes each condition left.
    """
    is_kept, left = np.ones(len(dataset), bool), [f"{len(dataset)} episodes"]

    def keep(where: Bool[np.ndarray, "episodes"], reason: str) -> None:
        nonlocal is_kept
        is_kept = is_kept & where
        left.append(f"{int(is_kept.sum())} after {reason}")

    if episode_filter is not None:
        name, pattern = episode_filter
        matches = np.array([re.search(pattern, text) is not None for text in dataset.texts(name)], bool)
        keep(matches[np.asarray(dataset.text_ids(name))], f"episode_filter={episode_filter!r}")
    if holdout > 0 or subset == "validation":
        held_out = splits.is_held_out(splits.episode_keys(dataset), holdout)
        keep(held_out if subset == "validation" else ~held_out, f"subset={subset!r} with holdout={holdout}")
    bounds = np.asarray(dataset.episode_starts, np.int64)
    episodes = np.flatnonzero(is_kept)
    starts, stops = bounds[episodes], bounds[episodes + 1].copy()
    if skip_last is not None:
        stops -= skip_last[episodes]
    if first_frames is not None:
        stops = np.minimum(stops, starts + first_frames)
    if kept_frames_path is not None:
        mask = kept_frames.frame_mask(dataset, kept_frames.load(kept_frames_path), kept_frames_path)
        starts, stops, episodes = _intersect(mask, starts, stops, episodes)
        left.append(f"{len(np.unique(episodes))} after kept_frames={kept_frames_path!r}")
    some = stops > starts
    if not some.any():
        raise errors.DataError(
            f"{dataset.place}: no frame is left to sample",
            expected="at least one",
            found=", ".join(left) + f", {int((stops - starts).clip(0).sum())} frames in them",
            fix="loosen the conditions of this DatasetConfig",
        )
    return FrameSelection(starts[some], stops[some], episodes[some], sample_by)


def _intersect(mask: np.ndarray, starts: np.ndarray, stops: np.ndarray, episodes: np.ndarray) -> tuple[np.ndarray, ...]:
    """The runs of `mask` inside each range."""
    inside = np.zeros(len(mask) + 1, np.int8)
    np.add.at(inside, starts, 1)
    np.add.at(inside, np.maximum(stops, starts), -1)
    selected = mask & (np.cumsum(inside[:-1], dtype=np.int8) > 0)
    # A run also ends where an episode does: cut at the starts of ranges.
    edges = np.diff(np.concatenate([[False], selected, [False]]).astype(np.int8))
    cuts = starts[(starts > 0) & (starts < len(mask))]
    cuts = cuts[selected[cuts] & selected[cuts - 1]]
    begins = np.union1d(np.flatnonzero(edges == 1), cuts)
    ends = np.union1d(np.flatnonzero(edges == -1), cuts)
    return begins, ends, episodes[np.searchsorted(starts, begins, side="right") - 1]
