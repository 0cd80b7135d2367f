"""Episodes become an RLDS dataset that plain `tensorflow_datasets` reads: metadata, JPEG images, sharded records.

    with RldsWriter(root / "tabletop" / "1.0.0", features, "tabletop") as writer:
        writer.write(Episode(steps={"observation/front": images, "action": actions, ...}))

The dataset appears under its name only when it is complete (`partial_folder.py`). An interrupted write may be gone on
with after its last full shard, if the writer is told what it writes (`identity`); otherwise it begins anew.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from vla_jax.core import errors
from vla_jax.data.formats import features as feature_specs
from vla_jax.data.formats import image_codec, tfrecord
from vla_jax.data.formats.example_proto import serialize_example
from vla_jax.data.formats.features import Episode, FeatureSpec
from vla_jax.data.formats.partial_folder import PartialFolder

FileFormat = Literal["array_record", "tfrecord"]


class RldsWriter:
    """Writes one dataset, any number of splits; use it as a context manager."""

    def __init__(
        self,
        folder: str | Path,
        features: tfds.features.FeaturesDict,
        dataset_name: str,
        version: str = "1.0.0",
        file_format: FileFormat = "array_record",
        *,
        description: str = "",
        metadata: Mapping[str, Any] | None = None,
        max_shard_bytes: int = 256 << 20,
        jpeg_quality: int = 95,
        identity: str | None = None,
    ):
        """`folder` will hold dataset_info.json; `metadata` is kept as JSON in metadata.json, for example the config
        the episodes were made with. With an `identity`, which must change with anything that changes what is written,
        `notes` is what the caller said before the first episode that has to be written again: see `write`.

        Raises DataError when `folder` already holds something."""
        if file_format not in ("array_record", "tfrecord"):
            raise errors.ConfigError("file_format", expected="array_record or tfrecord", found=repr(file_format))
        self._folder = PartialFolder(folder, identity)
        self._features, self._specs = features, _writable(features, dataset_name)
        self._name, self._version, self._format = dataset_name, version, file_format
        self._description, self._metadata = description, dict(metadata or {})
        self._max_shard_bytes, self._jpeg_quality = max_shard_bytes, jpeg_quality
        self._splits: dict[str, _Shards] = {}
        self.notes: Mapping[str, Any] = {}

    @property
    def folder(self) -> Path:
        return self._folder.folder

    def __enter__(self) -> "RldsWriter":
        kept = self._folder.begin()
        if kept:
            shards = self._splits[kept["split"]] = self._shards(kept["split"])
            shards.lengths, shards.num_bytes, self.notes = kept["lengths"], kept["num_bytes"], kept["notes"]
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        for shards in self._splits.values():
            shards.close()
        if error_type is None:
            self._finish()
        else:
            self._folder.abandon()

    def write(self, episode: Episode, split: str = "train", notes: Mapping[str, Any] | None = None) -> None:
        """Append one episode. `notes`, JSON values, are what the caller has to know to go on with this one. Raises
        DataError when it does not fit the features."""
        if split not in self._splits:
            self._splits[split] = self._shards(split)
        shards = self._splits[split]
        place = f"{self._name}, split {split}, episode {shards.num_episodes}"
        payload = serialize_example(_flatten(episode, self._specs, place, self._jpeg_quality))
        if shards.is_full(payload):
            shards.close()
            if len(self._splits) == 1:  # the shards of others are open
                kept = {"split": split, "lengths": shards.lengths, "num_bytes": shards.num_bytes, "notes": notes or {}}
                self._folder.keep(kept)
        shards.write(payload)

    def _shards(self, split: str) -> "_Shards":
        return _Shards(self._folder.path, split, self._format, self._max_shard_bytes)

    def _finish(self) -> None:
        splits = []
        for split, shards in self._splits.items():
            for i, path in enumerate(shards.paths):
                path.rename(path.with_name(f"{self._name}-{split}.{self._format}-{i:05d}-of-{len(shards.paths):05d}"))
            splits.append(
                {
                    "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                    "name": split,
                    "numBytes": str(shards.num_bytes),
                    "shardLengths": [str(n) for n in shards.lengths],
                }
            )
        info = {
            "description": self._description,
            "fileFormat": self._format,
            "name": self._name,
            "splits": splits,
            "version": self._version,
        }
        partial = self._folder.path
        self._features.save_config(partial)
        if self._metadata:
            (partial / "metadata.json").write_text(json.dumps(self._metadata, indent=2, sort_keys=True))
        (partial / "dataset_info.json").write_text(json.dumps(info, indent=2))
        self._folder.complete()


class _Shards:
    """The record files of one split, closed and counted as they fill up."""

    def __init__(self, folder: Path, split: str, file_format: FileFormat, max_bytes: int):
        self._folder, self._split, self._format, self._max_bytes = folder, split, file_format, max_bytes
        self.lengths: list[int] = []
        self.num_bytes = 0
        self._shard_bytes = 0
        self._file: BinaryIO | array_record_module.ArrayRecordWriter | None = None

    @property
    def num_episodes(self) -> int:
        return sum(self.lengths)

    @property
    def paths(self) -> list[Path]:
        return [self._folder / f"{self._split}-{i:05d}.partial" for i in range(len(self.lengths))]

    def is_full(self, payload: bytes) -> bool:
        """Whether this goes into the next shard."""
        is_open = self._file is not None
        return is_open and self._shard_bytes + len(payload) > self._max_bytes > 0 < self._shard_bytes

    def write(self, payload: bytes) -> None:
        if self._file is None:
            self._open()
        if self._format == "tfrecord":
            tfrecord.write_record(self._file, payload)
        else:
            self._file.write(payload)
        self.lengths[-1] += 1
        self._shard_bytes += len(payload)
        self.num_bytes += len(payload)

    def _open(self) -> None:
        self.lengths.append(0)
        self._shard_bytes = 0
        path = self.paths[-1]
        if self._format == "tfrecord":
            self._file = path.open("wb")
        else:
            # One record per chunk, so that an episode is one read; JPEG does not shrink further.
            self._file = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _writable(features: tfds.features.FeaturesDict, name: str) -> dict[str, FeatureSpec]:
    schema = feature_specs.schema_of(features)
    refused = dict(schema.unusable)
    for spec in schema.specs.values():
        if spec.encoding != "none":
            refused[spec.name] = "encoded tensors are not written"
        elif spec.is_ragged:
            refused[spec.name] = "sequences within steps are not written"
    if schema.one_record_per_step:
        refused = {"steps": "single steps are not written, only episodes"}
    if refused:
        raise errors.DataError(
            f"{name}: features that cannot be written",
            found="; ".join(f"{key}: {reason}" for key, reason in refused.items()),
            fix="declare tensors of fixed shape inside a nested dataset called steps, or drop these features",
        )
    return dict(schema.specs)


def _flatten(episode: Episode, specs: Mapping[str, FeatureSpec], place: str, jpeg_quality: int) -> dict[str, Any]:
    """The episode as the flat lists of an Example, checked against the features."""
    given = {**episode.steps, **episode.metadata}
    if given.keys() != specs.keys():
        raise errors.DataError(
            f"{place}: the episode does not have the features of the dataset",
            expected=", ".join(sorted(specs)),
            found=f"missing {sorted(specs.keys() - given.keys())}, unknown {sorted(given.keys() - specs.keys())}",
        )
    num_steps = next(len(given[s.name]) for s in specs.values() if s.is_step and s.kind != "text")
    if num_steps == 0:
        raise errors.DataError(f"{place}: no steps", expected="at least one")
    flat = {}
    for spec in specs.values():
        value, where = given[spec.name], f'{place}, "{spec.key}"'
        if spec.kind == "text":
            flat[spec.key] = _texts(value, num_steps if spec.is_step else 1, where)
        elif spec.kind == "image":
            flat[spec.key] = _images(value, spec, num_steps if spec.is_step else 1, where, jpeg_quality)
        else:
            flat[spec.key] = _numbers(value, spec, (num_steps,) if spec.is_step else (), where)
    return flat


def _texts(value: str | Sequence[str], count: int, where: str) -> list[bytes]:
    texts = [value] * count if isinstance(value, str) else list(value)
    if len(texts) != count:
        raise errors.DataError(where, expected=f"one text, or {count}", found=len(texts))
    return [text.encode() for text in texts]


def _images(value: Any, spec: FeatureSpec, count: int, where: str, jpeg_quality: int) -> list[bytes]:
    encoded = [
        item if isinstance(item, bytes) else image_codec.encode_jpeg(_checked_image(item, where), jpeg_quality)
        for item in value
    ]
    shapes = {image_codec.image_shape(item) for item in encoded}
    if len(encoded) != count or any(
        wanted not in (None, found) for shape in shapes for wanted, found in zip(spec.shape, shape, strict=True)
    ):
        raise errors.DataError(where, expected=f"{count} of {spec}", found=f"{len(encoded)} of {sorted(shapes)}")
    return encoded


def _checked_image(image: Any, where: str) -> image_codec.Picture:
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise errors.DataError(where, expected="uint8 [height, width, 3]", found=f"{image.dtype} {list(image.shape)}")
    return image


def _numbers(value: Any, spec: FeatureSpec, leading: tuple[int, ...], where: str) -> np.ndarray:
    array = np.asarray(value)
    wanted = np.dtype(spec.dtype)
    if array.shape != leading + spec.shape or not np.can_cast(array.dtype, wanted, "same_kind"):
        raise errors.DataError(
            where, expected=f"{wanted} {list(leading + spec.shape)}", found=f"{array.dtype} {list(array.shape)}"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise errors.DataError(where, expected="finite numbers", found="NaN or infinity")
    return array.astype(spec.stored_dtype)
