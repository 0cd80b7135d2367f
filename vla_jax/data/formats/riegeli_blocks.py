"""Where the bytes of an uncompressed ArrayRecord payload lie, so that one picture is one short read.

The file is cut into blocks of 64 KiB, each led by a header of 24 bytes; a record stored without compression is
otherwise as it is. That is checked byte by byte when a record is located, so a file laid out in another way is only
read as a whole. Source: Riegeli's description of its file format, the block headers.
"""

import os
from typing import BinaryIO

_BLOCK, _HEADER = 1 << 16, 24
_DATA = _BLOCK - _HEADER  # bytes of a block that hold data
_PROBE = 64  # bytes that a payload is looked for by
_REACHES = (1 << 12, 1 << 17)  # how far behind the last payload the next may begin: a chunk header, or padding too


def locate(file: BinaryIO, payload: bytes, after: int) -> int | None:
    """The position of the first byte of `payload` in the file, at or soon behind `after`; None where it does not lie
    there as it is, or where a block header cuts its first 64 bytes."""
    if len(payload) < _PROBE:
        return None
    for reach in _REACHES:
        found = os.pread(file.fileno(), reach, after).find(payload[:_PROBE])
        if found >= 0:
            return after + found if _lies_at(file, payload, after + found) else None
    return None


def _lies_at(file: BinaryIO, payload: bytes, position: int) -> bool:
    """Whether the payload is there, compared block by block: small pieces stay in the processor's cache."""
    offset = 0
    while offset < len(payload):
        count = min(_BLOCK - position % _BLOCK, len(payload) - offset)
        if os.pread(file.fileno(), count, position) != payload[offset : offset + count]:
            return False
        offset += count
        position += count + (_HEADER if (position + count) % _BLOCK == 0 else 0)
    return True


def read(file: BinaryIO, start: int, offset: int, length: int) -> bytes:
    """Bytes `offset` to `offset + length` of the payload that starts at `start`; fewer where the file ends."""
    first = _position(_data_before(start) + offset)
    stop = _position(_data_before(start) + offset + length - 1) + 1
    data = os.pread(file.fileno(), stop - first, first)
    boundary = -first % _BLOCK  # of the first header in `data`
    if boundary >= len(data):
        return data
    pieces = [data[:boundary]]
    pieces += [data[i + _HEADER : i + _BLOCK] for i in range(boundary, len(data), _BLOCK)]
    return b"".join(pieces)


def _data_before(position: int) -> int:
    """How many bytes of data come before a position, which is not inside a header."""
    return position - _HEADER * (position // _BLOCK + 1)


def _position(data: int) -> int:
    """Where the byte lies that has `data` bytes of data before it."""
    return data + _HEADER * (data // _DATA + 1)
