import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_datasets.proto.tf_example_generated_pb2 import Example  # compiled protobuf: an independent reference

from vla_jax.data.formats.example_proto import ByteSpans, parse_example, serialize_example

INTS = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20)
FLOATS = st.lists(st.floats(width=32, allow_nan=False), max_size=20)
STRINGS = st.lists(st.binary(max_size=200), max_size=5)


@settings(max_examples=100, deadline=None)
@given(ints=INTS, floats=FLOATS, strings=STRINGS)
def test_protobuf_reads_what_we_write(ints, floats, strings):
    payload = serialize_example(
        {"i": np.array(ints, np.int64), "f": np.array(floats, np.float32), "b": strings, "flag": np.array([True])}
    )
    feature = Example.FromString(payload).features.feature
    assert list(feature["i"].int64_list.value) == ints
    assert list(feature["f"].float_list.value) == floats
    assert list(feature["b"].bytes_list.value) == strings
    assert list(feature["flag"].int64_list.value) == [1]


@settings(max_examples=100, deadline=None)
@given(ints=INTS, floats=FLOATS, strings=STRINGS, before=st.binary(max_size=9))
def test_we_read_what_protobuf_writes(ints, floats, strings, before):
    example = Example()
    example.features.feature["i"].int64_list.value.extend(ints)
    example.features.feature["f"].float_list.value.extend(floats)
    example.features.feature["b"].bytes_list.value.extend(strings)
    payload = example.SerializeToString()
    parsed = parse_example(before + payload, len(before), len(before) + len(payload))
    spans = parsed["b"]
    buffer = before + payload
    if ints:
        assert parsed["i"].tolist() == ints
    if floats:
        assert parsed["f"].tolist() == floats
    if strings:
        assert [buffer[o : o + n] for o, n in zip(spans.offsets, spans.lengths, strict=True)] == strings


def test_unpacked_numbers_are_read():
    # Old writers may leave repeated numbers unpacked: tag 0x0d + 4 bytes for a float, tag 0x08 + varint for an int.
    def entry(key: bytes, feature: bytes) -> bytes:
        body = b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([len(feature)]) + feature
        return b"\x0a" + bytes([len(body)]) + body

    floats = b"\x0d" + np.float32(1.5).tobytes() + b"\x0d" + np.float32(-2).tobytes()
    ints = b"\x08\x05\x08\x80\x01"
    features = entry(b"f", b"\x12" + bytes([len(floats)]) + floats) + entry(b"i", b"\x1a" + bytes([len(ints)]) + ints)
    payload = b"\x0a" + bytes([len(features)]) + features
    parsed = parse_example(payload, 0, len(payload))
    assert parsed["f"].tolist() == [1.5, -2.0]
    assert parsed["i"].tolist() == [5, 128]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_bytes_raise_value_error_and_nothing_else(data):
    payload = serialize_example({"a": np.arange(300), "b": [b"x" * 40], "c": np.ones(3, np.float32)})
    cut = data.draw(st.integers(0, len(payload) - 1))
    flipped = bytearray(payload[:cut] if data.draw(st.booleans()) else payload)
    if flipped:
        position = data.draw(st.integers(0, len(flipped) - 1))
        flipped[position] ^= 1 << data.draw(st.integers(0, 7))
    try:
        parsed = parse_example(bytes(flipped), 0, len(flipped))
    except ValueError:
        return
    assert all(isinstance(v, ByteSpans | np.ndarray | None) for v in parsed.values())


def test_a_field_longer_than_its_message_raises():
    payload = serialize_example({"a": [b"hello"]})
    with pytest.raises(ValueError, match="runs past"):
        parse_example(payload, 0, len(payload) - 1)
