"""Record files, TFRecord and ArrayRecord: all records of one in turn, or any piece of any record at random."""

import collections
import dataclasses
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from array_record.python import array_record_module
from jaxtyping import Int32, Int64

from vla_jax.data.formats import riegeli_blocks, tfrecord
from vla_jax.data.formats.faults import Fault

FileFormat = Literal["array_record", "tfrecord"]
_OPEN_FILES = 256  # a process may have 1,024, and DROID has 2,048 shards
_RECORD_BYTES = 256 << 20  # whole records kept in memory: neighbours of a frame are often asked for next
UNLOCATED = -1
_RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One record file and the number of records dataset_info.json promises in it."""

    path: Path
    num_records: int
    file_format: FileFormat


@dataclasses.dataclass(frozen=True)
class RecordPlaces:
    """Where every usable record lies."""

    shard: Int32[np.ndarray, "records"]
    number: Int32[np.ndarray, "records"]  # within the shard
    start: Int64[np.ndarray, "records"]  # of the payload in the file, in bytes; UNLOCATED where it is compressed
    length: Int64[np.ndarray, "records"]  # of the payload


def scan(shard: Shard) -> Iterator[tfrecord.Record | Fault]:
    """Every readable record of a shard in order, and a Fault for each damage met. Checksums are verified."""
    seen = 0
    faulty = False
    try:
        records = _scan_tfrecord(shard.path) if shard.file_format == "tfrecord" else _scan_array_record(shard.path)
        for record in records:
            seen += 1
            if record.damage is None:
                yield record
                del record  # before the next is read: see tfrecord.scan
                continue
            faulty = True
            cut = record.damage.kind == "truncated shard"
            place = str(shard.path) if cut else f"{shard.path}, record {record.number}"
            yield Fault(record.damage.kind, place, f"{record.damage.found} where {record.damage.expected} belongs")
    except FileNotFoundError:
        yield missing(shard.path)
        return
    except OSError as error:
        yield Fault("truncated shard", str(shard.path), f"the file cannot be read: {error}")
        return
    if seen != shard.num_records and not faulty:
        reason = f"{seen} records where dataset_info.json promises {shard.num_records}"
        yield Fault("wrong episode count", str(shard.path), reason)


def missing(path: Path) -> Fault:
    return Fault("missing file", str(path), "dataset_info.json names this file and it is not there")


def _scan_tfrecord(path: Path) -> Iterator[tfrecord.Record]:
    with path.open("rb") as file:
        yield from tfrecord.scan(file)


def _scan_array_record(path: Path) -> Iterator[tfrecord.Record]:
    try:
        reader = _open_array_record(path)
        with path.open("rb", buffering=0) as file:
            end = 0
            for number in range(reader.num_records()):
                try:
                    payload = reader.read()  # in order: twice as fast as by number
                except (RuntimeError, ValueError) as error:
                    damage = tfrecord.Damage("corrupt record", "a record that fits its checksum", _first_line(error))
                    yield tfrecord.Record(number, 0, UNLOCATED, b"", damage)
                    reader = _open_array_record(path)  # one that met damage reads nothing more in order
                    reader.seek(number + 1)
                    continue
                start = riegeli_blocks.locate(file, payload, end)
                end = end if start is None else start + len(payload)
                yield tfrecord.Record(number, 0, UNLOCATED if start is None else start, payload)
                del payload  # see tfrecord.scan
    except _Unreadable as error:
        damage = tfrecord.Damage("truncated shard", "an ArrayRecord file", str(error))
        yield tfrecord.Record(0, 0, UNLOCATED, b"", damage)


class _Unreadable(Exception):
    """A file or record is damaged; the message says how. `fault` is what to log."""

    def __init__(self, reason: str, fault: Fault | None = None):
        self.fault = fault
        super().__init__(reason)


def _open_array_record(path: Path) -> array_record_module.ArrayRecordReader:
    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        reader = array_record_module.ArrayRecordReader(str(path), _RANDOM_ACCESS)
    except (RuntimeError, ValueError) as error:
        raise _Unreadable(_first_line(error)) from error
    if not reader.ok():
        raise _Unreadable("the reader reports an error: the end of the file is missing or damaged")
    return reader


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


class RecordReader:
    """Pieces of records at random, for any number of threads.

    A piece of a record that lies in its file as it is, in TFRecord or uncompressed ArrayRecord, is one read of just
    its bytes. Other records are read whole, and so are all with `verify`, which compares their checksums. Whole records
    stay in memory as long as there is room, so that asking for the pieces of one record in a row reads it once.
    """

    def __init__(self, shards: Sequence[Shard], places: RecordPlaces, verify: bool = False):
        self._shards, self._places, self._verify = shards, places, verify
        self._lock = threading.Lock()
        self._files: collections.OrderedDict[tuple[int, str], BinaryIO | array_record_module.ArrayRecordReader] = (
            collections.OrderedDict()
        )
        self._records: collections.OrderedDict[int, bytes] = collections.OrderedDict()
        self._record_bytes = 0

    def piece(self, record: int, offset: int, length: int) -> bytes | Fault:
        """Bytes `offset` to `offset + length` of the payload of a record; a Fault when they cannot be had."""
        shard = self._shards[int(self._places.shard[record])]
        try:
            if self._verify or self._places.start[record] == UNLOCATED:
                return self._whole(record)[offset : offset + length]
            return self._read(record, offset, length)
        except _Unreadable as error:
            return error.fault
        except FileNotFoundError:
            return missing(shard.path)
        except OSError as error:
            return Fault("truncated shard", str(shard.path), f"the file cannot be read: {error}")

    def _whole(self, record: int) -> bytes:
        with self._lock:
            if record in self._records:
                self._records.move_to_end(record)
                return self._records[record]
        payload = self._load(record)  # outside the lock: threads read different records at once
        with self._lock:
            if record not in self._records:
                self._records[record] = payload
                self._record_bytes += len(payload)
            while self._record_bytes > _RECORD_BYTES and len(self._records) > 1:
                self._record_bytes -= len(self._records.popitem(last=False)[1])
        return payload

    def _load(self, record: int) -> bytes:
        number, path = int(self._places.number[record]), self._path(record)
        place = f"{path}, record {number}"
        if self._shards[int(self._places.shard[record])].file_format == "tfrecord":
            length = int(self._places.length[record])
            data = self._read(record, 0, length + 4)
            if tfrecord.masked_crc(data[:length]) != int.from_bytes(data[length:], "little"):
                raise _Unreadable(place, Fault("corrupt record", place, "the payload does not fit its checksum"))
            return data[:length]
        try:
            return self._file(record, "array_record").read([number])[0]
        except (RuntimeError, ValueError, IndexError) as error:
            raise _Unreadable(place, Fault("corrupt record", place, _first_line(error))) from error

    def _read(self, record: int, offset: int, length: int) -> bytes:
        """Bytes of the file itself. Not by memory map: a file that was cut would end the process."""
        start = int(self._places.start[record])
        file = self._file(record, "bytes")  # held until the read is done, so that nobody closes it meanwhile
        if self._shards[int(self._places.shard[record])].file_format == "tfrecord":
            data = os.pread(file.fileno(), length, start + offset)
        else:
            data = riegeli_blocks.read(file, start, offset, length)
        if len(data) < length:
            path = str(self._path(record))
            reason = f"the file ends within record {int(self._places.number[record])}"
            raise _Unreadable(path, Fault("truncated shard", path, reason))
        return data

    def _file(
        self, record: int, kind: Literal["bytes", "array_record"]
    ) -> BinaryIO | array_record_module.ArrayRecordReader:
        """The open file of a record. One that makes room for others is closed when its last user lets go of it."""
        key = int(self._places.shard[record]), kind
        with self._lock:
            if key not in self._files:
                self._files[key] = self._open(*key)
                if len(self._files) > _OPEN_FILES:
                    self._files.popitem(last=False)
            self._files.move_to_end(key)
            return self._files[key]

    def _open(
        self, shard: int, kind: Literal["bytes", "array_record"]
    ) -> BinaryIO | array_record_module.ArrayRecordReader:
        path = self._shards[shard].path
        if kind == "bytes":
            return path.open("rb", buffering=0)
        try:
            return _open_array_record(path)
        except _Unreadable as error:
            raise _Unreadable(str(error), Fault("truncated shard", str(path), str(error))) from error

    def _path(self, record: int) -> Path:
        return self._shards[int(self._places.shard[record])].path
