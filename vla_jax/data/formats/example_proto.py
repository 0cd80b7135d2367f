"""`tf.train.Example` read and written without TensorFlow: the protobuf wire format, only as far as an Example needs it.

    Example  { features: 1 { feature: 1 repeated { key: 1 string, value: 2 Feature } } }
    Feature  { bytes_list: 1 | float_list: 2 | int64_list: 3 } { value: 1 repeated, numbers packed }

Byte strings are returned as places in the buffer rather than copies, so that an index can remember where a JPEG lies.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32, Int64

_LENGTH_DELIMITED = 2
_FIELD_1, _FIELD_2, _FIELD_3 = (field << 3 | _LENGTH_DELIMITED for field in (1, 2, 3))
_UNPACKED_FLOAT, _UNPACKED_INT = 1 << 3 | 5, 1 << 3  # wire types 32-bit and varint


@dataclasses.dataclass(frozen=True)
class ByteSpans:
    """Where the strings of a bytes_list lie: `buffer[offsets[i] : offsets[i] + lengths[i]]`."""

    offsets: Int64[np.ndarray, "n"]
    lengths: Int64[np.ndarray, "n"]


Value = ByteSpans | Float32[np.ndarray, "n"] | Int64[np.ndarray, "n"] | None  # None: the feature is there but empty


def parse_example(buffer: bytes, start: int, stop: int) -> dict[str, Value]:
    """The features of the Example in `buffer[start:stop]`, by name; `buffer` is anything that slices to bytes.

    Raises ValueError when the bytes are not an Example.
    """
    features: dict[str, Value] = {}
    try:
        for _, start_features, stop_features in _messages(buffer, start, stop, _FIELD_1):
            for _, start_entry, stop_entry in _messages(buffer, start_features, stop_features, _FIELD_1):
                name, value = None, None
                for tag, i, j in _messages(buffer, start_entry, stop_entry, _FIELD_1, _FIELD_2):
                    if tag == _FIELD_1:
                        name = buffer[i:j].decode()
                    else:
                        value = _parse_feature(buffer, i, j)
                if name is None:
                    raise ValueError("a feature has no name")
                features[name] = value
    except IndexError:
        raise ValueError("a field runs past the end of the buffer") from None
    return features


def serialize_example(features: Mapping[str, Sequence[bytes] | np.ndarray]) -> bytes:
    """An Example as bytes. A sequence of bytes becomes a bytes_list, a float array a float_list, an integer or bool
    array an int64_list; arrays are flattened in C order."""
    entries = []
    for name in sorted(features):
        entry = _delimited(_FIELD_1, name.encode()) + _delimited(_FIELD_2, _serialize_feature(features[name]))
        entries.append(_delimited(_FIELD_1, entry))
    return _delimited(_FIELD_1, b"".join(entries))


def _varint(buffer, i: int) -> tuple[int, int]:
    byte = buffer[i]
    i += 1
    if byte < 128:
        return byte, i
    value, shift = byte & 127, 7
    while True:
        byte = buffer[i]
        i += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, i
        shift += 7
        if shift > 63:
            raise ValueError("a varint is longer than 10 bytes")


def _messages(buffer, i: int, stop: int, *tags: int):
    """(tag, start, stop) of every length-delimited field of a message; a tag not in `tags` is an error."""
    while i < stop:
        tag, i = _varint(buffer, i)
        if tag not in tags:
            raise ValueError(f"unexpected tag {tag} at byte {i}")
        length, i = _varint(buffer, i)
        if i + length > stop:
            raise ValueError(f"a field of {length} bytes at byte {i} runs past its message, which ends at {stop}")
        yield tag, i, i + length
        i += length


def _parse_feature(buffer, i: int, stop: int) -> Value:
    value: Value = None
    for tag, start, end in _messages(buffer, i, stop, _FIELD_1, _FIELD_2, _FIELD_3):
        if tag == _FIELD_1:
            spans = [(a, b - a) for _, a, b in _messages(buffer, start, end, _FIELD_1)]
            offsets, lengths = np.array(spans, np.int64).reshape(-1, 2).T
            value = ByteSpans(offsets, lengths)
        elif tag == _FIELD_2:
            value = np.frombuffer(_number_bytes(buffer, start, end, _UNPACKED_FLOAT), "<f4")
        else:
            value = _varints(_number_bytes(buffer, start, end, _UNPACKED_INT))
    return value


def _number_bytes(buffer, i: int, stop: int, unpacked_tag: int) -> bytes:
    """The values of a number list, laid end to end: almost always one packed run, but the format allows pieces."""
    pieces = []
    while i < stop:
        tag, i = _varint(buffer, i)
        if tag == _FIELD_1:
            length, i = _varint(buffer, i)
            end = i + length
        elif tag == unpacked_tag:
            end = i + 4 if unpacked_tag == _UNPACKED_FLOAT else _varint(buffer, i)[1]
        else:
            raise ValueError(f"unexpected tag {tag} in a list of numbers")
        if end > stop:
            raise ValueError("a list of numbers runs past its message")
        pieces.append(buffer[i:end])
        i = end
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _varints(data: bytes) -> Int64[np.ndarray, "n"]:
    """All varints of a packed run at once: a value ends at every byte below 128."""
    raw = np.frombuffer(data, np.uint8)
    is_end = raw < 128
    if is_end.all():
        return raw.astype(np.int64)
    if not is_end[-1]:
        raise ValueError("a packed list of integers ends inside a varint")
    starts = np.concatenate([[0], np.flatnonzero(is_end)[:-1] + 1])
    place = np.arange(raw.size) - np.repeat(starts, np.diff(np.append(starts, raw.size)))
    parts = (raw & 127).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.bitwise_or.reduceat(parts, starts).astype(np.int64)


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _delimited(tag: int, payload: bytes) -> bytes:
    return _encode_varint(tag) + _encode_varint(len(payload)) + payload


def _serialize_feature(value: Sequence[bytes] | np.ndarray) -> bytes:
    if not isinstance(value, np.ndarray):
        return _delimited(_FIELD_1, b"".join(_delimited(_FIELD_1, item) for item in value))
    if value.dtype.kind == "f":
        return _delimited(_FIELD_2, _delimited(_FIELD_1, value.astype("<f4").tobytes()))
    if value.dtype.kind not in "iub":
        raise TypeError(f"an Example holds bytes, floats and integers, not {value.dtype}")
    # Negative numbers travel as their 64-bit two's complement.
    numbers = value.astype(np.int64).astype(np.uint64).ravel().tolist()
    return _delimited(_FIELD_3, _delimited(_FIELD_1, b"".join(map(_encode_varint, numbers))))
