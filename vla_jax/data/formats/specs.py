"""What a record holds: its features, and one episode read from it. Light to import, for worker processes."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

_STEPS = "steps/"
RAGGED = "/ragged_flat_values"


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """One feature of a step or of an episode.

    An optional feature may be absent from a record. Its rows are then NaN (floats), 0 (integers), False (bools), the
    empty string, or a picture that reads as absent: black, with False, and not a fault.
    """

    name: str  # "observation/front", "action", "episode_metadata/file_path"
    kind: Literal["image", "text", "tensor"]
    shape: tuple[int | None, ...]  # of one step; only images may have unknown sides
    dtype: str  # as features.json has it; float64 is stored in 32 bits, text is "object"
    is_step: bool
    optional: bool = False
    encoding: Literal["none", "bytes", "zlib"] = "none"  # of a tensor: numbers, or one byte string of raw numbers
    stored_as: str | None = None  # the name inside the Example where it is not that of `key`

    @property
    def key(self) -> str:
        """The name inside the serialized Example."""
        return self.stored_as or (_STEPS + self.name if self.is_step else self.name)

    @property
    def is_ragged(self) -> bool:
        """Whether TFDS stores it as values and row lengths, as it does with a sequence within a sequence."""
        return self.key.endswith(RAGGED)

    @property
    def stored_dtype(self) -> np.dtype:
        return np.dtype(np.float32 if np.dtype(self.dtype).kind == "f" else self.dtype)

    def __str__(self) -> str:
        return f"{self.kind} {self.dtype} {list(self.shape)}"


@dataclasses.dataclass(frozen=True)
class Episode:
    """One trial from start to end; step features by their flat names, with the steps along axis 0.

    Images are uint8 `t h w 3` or a sequence of encoded JPEGs; texts are one string for all steps or one per step.
    """

    steps: Mapping[str, Any]
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # "episode_metadata/file_path": ...
