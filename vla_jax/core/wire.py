"""Observations and replies as bytes: msgpack with the array convention of openpi's clients.

    array   {b"__ndarray__": True, b"data": raw bytes, b"dtype": "<f4", b"shape": [h, w, 3]}
    scalar  {b"__npgeneric__": True, b"data": number, b"dtype": "<f4"}

Reading is strict and of our own: a few dozen tokens a message, every one counted and named, so that a hostile message
costs no more memory than its length and an error says which field is wrong. Nothing is ever unpickled: objects,
extension types and arrays of anything but numbers are refused.
"""

import dataclasses
import math
import re
import struct
from collections.abc import Mapping
from typing import Any, NoReturn

import msgpack
import numpy as np

from vla_jax.core import errors

Value = Any  # an array, a number, a text, bytes, None, or a list or dict of these

_ARRAY, _SCALAR = b"__ndarray__", b"__npgeneric__"
_CONVENTION = {_ARRAY: {_ARRAY, b"data", b"dtype", b"shape"}, _SCALAR: {_SCALAR, b"data", b"dtype"}}
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
_MAX_DIMS, _MAX_KEY = 8, 128
# First byte of a token -> what it is and the struct format of its length or value (msgpack's specification).
_LENGTHS = {
    **{0xC4: ("bytes", ">B"), 0xC5: ("bytes", ">H"), 0xC6: ("bytes", ">I")},
    **{0xD9: ("text", ">B"), 0xDA: ("text", ">H"), 0xDB: ("text", ">I")},
    **{0xDC: ("list", ">H"), 0xDD: ("list", ">I"), 0xDE: ("map", ">H"), 0xDF: ("map", ">I")},
}
_NUMBERS = {
    **{0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"},
    **{0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"},
}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a message may cost."""

    max_bytes: int = 16 << 20  # of the whole message; two pictures of 1280 x 720 are 5.5 MB
    max_tokens: int = 4096  # keys, values and list entries together; an observation has about 50
    max_depth: int = 4  # of maps and lists inside each other
    max_text: int = 16384  # bytes of one text


def pack(value: Value) -> bytes:
    """The bytes of a message, as openpi's own packer writes them. Raises RequestError for what it refuses."""
    return msgpack.packb(value, default=_pack_numpy)


def unpack(data: bytes, limits: Limits | None = None) -> dict[str, Value]:
    """The fields of a message; arrays cannot be written.

    Raises RequestError, whose place begins with the field, when the message is too large, cut short, followed by more
    bytes, not a map with text keys, or holds something that is no number, text, bytes or array of numbers.
    """
    limits = limits or Limits()
    if len(data) > limits.max_bytes:
        raise errors.RequestError(
            f"request of {len(data)} bytes is too large{_largest_field(data)}",
            expected=f"at most {limits.max_bytes} bytes",
            fix="send smaller pictures, or compress them: bytes of a JPEG or PNG are taken too",
        )
    reader = _Reader(data, limits)
    fields = reader.value("request", 0)
    if not isinstance(fields, dict):
        raise errors.RequestError("request", expected="a map of fields", found=type(fields).__name__)
    if reader.position != len(data):
        raise errors.RequestError("request", expected="one map", found=f"{len(data) - reader.position} bytes after it")
    return fields


class _Reader:
    """A message, from its first byte to its last."""

    def __init__(self, data: bytes, limits: Limits):
        self._data, self._limits = memoryview(data), limits
        self.position = 0
        self._tokens_left = limits.max_tokens

    def value(self, place: str, depth: int) -> Value:
        self._tokens_left -= 1
        if self._tokens_left < 0:
            raise errors.RequestError(
                f"{place}: the request has too many values",
                expected=f"at most {self._limits.max_tokens} outside arrays",
                fix="send numbers as arrays, not as lists",
            )
        first = self._take(1, place)[0]
        if first <= 0x7F:
            return first
        if first >= 0xE0:
            return first - 0x100
        if first in _CONSTANTS:
            return _CONSTANTS[first]
        if first in _NUMBERS:
            return self._number(_NUMBERS[first], place)
        if first <= 0x8F:
            return self._map(first & 0x0F, place, depth)
        if first <= 0x9F:
            return self._list(first & 0x0F, place, depth)
        if first <= 0xBF:
            return self._text(first & 0x1F, place)
        if first not in _LENGTHS:
            raise errors.RequestError(
                place,
                expected="a number, a text, bytes, an array, a list or a map",
                found=f"msgpack type 0x{first:02x}",
            )
        kind, length_format = _LENGTHS[first]
        length = self._number(length_format, place)
        if kind == "bytes":
            return bytes(self._take(length, place))
        if kind == "text":
            return self._text(length, place)
        return self._map(length, place, depth) if kind == "map" else self._list(length, place, depth)

    def _take(self, length: int, place: str) -> memoryview:
        if length > len(self._data) - self.position:
            raise errors.RequestError(
                f"{place}: the message is cut short",
                expected=f"{length} bytes more",
                found=len(self._data) - self.position,
            )
        self.position += length
        return self._data[self.position - length : self.position]

    def _number(self, number_format: str, place: str) -> int | float:
        return struct.unpack(number_format, self._take(struct.calcsize(number_format), place))[0]

    def _text(self, length: int, place: str) -> str:
        if length > self._limits.max_text:
            raise errors.RequestError(
                place, expected=f"a text of at most {self._limits.max_text} bytes", found=f"{length} bytes"
            )
        try:
            return str(self._take(length, place), "utf-8")
        except UnicodeDecodeError as error:
            raise errors.RequestError(place, expected="a text in UTF-8", found=str(error)) from error

    def _list(self, length: int, place: str, depth: int) -> list[Value]:
        self._check_depth(place, depth)
        return [self.value(f"{place}[{i}]", depth + 1) for i in range(length)]

    def _map(self, length: int, place: str, depth: int) -> Value:
        self._check_depth(place, depth)
        fields: dict[str | bytes, Value] = {}
        for i in range(length):
            key = self.value(f"{place}: key {i}", self._limits.max_depth)
            if not isinstance(key, str | bytes) or len(key) > _MAX_KEY:
                raise errors.RequestError(
                    f"{place}: key {i}", expected=f"a text of at most {_MAX_KEY}", found=type(key).__name__
                )
            name = key if isinstance(key, str) else f"{place}: {key.decode('latin-1')}"
            if key in fields:
                raise errors.RequestError(name, expected="each key once", found="it twice")
            inside = isinstance(key, bytes) or place == "request"
            fields[key] = self.value(name if inside else f"{place}/{name}", depth + 1)
        for kind in _CONVENTION:
            if kind in fields:
                return _numpy(kind, fields, place)
        for key in fields:
            if isinstance(key, bytes):
                raise errors.RequestError(f"{place}: key {key!r}", expected="a text", found="bytes")
        return fields

    def _check_depth(self, place: str, depth: int) -> None:
        if depth >= self._limits.max_depth:
            raise errors.RequestError(place, expected=f"at most {self._limits.max_depth} levels", found="one more")


def _numpy(kind: bytes, fields: Mapping[str | bytes, Value], place: str) -> np.ndarray | np.generic:
    """The array or scalar that these fields describe."""
    if fields.keys() != _CONVENTION[kind] or fields[kind] is not True:
        _refuse(place, f"the keys {sorted(key.decode() for key in _CONVENTION[kind])}", [str(key) for key in fields])
    code, data = fields[b"dtype"], fields[b"data"]
    if not isinstance(code, str) or not _DTYPE.fullmatch(code):
        _refuse(f"{place}: dtype", "a dtype of numbers, such as <f4 or |u1", repr(code)[:64])
    dtype = np.dtype(code)
    if kind == _SCALAR:
        if not isinstance(data, int | float) or (isinstance(data, float) and dtype.kind != "f"):
            _refuse(place, f"a number of {dtype}", repr(data)[:64])
        if dtype.kind in "iu" and not np.iinfo(dtype).min <= data <= np.iinfo(dtype).max:
            _refuse(place, f"a number of {dtype}", data)
        with np.errstate(over="ignore"):  # becomes infinite, which whoever reads the field refuses by its name
            return dtype.type(data)
    shape = fields[b"shape"]
    if (
        not isinstance(shape, list)
        or len(shape) > _MAX_DIMS
        or not all(type(side) is int and 0 <= side < 1 << 31 for side in shape)
    ):
        _refuse(f"{place}: shape", f"a list of at most {_MAX_DIMS} sizes", repr(shape)[:64])
    size = math.prod(shape) * dtype.itemsize
    if not isinstance(data, bytes) or len(data) != size:
        found = f"{len(data)} bytes" if isinstance(data, bytes) else type(data).__name__
        _refuse(f"{place}: data", f"{size} bytes for {dtype} {shape}", found)
    array = np.frombuffer(data, dtype).reshape(shape)
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def _refuse(place: str, expected: object, found: object) -> NoReturn:
    raise errors.RequestError(place, expected=expected, found=found)


def _pack_numpy(value: Any) -> Any:
    """What msgpack does not know by itself."""
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        if isinstance(value, np.ndarray):
            return {_ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
        return {_SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
    kind = f"array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
    raise errors.RequestError("packing a message", expected="numbers, texts, bytes, arrays of numbers", found=kind)


def _largest_field(data: bytes) -> str:
    """Which top field takes the most bytes, as the end of a sentence; empty where the message cannot be walked."""
    reader = msgpack.Unpacker(max_buffer_size=len(data), strict_map_key=False)
    reader.feed(data)
    sizes = {}
    try:
        for _ in range(min(reader.read_map_header(), 64)):
            key, start = reader.unpack(), reader.tell()
            reader.skip()
            sizes[str(key)[:64]] = reader.tell() - start
    except (msgpack.exceptions.UnpackException, ValueError):
        return ""  # a message that is too large and damaged: its size is reason enough
    return f": most of it is {max(sizes, key=sizes.get)!r}, {max(sizes.values())} bytes" if sizes else ""
