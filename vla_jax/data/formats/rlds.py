"""RLDS datasets read in place, TFRecord and ArrayRecord, without TensorFlow.

dataset = RldsDataset("data/tabletop/1.0.0", split="train")
dataset.columns["action"]                       # float32 [frames, a], all episodes one after the other
dataset.image(frame=12, name="observation/front")
"""

import collections
import dataclasses
import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from vla_jax.core import errors
from vla_jax.data.formats import features, frame_index, image_codec
from vla_jax.data.formats.faults import SKIP_AND_COUNT, Fault, FaultLog, FaultPolicy
from vla_jax.data.formats.features import Episode, FeatureSpec
from vla_jax.data.formats.frame_index import Shard

_RECORDS_KEPT = 16  # whole ArrayRecord episodes in memory: neighbours of a frame are often asked for next


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What dataset_info.json and metadata.json say."""

    name: str
    version: str
    description: str
    file_format: str
    splits: Mapping[str, tuple[Shard, ...]]
    metadata: Mapping[str, Any]


class RldsDataset:
    """One split of a dataset: columns in memory maps, images decoded on demand. Safe to share between threads."""

    def __init__(
        self,
        folder: str | Path,
        split: str = "train",
        *,
        names: Sequence[str] | None = None,
        cache_folder: str | Path | None = None,
        faults: FaultPolicy = SKIP_AND_COUNT,
    ):
        """`names` restricts the index to some features (a few of many keeps the index of a large set small). The index
        goes to `cache_folder`, by default `$XDG_CACHE_HOME/vla_jax/rlds`. Raises DataError."""
        self.folder, self.split = Path(folder), split
        self.faults = FaultLog(faults)
        self.info = load_info(self.folder)
        if split not in self.info.splits:
            raise errors.DataError(f"{self.folder}: no split {split!r}", fix=errors.closest(split, self.info.splits))
        self.specs = _select(features.load_specs(self.folder), names, self.place)
        self._shards = list(self.info.splits[split])
        _require_files(self._shards)
        cache = Path(cache_folder) if cache_folder else default_cache_folder()
        self._index = frame_index.load_or_build(self._shards, self.specs, cache)
        if len(self) == 0:
            raise errors.DataError(f"{self.place}: no episodes", expected="at least one")
        self._lock = threading.Lock()
        self._buffers: dict[int, Any] = {}  # shard -> memory map or ArrayRecord reader
        self._records: collections.OrderedDict[tuple[int, int], bytes] = collections.OrderedDict()

    @property
    def place(self) -> str:
        return f"{self.info.name}/{self.info.version}, split {self.split}"

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

    def describe_frame(self, frame: int) -> str:
        """The place of a frame, for an error: shard file, episode within it, step within that."""
        episode = int(self.episode_of(np.asarray(frame)))
        path = self._shards[int(self._index.episode_shard[episode])].path
        step = frame - int(self.episode_starts[episode])
        return f"{path}, episode {int(self._index.episode_record[episode])}, step {step}"

    def image_bytes(self, frame: int, name: str) -> bytes:
        """The picture as it is stored, JPEG or PNG."""
        episode = int(self.episode_of(np.asarray(frame)))
        offset, length = int(self._index.image_offsets[name][frame]), int(self._index.image_lengths[name][frame])
        return self._buffer(episode)[offset : offset + length]

    def image(self, frame: int, name: str) -> image_codec.Picture:
        """A decoded picture. Raises DataError when its bytes are damaged."""
        try:
            return image_codec.decode(self.image_bytes(frame, name))
        except ValueError as error:
            raise errors.DataError(
                f'{self.describe_frame(frame)}: "steps/{name}" does not decode',
                expected=str(self.specs[name]),
                found=str(error),
                fix="rebuild the set, or drop this episode",
            ) from error

    def image_shape(self, name: str) -> tuple[int, int, int]:
        """Height, width and channels of a camera's stored pictures, taking the first as the measure."""
        return self.image(0, name).shape

    def read_images(
        self, frames: Int64[np.ndarray, "n"], name: str, out: UInt8[np.ndarray, "n height width 3"]
    ) -> Bool[np.ndarray, "n"]:
        """Decode the pictures of these frames into the rows of `out`; False where one is damaged (the fault is logged,
        the row is black). Raises DataError when `faults` does not tolerate it."""
        ok = np.ones(len(frames), bool)
        for row, frame in enumerate(frames):
            try:
                image_codec.decode(self.image_bytes(int(frame), name), out[row])
            except ValueError as error:
                out[row], ok[row] = 0, False
                self.faults.add(Fault("bad image", f'{self.describe_frame(int(frame))}, "{name}"', str(error)))
        return ok

    def episode(self, i: int) -> Episode:
        """Episode `i` with every indexed feature, images decoded, texts as strings."""
        if not 0 <= i < len(self):
            raise IndexError(f"episode {i} of {len(self)}")
        start, stop = map(int, self.episode_starts[i : i + 2])
        steps, metadata = {}, {}
        for name, spec in self.specs.items():
            rows = slice(start, stop) if spec.is_step else slice(i, i + 1)
            if spec.kind == "image":
                value = np.stack([self.image(frame, name) for frame in range(rows.start, rows.stop)])
            elif spec.kind == "text":
                value = [self.texts(name)[k] for k in self.text_ids(name)[rows]]
            else:
                value = np.array(self.columns[name][rows])
            if spec.is_step:
                steps[name] = value
            else:
                metadata[name] = value[0]
        return Episode(steps, metadata)

    def _buffer(self, episode: int) -> Any:
        """What the image places of an episode point into: its shard file, or its own record."""
        shard = int(self._index.episode_shard[episode])
        path = self._shards[shard].path
        with self._lock:
            if self._shards[shard].file_format == "tfrecord":
                if shard not in self._buffers:
                    self._buffers[shard] = frame_index.open_buffer(path)
                return self._buffers[shard]
            key = (shard, int(self._index.episode_record[episode]))
            if key not in self._records:
                if shard not in self._buffers:
                    self._buffers[shard] = frame_index.open_array_record(path)
                self._records[key] = frame_index.read_array_record(self._buffers[shard], key[1], path)
                if len(self._records) > _RECORDS_KEPT:
                    self._records.popitem(last=False)
            self._records.move_to_end(key)
            return self._records[key]


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


def _require_files(shards: Sequence[Shard]) -> None:
    missing = [shard.path for shard in shards if not shard.path.is_file()]
    if missing:
        raise errors.DataError(
            f"{missing[0]}: the shard is missing",
            expected=f"{len(shards)} shards, says dataset_info.json",
            found=f"{len(shards) - len(missing)} of them",
            fix="copy or download the missing files",
        )


def _select(specs: Mapping[str, FeatureSpec], names: Sequence[str] | None, place: str) -> dict[str, FeatureSpec]:
    if names is None:
        return dict(specs)
    for name in names:
        if name not in specs:
            raise errors.DataError(
                f'{place}: no key "{name}"', found=", ".join(sorted(specs)), fix=errors.closest(name, specs)
            )
    return {name: specs[name] for name in dict.fromkeys(names)}
