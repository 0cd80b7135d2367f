"""RLDS datasets read in place, TFRecord and ArrayRecord, without TensorFlow.

dataset = RldsDataset("data/tabletop/1.0.0", split="train")
dataset.columns["action"]                       # float32 [frames, a], all episodes one after the other
dataset.image(frame=12, name="observation/front")
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from vla_jax.core import errors
from vla_jax.data.formats import features, frame_index, image_codec
from vla_jax.data.formats.episodes import assemble
from vla_jax.data.formats.faults import SKIP_AND_COUNT, Fault, FaultLog, FaultPolicy
from vla_jax.data.formats.features import Episode, FeatureSpec, Schema
from vla_jax.data.formats.frame_index import Progress
from vla_jax.data.formats.image_codec import Picture
from vla_jax.data.formats.index_build import Split
from vla_jax.data.formats.indexed import IndexedEpisodes
from vla_jax.data.formats.records import RecordReader, Shard

_STEP_FLAGS = ("is_first", "is_last")
_BESIDE = ".vla_jax_index"


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What dataset_info.json and metadata.json say."""

    name: str
    version: str
    description: str
    file_format: str
    splits: Mapping[str, tuple[Shard, ...]]
    metadata: Mapping[str, Any]


class RldsDataset(IndexedEpisodes):
    """One split of a dataset: columns in memory maps, images decoded on demand. Safe to share between threads.

    Records are episodes, or single steps in order. Damaged ones are left out and named in `faults`.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str = "train",
        *,
        names: Sequence[str] | None = None,
        cache_folder: str | Path | None = None,
        faults: FaultPolicy = SKIP_AND_COUNT,
        verify_on_read: bool = False,
        index_beside_data: bool = False,
        num_workers: int | None = None,
        progress: Progress | None = None,
    ):
        """Index the split, or load its index.

        `names` restricts it to some features: a few of many keep the index of a large set small. The index goes to
        `cache_folder`, by default `$XDG_CACHE_HOME/vla_jax/rlds`, or with `index_beside_data` into the folder of the
        data; one that lies there is found without being asked for. It is built in `num_workers` processes, by default
        one per core, or in this one if the set is small, and `progress` is told how many shards are done, and of how
        many. With `verify_on_read`, every record that a picture is read from is checked against its checksum, at the
        price of reading it whole.

        Raises DataError when this is no such dataset, or when `faults` does not tolerate its damage.
        """
        self.folder, self.split = Path(folder), split
        self.faults = FaultLog(faults)
        self.info = load_info(self.folder)
        if split not in self.info.splits:
            raise errors.DataError(f"{self.folder}: no split {split!r}", fix=errors.closest(split, self.info.splits))
        schema = features.load_schema(self.folder)
        self.specs = _select(schema, names, self.place)
        shards = self.info.splits[split]
        of = Split(self.place, shards, self.specs, schema.one_record_per_step)
        beside = self.folder / _BESIDE / split
        if index_beside_data or frame_index.find(of, beside):
            index_folder = beside
        else:
            cache = Path(cache_folder) if cache_folder else default_cache_folder()
            index_folder = cache / frame_index.folder_name(self.info.name, split, self.folder)
        self._index = frame_index.load_or_build(
            of, index_folder, self.faults, num_workers=num_workers, progress=progress
        )
        self._shards = shards
        self._reader = RecordReader(shards, self._index.records, verify_on_read)
        self._image_shapes: dict[str, tuple[int, int, int]] = {}

    @property
    def place(self) -> str:
        return f"{self.info.name}/{self.info.version}, split {self.split}"

    def describe_frame(self, frame: int) -> str:
        """The place of a frame, for an error: shard file, episode (or record of one step), step within that."""
        record = int(self._record_of(np.asarray(frame)))
        places = self._index.records
        place = f"{self._shards[int(places.shard[record])].path}"
        if self._index.one_record_per_step:
            return f"{place}, record {int(places.number[record])}"
        step = frame - int(self.episode_starts[record])
        return f"{place}, episode {int(places.number[record])}, step {step}"

    def image_bytes(self, frame: int, name: str) -> bytes:
        """The picture as it is stored, JPEG or PNG; empty when the record has none. Raises DataError when its file is
        damaged."""
        offset, length = int(self._index.image_offsets[name][frame]), int(self._index.image_lengths[name][frame])
        data = self._reader.piece(int(self._record_of(np.asarray(frame))), offset, length)
        if isinstance(data, Fault):
            raise errors.DataError(f"{data.place}: {data.kind}", found=data.reason, fix="copy this file again")
        return data

    def image(self, frame: int, name: str) -> Picture:
        """A decoded picture. Raises DataError when its bytes are damaged or absent."""
        try:
            return image_codec.decode(self.image_bytes(frame, name))
        except ValueError as error:
            raise errors.DataError(
                f'{self.describe_frame(frame)}: "{self.specs[name].key}" does not decode',
                expected=str(self.specs[name]),
                found=str(error),
                fix="rebuild the set, or drop this episode",
            ) from error

    def image_shape(self, name: str) -> tuple[int, int, int]:
        """Height, width and channels of a camera's decoded pictures: what features.json says, or else what the first
        picture with a readable header has. Raises DataError when there is none."""
        if name not in self._image_shapes:
            height, width, _ = self.specs[name].shape
            known = height is not None and width is not None
            self._image_shapes[name] = (height, width, 3) if known else self._first_image_shape(name)
        return self._image_shapes[name]

    def _first_image_shape(self, name: str) -> tuple[int, int, int]:
        for frame in np.flatnonzero(self._index.image_lengths[name]):
            try:
                return image_codec.image_shape(self.image_bytes(int(frame), name))
            except ValueError:
                continue  # it will be counted when somebody reads it
        raise errors.DataError(f'{self.place}: no picture of "{name}" can be read', expected="at least one")

    def read_images(self, frames: Int64[np.ndarray, "n"], name: str, out: Sequence[Picture]) -> Bool[np.ndarray, "n"]:
        """Decode the picture of each frame into that of `out`: an array of pictures, or a list of any rows of a batch.

        False where one is damaged or absent; it becomes black. Damage is logged. Raises DataError when `faults` does
        not tolerate it.
        """
        return self.read_scaled_images(frames, name, out, 1)

    def read_scaled_images(
        self, frames: Int64[np.ndarray, "n"], name: str, out: Sequence[Picture], scale: int
    ) -> Bool[np.ndarray, "n"]:
        """As `read_images`, with both sides divided by `scale` while decoding; see `image_codec.decode`."""
        # Lists, not arrays: the loop runs for every picture of a run, and an array's item costs ten times a list's.
        records = self._record_of(frames)
        order = np.argsort(records, kind="stable").tolist()  # record by record, so that whole ones are read once
        offsets, lengths = self._index.image_offsets[name][frames], self._index.image_lengths[name][frames]
        records, offsets, lengths = records.tolist(), offsets.tolist(), lengths.tolist()
        ok = [False] * len(order)
        for row in order:
            fault = None
            if lengths[row]:
                data = self._reader.piece(records[row], offsets[row], lengths[row])
                try:
                    if isinstance(data, Fault):
                        fault = data
                    else:
                        image_codec.decode(data, out[row], scale)
                        ok[row] = True
                except ValueError as error:
                    place = f'{self.describe_frame(int(frames[row]))}: "{self.specs[name].key}"'
                    fault = Fault("bad image", place, str(error))
            if not ok[row]:
                out[row][...] = 0
            if fault is not None:
                self.faults.add(fault)
        return np.array(ok, bool)

    def _record_of(self, frames: Int64[np.ndarray, "..."]) -> Int64[np.ndarray, "..."]:
        return frames if self._index.one_record_per_step else self.episode_of(frames)

    def episode(self, i: int) -> Episode:
        """Episode `i` with every indexed feature, pictures of steps decoded, texts as strings."""
        if not 0 <= i < len(self):
            raise IndexError(f"episode {i} of {len(self)}")
        frames = range(*map(int, self.episode_starts[i : i + 2]))
        cameras = [name for name in self.cameras if self.specs[name].is_step]
        pictures = {name: np.stack([self.image(frame, name) for frame in frames]) for name in cameras}
        return assemble(self, self.specs, i, pictures)


def load_info(folder: str | Path) -> DatasetInfo:
    """The metadata of the dataset in `folder`. Raises DataError when it is not a dataset."""
    folder = Path(folder)
    path = folder / "dataset_info.json"
    if not path.is_file():
        raise errors.DataError(
            f"{folder}: not a finished RLDS dataset",
            expected="dataset_info.json in this folder",
            found=", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "no such folder",
            fix="give the version folder, for example <root>/<dataset>/1.0.0, or generate the data first",
        )
    try:
        info = json.loads(path.read_text())
        file_format = info.get("fileFormat") or "tfrecord"  # absent means TFRecord in old sets
        splits = {split["name"]: _shards(folder, info["name"], file_format, split) for split in info["splits"]}
    except (json.JSONDecodeError, KeyError) as error:
        raise errors.DataError(f"{path}: not readable as dataset_info.json", found=repr(error)) from error
    if file_format not in ("tfrecord", "array_record"):
        raise errors.DataError(f"{path}: unknown file format", expected="tfrecord or array_record", found=file_format)
    metadata_path = folder / "metadata.json"
    return DatasetInfo(
        name=info["name"],
        version=info.get("version", folder.name),
        description=info.get("description", ""),
        file_format=file_format,
        splits=splits,
        metadata=json.loads(metadata_path.read_text()) if metadata_path.is_file() else {},
    )


def default_cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vla_jax" / "rlds"


def _shards(folder: Path, name: str, file_format: str, split: Mapping[str, Any]) -> tuple[Shard, ...]:
    template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    lengths = [int(n) for n in split.get("shardLengths", [])]
    return tuple(
        Shard(
            folder
            / template.format(
                DATASET=name,
                SPLIT=split["name"],
                FILEFORMAT=file_format,
                SHARD_INDEX=f"{i:05d}",
                NUM_SHARDS=f"{len(lengths):05d}",
                SHARD_X_OF_Y=f"{i:05d}-of-{len(lengths):05d}",
            ),
            length,
            file_format,
        )
        for i, length in enumerate(lengths)
    )


def _select(schema: Schema, names: Sequence[str] | None, place: str) -> dict[str, FeatureSpec]:
    if names is None:
        return dict(schema.specs)
    for name in names:
        if name in schema.unusable:
            raise errors.DataError(
                f'{place}: "{name}" cannot be read', found=schema.unusable[name], fix="read other columns"
            )
        if name not in schema.specs:
            raise errors.DataError(
                f'{place}: no key "{name}"',
                found=", ".join(sorted(schema.specs)),
                fix=errors.closest(name, schema.specs),
            )
    flags = _STEP_FLAGS if schema.one_record_per_step else ()  # they say where episodes begin and end
    return {name: schema.specs[name] for name in dict.fromkeys((*names, *flags))}
