"""What one shard gives to the index of a split: a part that stands alone, so that shards are read in any order."""

import dataclasses
import json
import os
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from vla_jax.data.formats import records
from vla_jax.data.formats.example_proto import ByteSpans, Value, parse_example
from vla_jax.data.formats.faults import Fault
from vla_jax.data.formats.records import Shard
from vla_jax.data.formats.specs import FeatureSpec
from vla_jax.data.formats.tfrecord import Record

_MAX_RECORD_BYTES = 2**32  # a protobuf message ends at 2 GiB; places within a record are 32 bits


@dataclasses.dataclass(frozen=True)
class Split:
    """What an index is of."""

    place: str  # the set and split, for messages
    shards: Sequence[Shard]
    specs: Mapping[str, FeatureSpec]
    one_record_per_step: bool


@dataclasses.dataclass(frozen=True)
class Part:
    """The usable records of one shard.

    `arrays` holds, over the records: `number` (within the shard), `start` and `length` (of the payload in the file),
    `num_steps`; and over the steps (or records, for features of an episode), by feature: `columns/<name>`,
    `text_ids/<name>` (rows of `texts`), `image_offsets/<name>` (within the record), `image_lengths/<name>`, where 0
    says that there is no picture.
    """

    arrays: Mapping[str, np.ndarray]
    texts: Mapping[str, tuple[str, ...]]
    faults: tuple[Fault, ...]
    keys: tuple[str, ...]  # of the first record that was read, for errors


def build(shard: Shard, specs: Sequence[FeatureSpec], tick: Callable[[], None] = lambda: None) -> Part:
    """Read a whole shard; damaged records become faults. `tick` is called once per record."""
    collector = _Collector(specs)
    for record in records.scan(shard):
        tick()
        if isinstance(record, Fault):
            collector.faults.append(record)
        else:
            try:
                collector.add(record)
            except ValueError as error:
                place = f"{shard.path}, record {record.number}"
                collector.faults.append(Fault("corrupt record", place, str(error)))
        del record  # before the next is read: see tfrecord.scan
    return collector.finish()


def save(part: Part, path: Path) -> None:
    """One .npz, which gets its name only when it is complete."""
    about = {
        "texts": part.texts,
        "keys": part.keys,
        "faults": [dataclasses.asdict(fault) for fault in part.faults],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.incomplete")
    with partial.open("wb") as file:
        np.savez(file, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **part.arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load(path: Path, names: Collection[str] | None = None) -> Part:
    """A stored part, with all of its arrays or with these."""
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files if names is None or name in names or name == "about"}
    about = json.loads(arrays.pop("about").tobytes())
    return Part(
        arrays=arrays,
        texts={name: tuple(texts) for name, texts in about["texts"].items()},
        faults=tuple(Fault(**fault) for fault in about["faults"]),
        keys=tuple(about["keys"]),
    )


@dataclasses.dataclass(frozen=True)
class _Absent:
    """An optional feature that a record lacks."""

    count: int  # of rows to fill


class _Collector:
    """Appends records; `finish` concatenates. A record is taken whole or not at all."""

    def __init__(self, specs: Sequence[FeatureSpec]):
        self.faults: list[Fault] = []
        self._specs = specs
        self._places: list[tuple[int, int, int, int]] = []  # number, start, length, num_steps
        self._rows: dict[str, list[np.ndarray]] = {name: [] for spec in specs for name in arrays_of(spec)}
        self._texts: dict[str, dict[bytes, int]] = {spec.name: {} for spec in specs if spec.kind == "text"}
        self._keys: tuple[str, ...] = ()

    def add(self, record: Record) -> None:
        """Raises ValueError, and takes nothing, when the record is no Example or does not fit the features."""
        payload = record.payload
        example = parse_example(payload, 0, len(payload))
        self._keys = self._keys or tuple(sorted(example))
        if len(payload) >= _MAX_RECORD_BYTES:
            raise ValueError(f"the record has {len(payload)} bytes, and a record ends at 2 GiB")
        num_steps = _num_steps(example, self._specs)
        values = [_checked(example, spec, num_steps if spec.is_step else 1) for spec in self._specs]
        rows = [self._convert(spec, value, payload) for spec, value in zip(self._specs, values, strict=True)]
        for arrays in rows:
            for name, array in arrays.items():
                self._rows[name].append(array)
        self._places.append((record.number, record.payload_start, len(payload), num_steps))

    def _convert(self, spec: FeatureSpec, value: "Value | _Absent", payload: bytes) -> dict[str, np.ndarray]:
        names = arrays_of(spec)
        if isinstance(value, _Absent):
            return dict(zip(names, self._absent(spec, value.count), strict=True))
        if spec.kind == "image":
            return dict(zip(names, (value.offsets.astype(np.uint32), value.lengths.astype(np.uint32)), strict=True))
        if spec.kind == "text":
            table = self._texts[spec.name]
            strings = (payload[o : o + n] for o, n in zip(value.offsets.tolist(), value.lengths.tolist(), strict=True))
            ids = np.array([table.setdefault(string, len(table)) for string in strings], np.int32)
            return {names[0]: ids.reshape(-1, *spec.shape)}
        if isinstance(value, ByteSpans):
            value = _decode(spec, value, payload)
        return {names[0]: value.reshape(-1, *spec.shape).astype(spec.stored_dtype)}

    def _absent(self, spec: FeatureSpec, count: int) -> tuple[np.ndarray, ...]:
        """The rows of a feature that the record lacks, as FeatureSpec documents them."""
        if spec.kind == "image":
            return np.zeros(count, np.uint32), np.zeros(count, np.uint32)
        if spec.kind == "text":
            table = self._texts[spec.name]
            return (np.full((count, *spec.shape), table.setdefault(b"", len(table)), np.int32),)
        fill = np.nan if spec.stored_dtype.kind == "f" else 0
        return (np.full((count, *spec.shape), fill, spec.stored_dtype),)

    def finish(self) -> Part:
        number, start, length, num_steps = np.array(self._places, np.int64).reshape(-1, 4).T
        arrays = {"number": number.astype(np.int32), "start": start, "length": length, "num_steps": num_steps}
        for spec in self._specs:
            for name in arrays_of(spec):
                arrays[name] = np.concatenate(self._rows[name]) if self._rows[name] else empty_rows(spec)
        return Part(
            arrays=arrays,
            texts={name: tuple(b.decode(errors="replace") for b in table) for name, table in self._texts.items()},
            faults=tuple(self.faults),
            keys=self._keys,
        )


def empty_rows(spec: FeatureSpec) -> np.ndarray:
    """No rows of the array that holds this feature."""
    if spec.kind == "image":
        return np.zeros(0, np.uint32)
    return np.zeros((0, *spec.shape), np.int32 if spec.kind == "text" else spec.stored_dtype)


def arrays_of(spec: FeatureSpec) -> tuple[str, ...]:
    """The names of the arrays that hold this feature."""
    if spec.kind == "image":
        return f"image_offsets/{spec.name}", f"image_lengths/{spec.name}"
    return (f"text_ids/{spec.name}",) if spec.kind == "text" else (f"columns/{spec.name}",)


def _num_steps(example: Mapping[str, Value], specs: Sequence[FeatureSpec]) -> int:
    """How many steps the first step feature that is there has."""
    for spec in specs:
        value = example.get(spec.key)
        if spec.is_step and value is not None:
            count = _count(value, spec)
            if count:
                return count
            raise ValueError(f'"{spec.key}" does not fit the features: {_describe(value)} where {spec} belongs')
    if not any(spec.is_step for spec in specs):
        return 0
    raise ValueError(f"no steps; the record holds {', '.join(sorted(example)) or 'nothing'}")


def _checked(example: Mapping[str, Value], spec: FeatureSpec, count: int) -> "Value | _Absent":
    """The value of a feature. Raises ValueError when it does not fit, or is absent and may not be."""
    value = example.get(spec.key)
    if value is None and (spec.optional or spec.kind == "image"):  # TFDS cannot say that an image is optional
        return _Absent(count)
    if spec.key not in example:
        raise ValueError(f'no key "{spec.key}", which features.json promises; found {", ".join(sorted(example))}')
    if _count(value, spec) != count:
        raise ValueError(
            f'"{spec.key}" does not fit the features: {_describe(value)} where {spec} for {count} steps belongs'
        )
    return value


def _count(value: Value, spec: FeatureSpec) -> int | None:
    """For how many steps this value suffices, or None when it is of another kind than the spec."""
    if spec.kind == "image" or spec.encoding != "none":
        return len(value.offsets) if isinstance(value, ByteSpans) else None
    if spec.kind == "text":
        size = len(value.offsets) if isinstance(value, ByteSpans) else None
    else:
        is_float = np.dtype(spec.dtype).kind == "f"
        size = value.size if isinstance(value, np.ndarray) and (value.dtype.kind == "f") == is_float else None
    if size is None:
        return None
    count, rest = divmod(size, max(int(np.prod(spec.shape)), 1))
    return count if rest == 0 else None


def _decode(spec: FeatureSpec, value: ByteSpans, payload: bytes) -> np.ndarray:
    """Tensors that are stored as one byte string per step."""
    rows = []
    for offset, length in zip(value.offsets.tolist(), value.lengths.tolist(), strict=True):
        data = payload[offset : offset + length]
        try:
            row = np.frombuffer(zlib.decompress(data) if spec.encoding == "zlib" else data, spec.dtype)
        except (zlib.error, ValueError) as error:
            raise ValueError(f'"{spec.key}" does not decode as {spec.encoding}: {error}') from error
        if row.size != int(np.prod(spec.shape)):
            raise ValueError(f'"{spec.key}" does not fit the features: {row.size} numbers where {spec} belongs')
        rows.append(row)
    return np.stack(rows)


def _describe(value: Value) -> str:
    if value is None:
        return "an empty feature"
    return f"{len(value.offsets)} byte strings" if isinstance(value, ByteSpans) else f"{value.size} {value.dtype}"
