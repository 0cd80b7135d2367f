"""Episodes and the features of an RLDS dataset: what `features.json` says, as a flat table of names.

TFDS nests features; the serialized Example flattens them, so `steps/observation/image` is one list over the steps. Here
a step feature is called by what follows `steps/`, and an episode feature keeps its whole name.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool, Float32

from vla_jax.core import errors

_STEPS = "steps/"


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """One feature of a step or of an episode."""

    name: str  # "observation/front", "action", "episode_metadata/file_path"
    kind: Literal["image", "text", "tensor"]
    shape: tuple[int | None, ...]  # of one step; () for text
    dtype: str  # as features.json has it; float64 is stored in 32 bits, text is "object"
    is_step: bool

    @property
    def key(self) -> str:
        """The name inside the serialized Example."""
        return _STEPS + self.name if self.is_step else self.name

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


def episode_features(
    cameras: Mapping[str, tuple[int, int]],
    state_dim: int,
    action_dim: int,
    metadata: Mapping[str, tfds.features.FeatureConnector] | None = None,
) -> tfds.features.FeaturesDict:
    """The RLDS layout of a manipulation episode: `cameras` are (height, width) by name, images are JPEG."""
    images = {
        name: tfds.features.Image(shape=(*size, 3), dtype=np.uint8, encoding_format="jpeg")
        for name, size in cameras.items()
    }
    step = {
        "observation": {**images, "state": tfds.features.Tensor(shape=(state_dim,), dtype=np.float32)},
        "action": tfds.features.Tensor(shape=(action_dim,), dtype=np.float32),
        "language_instruction": tfds.features.Text(),
        "reward": tfds.features.Scalar(dtype=np.float32),
        "discount": tfds.features.Scalar(dtype=np.float32),
        "is_first": tfds.features.Scalar(dtype=np.bool_),
        "is_last": tfds.features.Scalar(dtype=np.bool_),
        "is_terminal": tfds.features.Scalar(dtype=np.bool_),
    }
    features = {"steps": tfds.features.Dataset(step)}
    if metadata:
        features["episode_metadata"] = dict(metadata)
    return tfds.features.FeaturesDict(features)


def demonstration_flags(num_steps: int) -> dict[str, Float32[np.ndarray, "t"] | Bool[np.ndarray, "t"]]:
    """The reward, discount and flags of a successful demonstration: 1 at its last step, which ends the task."""
    steps = np.arange(num_steps)
    is_last = steps == num_steps - 1
    return {
        "reward": is_last.astype(np.float32),
        "discount": (~is_last).astype(np.float32),
        "is_first": steps == 0,
        "is_last": is_last,
        "is_terminal": is_last,
    }


def load_specs(folder: Path) -> dict[str, FeatureSpec]:
    """The flat features of the dataset in `folder`, by name."""
    if not (folder / "features.json").is_file():
        raise errors.DataError(
            f"{folder}: not an RLDS dataset",
            expected="features.json and dataset_info.json in this folder",
            found=", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "no such folder",
            fix="give the version folder, for example <root>/<dataset>/1.0.0",
        )
    return flat_specs(tfds.features.FeaturesDict.from_config(str(folder)))


def flat_specs(features: tfds.features.FeaturesDict) -> dict[str, FeatureSpec]:
    """Every image, text and dense tensor of a features tree. Others (ragged, encoded) are left out: reading one fails
    as a missing key does, and the rest of the dataset stays usable."""
    if "steps" not in features or not isinstance(features["steps"], tfds.features.Dataset):
        raise errors.DataError(
            "the features describe no episodes",
            expected='a nested dataset called "steps"',
            found=", ".join(sorted(features)),
            fix="convert the set to RLDS: one record per episode",
        )
    specs = list(_walk(features["steps"].feature, "", True))
    specs += _walk(features, "", False)  # does not enter the nested dataset
    return {spec.name: spec for spec in sorted(specs, key=lambda spec: (not spec.is_step, spec.name))}


def _walk(feature: tfds.features.FeatureConnector, name: str, is_step: bool):
    if isinstance(feature, tfds.features.FeaturesDict):
        for child in feature:
            yield from _walk(feature[child], f"{name}/{child}" if name else child, is_step)
    elif isinstance(feature, tfds.features.Image):
        yield FeatureSpec(name, "image", tuple(feature.shape), "uint8", is_step)
    elif isinstance(feature, tfds.features.Text):
        yield FeatureSpec(name, "text", (), "object", is_step)
    elif isinstance(feature, tfds.features.Tensor):  # Scalar is one too
        dtype = np.dtype(feature.np_dtype)
        if dtype.kind == "O" and feature.shape == ():
            yield FeatureSpec(name, "text", (), "object", is_step)
        elif dtype.kind in "iufb" and None not in feature.shape:
            yield FeatureSpec(name, "tensor", tuple(feature.shape), dtype.name, is_step)
