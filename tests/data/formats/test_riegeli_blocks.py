import numpy as np
import pytest
from array_record.python import array_record_module
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_jax.data.formats import riegeli_blocks


def payloads_of(sizes) -> list[bytes]:
    rng = np.random.default_rng(0)
    return [rng.bytes(size) for size in sizes]


def write(path, payloads, options: str):
    writer = array_record_module.ArrayRecordWriter(str(path), options)
    for payload in payloads:
        writer.write(payload)
    writer.close()
    return path


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Payloads below, at and above the size of a block, and the positions of those that were found."""
    payloads = payloads_of((100, 3000, 65400, 65512, 65536, 70000, 131072, 200, 300_001))
    path = write(tmp_path_factory.mktemp("riegeli") / "file", payloads, "group_size:1,uncompressed")
    with path.open("rb") as file:
        starts, end = [], 0
        for payload in payloads:
            start = riegeli_blocks.locate(file, payload, end)
            starts.append(start)
            end = end if start is None else start + len(payload)
        yield file, payloads, starts


def test_an_uncompressed_payload_is_found_behind_the_last(stored):
    _, _, starts = stored
    assert None not in starts and starts == sorted(starts)
    # The writer puts a block header of 24 bytes, a file signature and a chunk header before the first.
    assert 64 < starts[0] < 200


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_piece_is_that_of_the_payload(stored, data):
    file, payloads, starts = stored
    which = data.draw(st.integers(0, len(payloads) - 1))
    offset = data.draw(st.integers(0, len(payloads[which]) - 1))
    length = data.draw(st.integers(1, len(payloads[which]) - offset))
    expected = payloads[which][offset : offset + length]
    assert riegeli_blocks.read(file, starts[which], offset, length) == expected


def test_pieces_at_the_edges_of_blocks_leave_the_headers_out(stored):
    file, payloads, starts = stored
    payload, start = payloads[-1], starts[-1]
    first_edge = -start % (1 << 16)  # bytes of the payload before the first block header within it
    for edge in (first_edge, first_edge + (1 << 16) - 24):
        for offset, length in ((edge - 1, 1), (edge - 1, 2), (edge, 1), (edge - 70000 if edge > 70000 else 0, 140000)):
            expected = payload[offset : offset + length]
            assert riegeli_blocks.read(file, start, offset, length) == expected


def test_a_compressed_payload_is_not_found(tmp_path):
    payload = b"the same words " * 5000
    with write(tmp_path / "file", [payload], "group_size:1").open("rb") as file:
        assert riegeli_blocks.locate(file, payload, 0) is None


def test_a_payload_with_another_byte_is_not_found(stored):
    file, payloads, _ = stored
    other = bytearray(payloads[5])
    other[-1] ^= 1
    assert riegeli_blocks.locate(file, bytes(other), 200_000) is None
    assert riegeli_blocks.locate(file, b"short", 0) is None
