"""TFRecord framing: length, checksum of the length, payload, checksum of the payload.

uint64 length | uint32 masked crc32c(length) | payload | uint32 masked crc32c(payload)      little endian
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import google_crc32c

from vla_jax.core import errors

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")


def masked_crc(data: bytes) -> int:
    """crc32c rotated and offset, as TFRecord stores it, so that a checksum of checksummed data stays useful."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def write_record(file: BinaryIO, payload: bytes) -> None:
    length = struct.pack("<Q", len(payload))
    file.write(length + _FOOTER.pack(masked_crc(length)))
    file.write(payload)
    file.write(_FOOTER.pack(masked_crc(payload)))


def record_spans(buffer, path: Path) -> Iterator[tuple[int, int]]:
    """(start, stop) of every payload in the whole file `buffer`, with both checksums verified.

    Raises DataError naming `path`, the record and the byte where the file is cut short or damaged.
    """
    i, record, size = 0, 0, len(buffer)
    while i < size:
        start = i + _HEADER.size
        if start > size:
            raise _damaged(path, record, i, "a header of 12 bytes", f"the file ends after {size - i}")
        length, length_crc = _HEADER.unpack(buffer[i:start])
        if masked_crc(buffer[i : i + 8]) != length_crc:
            raise _damaged(path, record, i, "a length that fits its checksum", f"length {length}, checksum differs")
        stop = start + length
        if stop + _FOOTER.size > size:
            raise _damaged(path, record, i, f"{length} bytes of payload", f"the file ends after {size - start}")
        (payload_crc,) = _FOOTER.unpack(buffer[stop : stop + _FOOTER.size])
        if masked_crc(buffer[start:stop]) != payload_crc:
            raise _damaged(path, record, i, "a payload that fits its checksum", "the checksum differs")
        yield start, stop
        i, record = stop + _FOOTER.size, record + 1


def _damaged(path: Path, record: int, offset: int, expected: str, found: str) -> errors.DataError:
    return errors.DataError(
        f"{path}, record {record} at byte {offset}: the file is truncated or corrupt",
        expected=expected,
        found=found,
        fix="copy or download this file again and compare its size with the source",
    )
