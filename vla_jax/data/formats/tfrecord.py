"""TFRecord framing: length, checksum of the length, payload, checksum of the payload.

uint64 length | uint32 masked crc32c(length) | payload | uint32 masked crc32c(payload)      little endian
"""

import dataclasses
import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import google_crc32c

from vla_jax.core import errors

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")


@dataclasses.dataclass(frozen=True)
class Damage:
    """Why a record cannot be used."""

    kind: Literal["corrupt record", "truncated shard"]
    expected: str
    found: str


@dataclasses.dataclass(frozen=True)
class Record:
    """One record of a file. With `damage`, its payload is not to be trusted."""

    number: int
    start: int  # of the record, in bytes from the start of the file
    payload_start: int
    payload: bytes
    damage: Damage | None = None


def masked_crc(data: bytes) -> int:
    """crc32c rotated and offset, as TFRecord stores it, so that a checksum of checksummed data stays useful."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def write_record(file: BinaryIO, payload: bytes) -> None:
    length = struct.pack("<Q", len(payload))
    file.write(length + _FOOTER.pack(masked_crc(length)))
    file.write(payload)
    file.write(_FOOTER.pack(masked_crc(payload)))


def scan(file: BinaryIO) -> Iterator[Record]:
    """Every record from the current position on, with both checksums verified, one in memory at a time.

    A record with a wrong payload is marked and passed over. A file cut short, or with a wrong length, ends the scan
    after a marked record: what follows cannot be found.
    """
    start, number = file.tell(), 0
    size = file.seek(0, io.SEEK_END)
    file.seek(start)
    while start < size:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            yield _cut(number, start, "a header of 12 bytes", len(header))
            return
        length, length_crc = _HEADER.unpack(header)
        if masked_crc(header[:8]) != length_crc:
            damage = Damage(
                "corrupt record",
                "a length that fits its checksum",
                f"length {length}, checksum differs; records from here on cannot be found",
            )
            yield Record(number, start, start, b"", damage)
            return
        left = size - start - _HEADER.size
        if left < length + _FOOTER.size:  # before the read: a damaged length may ask for more than the memory
            yield _cut(number, start, f"{length} bytes of payload", left)
            return
        payload, footer = file.read(length), file.read(_FOOTER.size)
        if len(payload) < length or len(footer) < _FOOTER.size:
            yield _cut(number, start, f"{length} bytes of payload", len(payload) + len(footer))
            return
        damage = None
        if masked_crc(payload) != _FOOTER.unpack(footer)[0]:
            damage = Damage("corrupt record", "a payload that fits its checksum", "the checksum differs")
        yield Record(number, start, start + _HEADER.size, payload, damage)
        del payload  # so that the next one may take its memory: fresh pages cost as much as the read
        start, number = start + _HEADER.size + length + _FOOTER.size, number + 1


def record_spans(buffer: bytes, path: Path) -> Iterator[tuple[int, int]]:
    """(start, stop) of every payload in the whole file `buffer`, with both checksums verified.

    Raises DataError naming `path`, the record and the byte where the file is cut short or damaged.
    """
    for record in scan(io.BytesIO(buffer)):
        if record.damage is not None:
            raise errors.DataError(
                f"{path}, record {record.number} at byte {record.start}: the file is truncated or corrupt",
                expected=record.damage.expected,
                found=record.damage.found,
                fix="copy or download this file again and compare its size with the source",
            )
        yield record.payload_start, record.payload_start + len(record.payload)


def _cut(number: int, start: int, expected: str, left: int) -> Record:
    return Record(number, start, start, b"", Damage("truncated shard", expected, f"the file ends after {left}"))
