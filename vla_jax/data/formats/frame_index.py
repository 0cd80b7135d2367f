"""Where every frame of an RLDS split lies, and its low-dimensional columns, built once and kept as .npy files.

Building walks the wire format of every record (and checks its checksum); afterwards one frame costs one slice per
camera. The index lives in a cache folder, never beside the data, under a fingerprint of the files (path, size,
modification time), the features and the columns asked for.
"""

import dataclasses
import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from array_record.python import array_record_module
from jaxtyping import Int32, Int64

from vla_jax.core import errors
from vla_jax.data.formats import tfrecord
from vla_jax.data.formats.example_proto import ByteSpans, Value, parse_example
from vla_jax.data.formats.features import FeatureSpec

_VERSION = 1  # raise it when the arrays below change their meaning


@dataclasses.dataclass(frozen=True)
class Shard:
    """One record file and the number of episodes dataset_info.json promises in it."""

    path: Path
    num_episodes: int
    file_format: str


@dataclasses.dataclass(frozen=True)
class FrameIndex:
    """Arrays over the frames (axis 0, episodes one after the other) or over the episodes of a split."""

    episode_starts: Int64[np.ndarray, "episodes_plus_one"]  # frame numbers; the last entry is the number of frames
    episode_shard: Int32[np.ndarray, "episodes"]
    episode_record: Int32[np.ndarray, "episodes"]  # within the shard
    columns: dict[str, np.ndarray]  # per frame [frames, ...], or per episode [episodes, ...]
    text_ids: dict[str, Int32[np.ndarray, "frames"]]  # rows of `texts`
    texts: dict[str, tuple[str, ...]]
    image_offsets: dict[str, Int64[np.ndarray, "frames"]]  # in the shard file (TFRecord) or the record (ArrayRecord)
    image_lengths: dict[str, Int32[np.ndarray, "frames"]]


def load_or_build(shards: list[Shard], specs: Mapping[str, FeatureSpec], cache_folder: Path) -> FrameIndex:
    """The index of these shards, restricted to `specs`. Raises DataError on damaged shards or missing features."""
    folder = cache_folder / _fingerprint(shards, specs)
    if not (folder / "index.json").is_file():
        index = build(shards, specs)
        _save(index, folder)
    return _load(folder)  # memory-mapped either way: a large index is paged in as it is used


def build(shards: list[Shard], specs: Mapping[str, FeatureSpec]) -> FrameIndex:
    collector = _Collector(specs)
    for number, shard in enumerate(shards):
        record = -1
        for record, (buffer, start, stop) in enumerate(_records(shard)):
            place = f"{shard.path}, episode {record}"
            try:
                example = parse_example(buffer, start, stop)
            except ValueError as error:
                raise errors.DataError(
                    f"{place}: the record is not a tf.train.Example",
                    found=str(error),
                    fix="check that this is RLDS in TFRecord or ArrayRecord form",
                ) from error
            collector.add(example, buffer, number, record, place)
        if record + 1 != shard.num_episodes:
            raise errors.DataError(
                f"{shard.path}: the shard is incomplete",
                expected=f"{shard.num_episodes} episodes, says dataset_info.json",
                found=f"{record + 1}",
                fix="copy or download this file again",
            )
    return collector.finish()


def open_buffer(path: Path) -> mmap.mmap | bytes:
    """The whole file as a read-only memory map (an empty file cannot be mapped)."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""


def open_array_record(path: Path) -> array_record_module.ArrayRecordReader:
    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        if not reader.ok():
            raise RuntimeError("the reader reports an error")
    except (RuntimeError, ValueError) as error:
        raise _damaged(path, error) from error
    return reader


def read_array_record(reader: array_record_module.ArrayRecordReader, record: int, path: Path) -> bytes:
    try:
        return reader.read([record])[0]
    except (RuntimeError, ValueError, IndexError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> errors.DataError:
    return errors.DataError(
        f"{path}: the file is truncated or corrupt",
        expected="a readable ArrayRecord file",
        found=str(error),
        fix="copy or download this file again and compare its size with the source",
    )


def _records(shard: Shard) -> Iterator[tuple[mmap.mmap | bytes, int, int]]:
    if shard.file_format == "tfrecord":
        buffer = open_buffer(shard.path)
        for start, stop in tfrecord.record_spans(buffer, shard.path):
            yield buffer, start, stop
    else:
        reader = open_array_record(shard.path)
        for record in range(reader.num_records()):
            payload = read_array_record(reader, record, shard.path)
            yield payload, 0, len(payload)


class _Collector:
    """Appends episodes; `finish` concatenates."""

    def __init__(self, specs: Mapping[str, FeatureSpec]):
        self._specs = specs
        self._lengths: list[int] = []
        self._shard: list[int] = []
        self._record: list[int] = []
        self._parts: dict[str, list[np.ndarray]] = {name: [] for name in specs}
        self._spans: dict[str, list[ByteSpans]] = {name: [] for name, s in specs.items() if s.kind == "image"}
        self._texts: dict[str, dict[str, int]] = {name: {} for name, s in specs.items() if s.kind == "text"}

    def add(self, example: Mapping[str, Value], buffer, shard: int, record: int, place: str) -> None:
        num_steps = None
        for name, spec in self._specs.items():
            if spec.key not in example:
                raise _missing_key(place, spec, example)
            value = example[spec.key]
            count = 1 if not spec.is_step else num_steps
            got = _count(value, spec)
            if got is None or (count is not None and got != count):
                raise errors.DataError(
                    f'{place}: "{spec.key}" does not fit the features',
                    expected=f"{spec} for {count if count is not None else 'each of the'} steps",
                    found=_describe(value),
                    fix="repair features.json or rebuild the set",
                )
            if spec.is_step:
                num_steps = got
            self._append(name, spec, value, buffer)
        if not num_steps:
            raise errors.DataError(f"{place}: no steps", expected="at least one", fix="drop the episode")
        self._lengths.append(num_steps)
        self._shard.append(shard)
        self._record.append(record)

    def _append(self, name: str, spec: FeatureSpec, value: Value, buffer) -> None:
        if spec.kind == "image":
            self._spans[name].append(value)
        elif spec.kind == "text":
            table = self._texts[name]
            strings = [bytes(buffer[o : o + n]).decode() for o, n in zip(value.offsets, value.lengths, strict=True)]
            self._parts[name].append(np.array([table.setdefault(s, len(table)) for s in strings], np.int32))
        else:
            self._parts[name].append(value.reshape(-1, *spec.shape).astype(spec.stored_dtype))

    def finish(self) -> FrameIndex:
        tensors = [name for name, spec in self._specs.items() if spec.kind == "tensor"]
        return FrameIndex(
            episode_starts=np.concatenate([[0], np.cumsum(self._lengths)]).astype(np.int64),
            episode_shard=np.array(self._shard, np.int32),
            episode_record=np.array(self._record, np.int32),
            columns={name: _join(self._parts[name]) for name in tensors},
            text_ids={name: _join(self._parts[name]) for name in self._texts},
            texts={name: tuple(table) for name, table in self._texts.items()},
            image_offsets={name: _join([s.offsets for s in spans]) for name, spans in self._spans.items()},
            image_lengths={
                name: _join([s.lengths.astype(np.int32) for s in spans]) for name, spans in self._spans.items()
            },
        )


def _join(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros((0,))


def _count(value: Value, spec: FeatureSpec) -> int | None:
    """For how many steps this value suffices, or None when it is of another kind than the spec."""
    if spec.kind in ("image", "text"):
        return len(value.offsets) if isinstance(value, ByteSpans) else None
    if not isinstance(value, np.ndarray) or (value.dtype.kind == "f") != (np.dtype(spec.dtype).kind == "f"):
        return None
    count, rest = divmod(value.size, int(np.prod(spec.shape)))
    return count if rest == 0 else None


def _describe(value: Value) -> str:
    if value is None:
        return "an empty feature"
    return f"{len(value.offsets)} byte strings" if isinstance(value, ByteSpans) else f"{value.size} {value.dtype}"


def _missing_key(place: str, spec: FeatureSpec, example: Mapping[str, Value]) -> errors.DataError:
    return errors.DataError(
        f'{place}: no key "{spec.key}"',
        expected=f"{spec}, promised by features.json",
        found=", ".join(sorted(example)),
        fix="rebuild the set, or read other columns",
    )


def _fingerprint(shards: list[Shard], specs: Mapping[str, FeatureSpec]) -> str:
    files = [(str(s.path.resolve()), s.path.stat().st_size, s.path.stat().st_mtime_ns, s.num_episodes) for s in shards]
    text = json.dumps([_VERSION, files, [dataclasses.astuple(specs[name]) for name in sorted(specs)]])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _save(index: FrameIndex, folder: Path) -> None:
    """Arrays as numbered .npy files; the folder gets its name only when it is complete."""
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.incomplete")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    names: dict[str, dict[str, str] | str] = {}
    for field in dataclasses.fields(FrameIndex):
        value = getattr(index, field.name)
        if field.name == "texts":
            continue
        if isinstance(value, dict):
            names[field.name] = {name: f"{field.name}-{i:03d}.npy" for i, name in enumerate(value)}
            for name, file in names[field.name].items():
                np.save(partial / file, value[name])
        else:
            names[field.name] = f"{field.name}.npy"
            np.save(partial / names[field.name], value)
    (partial / "index.json").write_text(json.dumps({"arrays": names, "texts": index.texts}))
    try:
        os.replace(partial, folder)
    except OSError:  # another process finished the same index first; its content is equal
        if not (folder / "index.json").is_file():
            raise
        shutil.rmtree(partial)


def _load(folder: Path) -> FrameIndex:
    stored = json.loads((folder / "index.json").read_text())

    def load(file: str) -> np.ndarray:
        return np.load(folder / file, mmap_mode="r")

    arrays = {
        field: {name: load(file) for name, file in files.items()} if isinstance(files, dict) else load(files)
        for field, files in stored["arrays"].items()
    }
    return FrameIndex(**arrays, texts={name: tuple(texts) for name, texts in stored["texts"].items()})
