import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla_jax.core import errors, wire

DTYPES = ["|b1", "|u1", "|i1", "<u2", "<i4", ">i4", "<i8", "<u8", "<f2", "<f4", ">f4", "<f8"]
arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
leaves = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=40)
    | st.binary(max_size=80) | arrays
)  # fmt: skip
messages = st.dictionaries(
    st.text(max_size=8), leaves | st.lists(leaves, max_size=3) | st.dictionaries(st.text(max_size=4), leaves)
)


def array(data=b"\0\0\0\0", dtype="<f4", shape=(1,)):
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": list(shape)}


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return (
            a.dtype.newbyteorder("=") == b.dtype
            and a.shape == b.shape
            and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        )
    return a == b or (a != a and b != b)


@settings(max_examples=40)
@given(messages)
def test_what_is_packed_comes_back(message):
    assert same(message, wire.unpack(wire.pack(message)))


@settings(max_examples=500)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_as_msgpack_reads_them_or_refused(data):
    """The reference is msgpack's own reader; ours refuses more (objects, extensions, other keys), never less."""
    try:
        ours = wire.unpack(data)
    except errors.RequestError:
        return
    theirs = msgpack.unpackb(data, strict_map_key=False)
    if "__" not in repr(theirs):
        assert same(theirs, ours)


@settings(max_examples=30)
@given(messages.filter(bool), st.data())
def test_a_message_cut_anywhere_is_refused(message, data):
    packed = wire.pack(message)
    cut = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(errors.RequestError):
        wire.unpack(packed[:cut])


@pytest.mark.parametrize(
    "message, place",
    [
        ([1, 2], "request"),
        ({1: 2}, "request: key 0"),
        ({b"state": 2}, "request: key b'state'"),
        ({"state": {b"__ndarray__": True}}, "state"),
        ({"state": array(dtype="|O")}, "state: dtype"),
        ({"state": array(dtype="|V4")}, "state: dtype"),
        ({"state": array(dtype="<c8")}, "state: dtype"),
        ({"state": array(dtype="<U1")}, "state: dtype"),
        ({"state": array(dtype="<f4, <f4")}, "state: dtype"),
        ({"state": array(dtype=["<f4"])}, "state: dtype"),
        ({"state": array(shape=(2,))}, "state: data"),
        ({"state": array(shape=(-1,))}, "state: shape"),
        ({"state": array(shape=(1,) * 9)}, "state: shape"),
        ({"state": array(shape=(1 << 30, 1 << 30, 1 << 30))}, "state: data"),
        ({"state": array(shape=(True,))}, "state: shape"),
        ({"state": array(data="text")}, "state: data"),
        ({"state": {b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}}, "state"),
        ({"state": {b"__npgeneric__": True, b"data": "1", b"dtype": "<f4"}}, "state"),
        ({"a": {"b": array(dtype="|O")}}, "a/b: dtype"),
        ({"prompt": "x" * 20000}, "prompt"),
        ({"state": [0.0] * 5000}, "state[4093]: the request has too many values"),
        ({"a": [[[[[1]]]]]}, "a[0][0][0]"),
        ({"a": msgpack.ExtType(1, b"x")}, "a"),
        ({"a": msgpack.Timestamp(1)}, "a"),
        ({"k" * 200: 1}, "request: key 0"),
    ],
)  # fmt: skip
def test_an_error_names_the_field(message, place):
    with pytest.raises(errors.RequestError) as caught:
        wire.unpack(msgpack.packb(message))
    assert caught.value.place == place


def test_a_key_given_twice_is_refused():
    with pytest.raises(errors.RequestError, match="state"):
        wire.unpack(b"\x82\xa5state\x01\xa5state\x02")


def test_a_cut_array_names_its_field():
    packed = wire.pack({"prompt": "x", "observation/state": np.zeros(100, np.float32)})
    with pytest.raises(errors.RequestError, match=r"observation/state.*cut short"):
        wire.unpack(packed[:200])


def test_bytes_after_the_message_are_refused():
    with pytest.raises(errors.RequestError, match="1 bytes after it"):
        wire.unpack(wire.pack({"a": 1}) + b"\0")


def test_text_that_is_no_utf8_is_refused():
    with pytest.raises(errors.RequestError, match="prompt"):
        wire.unpack(b"\x81\xa6prompt\xa1\xff")


def test_too_large_a_message_names_its_largest_field():
    packed = wire.pack({"a": 1, "observation/image": np.zeros((64, 64, 3), np.uint8)})
    with pytest.raises(errors.RequestError, match="most of it is 'observation/image', 123"):
        wire.unpack(packed, wire.Limits(max_bytes=1000))


def test_a_claimed_length_costs_no_memory():
    for header in (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"):
        with pytest.raises(errors.RequestError, match="state"):
            wire.unpack(b"\x81\xa5state" + header)


@pytest.mark.parametrize("value", [np.array([None]), np.zeros(1, complex), np.array(["a"]), object()])
def test_what_has_no_numbers_is_not_packed(value):
    with pytest.raises(errors.RequestError, match="packing"):
        wire.pack({"a": value})


def test_arrays_cannot_be_written():
    state = wire.unpack(wire.pack({"state": np.arange(3.0)}))["state"]
    with pytest.raises(ValueError):
        state[0] = 1
