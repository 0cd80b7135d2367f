"""Episodes and the features of an RLDS dataset: what `features.json` says, as a flat table of names.

TFDS nests features; the serialized Example flattens them, so `steps/observation/image` is one list over the steps. Here
a step feature is called by what follows `steps/`, and an episode feature keeps its whole name.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool, Float32

from vla_jax.core import errors
from vla_jax.data.formats.specs import RAGGED
from vla_jax.data.formats.specs import Episode as Episode
from vla_jax.data.formats.specs import FeatureSpec as FeatureSpec


@dataclasses.dataclass(frozen=True)
class Schema:
    """What features.json says."""

    specs: Mapping[str, FeatureSpec]  # step features first, each group by name
    unusable: Mapping[str, str]  # features that are left out, and why
    one_record_per_step: bool  # instead of one per episode; `is_first` then says where episodes begin


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
    """The usable features of the dataset in `folder`, by name."""
    return dict(load_schema(folder).specs)


def load_schema(folder: Path) -> Schema:
    """What features.json in `folder` says. Raises DataError when there is none, or when it describes no episodes."""
    if not (folder / "features.json").is_file():
        raise errors.DataError(
            f"{folder}: not an RLDS dataset",
            expected="features.json and dataset_info.json in this folder",
            found=", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "no such folder",
            fix="give the version folder, for example <root>/<dataset>/1.0.0",
        )
    return schema_of(tfds.features.FeaturesDict.from_config(str(folder)))


def schema_of(features: tfds.features.FeaturesDict) -> Schema:
    """A features tree as a flat table. Raises DataError when it is neither of episodes nor of steps.

    Features without a fixed shape (ragged ones) and pictures that are not uint8 are listed as unusable; the
    rest of the dataset stays usable.
    """
    steps = dict(features).get("steps")
    if isinstance(steps, tfds.features.Sequence) and isinstance(steps.feature, tfds.features.FeaturesDict):
        found = [*_walk(steps.feature, _Place("", True, "steps/", 1)), *_walk(features, _Place("", False, "", 0))]
    elif "is_first" in features and "is_last" in features:
        found = list(_walk(features, _Place("", True, "", 0)))
    else:
        raise errors.DataError(
            "the features describe no episodes",
            expected='a nested dataset called "steps", or steps with "is_first" and "is_last"',
            found=", ".join(sorted(features)),
            fix="convert the set to RLDS: one record per episode",
        )
    specs = sorted(
        (spec for spec in found if isinstance(spec, FeatureSpec)), key=lambda spec: (not spec.is_step, spec.name)
    )
    return Schema(
        specs={spec.name: spec for spec in specs},
        unusable={item.name: item.reason for item in found if isinstance(item, _Unusable)},
        one_record_per_step=steps is None,
    )


@dataclasses.dataclass(frozen=True)
class _Unusable:
    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where in the tree we are."""

    name: str
    is_step: bool
    prefix: str  # of names inside the Example
    rank: int  # sequences around this feature
    lengths: tuple[int | None, ...] = ()  # of those inside the step

    def child(self, name: str) -> "_Place":
        return dataclasses.replace(self, name=f"{self.name}/{name}" if self.name else name)

    def inside(self, length: int | None) -> "_Place":
        return dataclasses.replace(self, rank=self.rank + 1, lengths=(*self.lengths, length))


def _walk(feature: tfds.features.FeatureConnector, place: _Place) -> Iterator[FeatureSpec | _Unusable]:
    if isinstance(feature, tfds.features.FeaturesDict):
        for child in feature:
            if place.name or child != "steps" or not isinstance(feature[child], tfds.features.Sequence):
                yield from _walk(feature[child], place.child(child))
    elif isinstance(feature, tfds.features.Sequence):
        length = feature.to_json_content().length  # -1 says that it varies
        yield from _walk(feature.feature, place.inside(None if length < 0 else length))
    elif isinstance(feature, tfds.features.Image):
        yield _image(feature, place)
    elif isinstance(feature, tfds.features.Tensor):  # Scalar, Text and ClassLabel are, too
        yield _tensor(feature, place)
    else:
        yield _Unusable(place.name, f"{type(feature).__name__} is a kind of feature that is not read")


def _image(feature: tfds.features.Image, place: _Place) -> FeatureSpec | _Unusable:
    if not place.is_step or place.lengths:
        return _Unusable(place.name, "only pictures of a step, one per camera, are read")
    if np.dtype(feature.np_dtype) != np.uint8:
        return _Unusable(place.name, f"pictures are uint8, and these are {np.dtype(feature.np_dtype).name}")
    return FeatureSpec(place.name, "image", tuple(feature.shape), "uint8", True, stored_as=place.prefix + place.name)


def _tensor(feature: tfds.features.Tensor, place: _Place) -> FeatureSpec | _Unusable:
    shape, dtype = (*place.lengths, *feature.shape), np.dtype(feature.np_dtype)
    if None in shape:
        return _Unusable(place.name, f"its shape {list(shape)} varies, and a column has one shape")
    if dtype.kind not in "iufbO":
        return _Unusable(place.name, f"{dtype.name} is not read")
    is_plain = type(feature) in (tfds.features.Tensor, tfds.features.Scalar)  # only these have an encoding
    return FeatureSpec(
        place.name,
        "text" if dtype.kind == "O" else "tensor",
        shape,
        "object" if dtype.kind == "O" else dtype.name,
        place.is_step,
        optional=bool(feature.get_tensor_info().optional),
        encoding=(feature.to_json_content().encoding or "none") if is_plain else "none",
        stored_as=place.prefix + place.name + (RAGGED if place.rank > 1 else ""),
    )
