import io
from pathlib import Path

import pytest

from vla_jax.core.errors import DataError
from vla_jax.data.formats.tfrecord import masked_crc, record_spans, write_record

PAYLOADS = [b"first", b"", b"third" * 1000]


@pytest.fixture
def file_bytes():
    file = io.BytesIO()
    for payload in PAYLOADS:
        write_record(file, payload)
    return file.getvalue()


def test_checksum_matches_the_published_vector():
    # RFC 3720, B.4: crc32c of 32 zero bytes is 0x8a9136aa; masked as (crc >> 15 | crc << 17) + 0xa282ead8.
    crc = 0x8A9136AA
    assert masked_crc(bytes(32)) == ((crc >> 15 | (crc << 17 & 0xFFFFFFFF)) + 0xA282EAD8) & 0xFFFFFFFF


def test_records_come_back(file_bytes):
    assert [file_bytes[i:j] for i, j in record_spans(file_bytes, Path("a"))] == PAYLOADS


@pytest.mark.parametrize("removed", [1, 4, 5, 4000])
def test_a_truncated_file_is_named_with_the_record(file_bytes, removed):
    with pytest.raises(DataError, match=r"shard-7, record 2 at byte 37: .*truncated"):
        list(record_spans(file_bytes[:-removed], Path("shard-7")))


@pytest.mark.parametrize("position", [0, 9, 13, 18, 38, 60, -1])
def test_every_flipped_bit_is_noticed(file_bytes, position):
    damaged = bytearray(file_bytes)
    damaged[position] ^= 4
    with pytest.raises(DataError, match="truncated or corrupt"):
        list(record_spans(bytes(damaged), Path("a")))
