"""The format, against the bytes of its specification and the files of the reference implementation."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.interop import examples
from vla_jax.core import errors
from vla_jax.training.interop import safetensors
from vla_jax.training.interop.safetensors import Safetensors
from vla_jax.training.interop.sources import TensorInfo

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.uint8, np.bool_]


def save(folder, arrays, **options):
    infos = {name: TensorInfo(array.shape, array.dtype) for name, array in arrays.items()}
    return safetensors.write(folder, infos, arrays.__getitem__, **options)


def test_bytes_are_those_of_the_specification(tmp_path):
    (file,) = save(tmp_path, {"a": np.arange(3, dtype=np.int32), "b": np.ones((1, 2), ml_dtypes.bfloat16)})
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert length % 8 == 0
    assert json.loads(data[8 : 8 + length]) == {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "I32", "shape": [3], "data_offsets": [0, 12]},
        "b": {"dtype": "BF16", "shape": [1, 2], "data_offsets": [12, 16]},
    }
    assert data[8 + length :] == struct.pack("<iii", 0, 1, 2) + b"\x80\x3f\x80\x3f"


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_any_arrays_come_back_from_one_file_and_from_several(tmp_path_factory, data):
    shapes = st.lists(st.integers(0, 3), max_size=3)
    arrays = {}
    for i in range(data.draw(st.integers(1, 5))):
        dtype = data.draw(st.sampled_from(DTYPES))
        arrays[f"x{i}"] = np.random.default_rng(i).integers(0, 100, data.draw(shapes)).astype(dtype)
    folder = tmp_path_factory.mktemp("any")
    files = save(folder, arrays, max_file_bytes=data.draw(st.sampled_from([1, 30, 10**6])))
    source = Safetensors(folder)
    assert set(source.tensors) == set(arrays)
    assert (len(files) > 1) == (folder / safetensors.INDEX_FILE).is_file()
    for name, array in arrays.items():
        back = source.read(name)
        assert back.dtype == array.dtype and back.shape == array.shape
        np.testing.assert_array_equal(back, array)
        if array.ndim and len(array):
            np.testing.assert_array_equal(source.read(name, len(array) - 1), array[-1])


def test_files_of_the_reference_implementation_are_read():
    # transformers wrote them in four files; torch rounds to bfloat16 as ml_dtypes reads it.
    source = Safetensors(examples.FIXTURES / "paligemma")
    assert len(source.tensors) == 59  # 3 + 2 * 16 + 2 of vision, 2 between, 2 + 2 * 9 of language
    info = source.tensors["vision_tower.embeddings.patch_embedding.weight"]
    assert (info.shape, info.dtype) == ((16, 3, 14, 14), np.dtype(ml_dtypes.bfloat16))
    assert Safetensors(examples.FIXTURES / "paligemma" / safetensors.INDEX_FILE).tensors == source.tensors


@pytest.mark.parametrize("damage", ["cut", "header", "pointer", "offsets"])
def test_damaged_files_are_named(tmp_path, damage):
    (file,) = save(tmp_path, {"a": np.zeros(100, np.float32)})
    data = file.read_bytes()
    file.write_bytes(
        {
            "cut": data[:-8],
            "header": data[:8] + b"x" * (len(data) - 8),
            "pointer": b"version https://git-lfs.github.com/spec/v1\n",
            "offsets": data.replace(b"[0,400]", b"[0,404]"),
        }[damage]
    )
    with pytest.raises(errors.CheckpointError, match=r"model\.safetensors"):
        Safetensors(tmp_path)


def test_folders_without_or_with_several_checkpoints_are_refused(tmp_path):
    with pytest.raises(errors.CheckpointError, match="no safetensors checkpoint"):
        Safetensors(tmp_path)
    for name in ("a", "b"):
        (file,) = save(tmp_path / name, {"a": np.zeros(1)})
        file.rename(tmp_path / f"{name}.safetensors")
    with pytest.raises(errors.CheckpointError, match=r"a\.safetensors, b, b\.safetensors"):
        Safetensors(tmp_path)


def test_an_index_without_its_files_is_refused(tmp_path):
    files = save(tmp_path, {"a": np.zeros(4), "b": np.zeros(4)}, max_file_bytes=32)
    files[1].unlink()
    with pytest.raises(errors.CheckpointError, match="files of the index are missing"):
        Safetensors(tmp_path)


def test_an_interrupted_write_leaves_no_checkpoint(tmp_path):
    def fail(name):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        safetensors.write(tmp_path, {"a": TensorInfo((2,), np.dtype(np.float32))}, fail)
    assert not list(tmp_path.glob("*.safetensors"))
