"""Which episodes train and which validate: a stable hash of an episode's key decides, so the answer never changes.

Episodes may be added, damaged ones left out and files read in another order: an episode stays on its side. Raising the
held-out fraction moves episodes from training to validation only.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool

from vla_jax.data.formats.episodes import EpisodeDataset
from vla_jax.data.samples import kept_frames

Subset = Literal["train", "validation"]


def is_held_out(keys: Sequence[str], fraction: float) -> Bool[np.ndarray, "episodes"]:
    """Whether the first 64 bits of the SHA-256 of a key, as a number in [0, 1), are below `fraction`."""
    return np.array([_place(key) < fraction for key in keys], bool)


def episode_keys(dataset: EpisodeDataset) -> tuple[str, ...]:
    """The recorded name of every episode where the set has one, else its file (without folders) and its place in it."""
    if any(name in dataset.specs for name in kept_frames.KEY_FEATURES):
        return kept_frames.episode_keys(dataset)
    starts = dataset.episode_starts[:-1]
    return tuple(re.sub(r"^.*[/\\]", "", dataset.describe_frame(int(start))) for start in starts)


def _place(key: str) -> float:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2.0**64
