"""The part of an `EpisodeDataset` that only looks things up in an index: the same for every format."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from jaxtyping import Int64

from vla_jax.data.formats.features import FeatureSpec


class Index(Protocol):
    """What an index of any format holds: columns end to end, and where episodes begin."""

    episode_starts: Int64[np.ndarray, "episodes_plus_one"]
    columns: Mapping[str, np.ndarray]
    texts: Mapping[str, tuple[str, ...]]
    text_ids: Mapping[str, np.ndarray]


class IndexedEpisodes:
    """To be inherited from, by a class that sets `_index` and `specs`; see `EpisodeDataset` for what it means."""

    _index: Index
    specs: Mapping[str, FeatureSpec]

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self._index.episode_starts) - 1

    @property
    def num_frames(self) -> int:
        return int(self._index.episode_starts[-1])

    @property
    def episode_starts(self) -> Int64[np.ndarray, "episodes_plus_one"]:
        """First frame of every episode, then the number of frames."""
        return self._index.episode_starts

    @property
    def columns(self) -> Mapping[str, np.ndarray]:
        """Tensors by name: `[frames, ...]` for step features, `[episodes, ...]` for episode features."""
        return self._index.columns

    def texts(self, name: str) -> tuple[str, ...]:
        """The distinct strings of a text feature, in order of first appearance."""
        return self._index.texts[name]

    def text_ids(self, name: str) -> np.ndarray:
        """For every frame (or episode) its row in `texts(name)`."""
        return self._index.text_ids[name]

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(name for name, spec in self.specs.items() if spec.kind == "image")

    def episode_of(self, frames: Int64[np.ndarray, "..."]) -> Int64[np.ndarray, "..."]:
        return np.searchsorted(self.episode_starts, frames, side="right") - 1
