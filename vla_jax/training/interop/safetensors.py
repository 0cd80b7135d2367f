"""Reading and writing the safetensors format, one tensor at a time.

    8 bytes: length n | n bytes: JSON, name -> dtype, shape, data_offsets | the tensors' bytes, little-endian

A checkpoint of several files has an index `*.safetensors.index.json` whose `weight_map` says which tensor is where.
Source: https://github.com/huggingface/safetensors, section Format.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from vla_jax.core import errors
from vla_jax.training.interop.sources import TensorInfo

MAX_FILE_BYTES = 5 << 30  # of one file that we write; Hugging Face's default
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100 << 20  # the format's own limit
_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


class _Place(NamedTuple):
    file: Path
    start: int  # byte in the file


class Safetensors:
    """A `TensorSource` over one file, or over a folder with one file or with an index.

    Reading is by `pread` into a new array: nothing stays in memory that the caller does not hold.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.tensors: dict[str, TensorInfo] = {}
        self._places: dict[str, _Place] = {}
        for file, names in _files(self.path).items():
            self._add(file, names)

    def read(self, name: str, layer: int | None = None) -> np.ndarray:
        """The whole tensor, or one row of its first axis."""
        info, place = self.tensors[name], self._places[name]
        shape, start = info.shape, place.start
        if layer is not None:
            shape = shape[1:]
            start += layer * _num_bytes(shape, info.dtype)
        array = np.empty(shape, info.dtype)
        buffer = memoryview(array.reshape(-1).view(np.uint8)) if array.size else memoryview(b"")
        with open(place.file, "rb", buffering=0) as file:
            file.seek(start)
            done = 0
            while done < len(buffer):
                got = file.readinto(buffer[done:])
                if not got:
                    raise errors.CheckpointError(
                        f"{place.file}: tensor {name!r} ends early",
                        expected=f"{len(buffer)} bytes from byte {start}",
                        found=f"{done}",
                        fix="the file was cut short: copy it again",
                    )
                done += got
        return array

    def _add(self, file: Path, expected: set[str] | None) -> None:
        header, data_start = _header(file)
        for name, entry in header.items():
            if expected is not None and name not in expected:
                continue
            dtype, shape = entry["dtype"], tuple(entry["shape"])
            if dtype not in _DTYPES:
                raise errors.CheckpointError(
                    f"{file}: tensor {name!r} has dtype {dtype}", expected=", ".join(_DTYPES), found=dtype
                )
            begin, end = entry["data_offsets"]
            info = TensorInfo(shape, np.dtype(_DTYPES[dtype]))
            if end - begin != _num_bytes(shape, info.dtype) or data_start + end > file.stat().st_size:
                raise errors.CheckpointError(
                    f"{file}: tensor {name!r} does not fit its bytes",
                    expected=f"{_num_bytes(shape, info.dtype)} bytes for {dtype}{list(shape)} within the file",
                    found=f"bytes {begin} to {end} of {file.stat().st_size - data_start}",
                    fix="the file was cut short or is damaged: copy it again",
                )
            self.tensors[name], self._places[name] = info, _Place(file, data_start + begin)
        absent = sorted((expected or set()) - set(header))
        if absent:
            raise errors.CheckpointError(
                f"{file}: the index promises tensors that are not in the file",
                expected=absent[0],
                found=f"{len(header)} other tensors",
                fix="copy index and files of one checkpoint together",
            )


def write(
    folder: str | Path,
    tensors: Mapping[str, TensorInfo],
    produce: Callable[[str], np.ndarray],
    *,
    max_file_bytes: int = MAX_FILE_BYTES,
    advance: Callable[[str], None] = lambda name: None,
) -> list[Path]:
    """Write `produce(name)` of every tensor, in order, as one file or as several with an index.

    Only one tensor is held at a time. Each file appears by a rename when it is complete, the index last. `advance` is
    told every name that is done. Raises CheckpointError when a produced array is not what `tensors` says.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    groups = _split(tensors, max_file_bytes)
    names = [SINGLE_FILE]
    if len(groups) > 1:
        names = [f"model-{i + 1:05}-of-{len(groups):05}.safetensors" for i in range(len(groups))]
    for name, group in zip(names, groups, strict=True):
        _write_file(folder / name, {tensor: tensors[tensor] for tensor in group}, produce, advance)
    if len(groups) > 1:
        total = sum(_num_bytes(info.shape, info.dtype) for info in tensors.values())
        weight_map = {tensor: name for name, group in zip(names, groups, strict=True) for tensor in group}
        document = {"metadata": {"total_size": total}, "weight_map": weight_map}
        partial = folder / f"{INDEX_FILE}.{os.getpid()}.incomplete"
        partial.write_text(json.dumps(document, indent=2))
        os.replace(partial, folder / INDEX_FILE)
    return [folder / name for name in names]


def _write_file(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    produce: Callable[[str], np.ndarray],
    advance: Callable[[str], None],
) -> None:
    header, end = {"__metadata__": {"format": "pt"}}, 0  # transformers refuses files without a format
    for name, info in tensors.items():
        begin, end = end, end + _num_bytes(info.shape, info.dtype)
        header[name] = {"dtype": _NAMES[np.dtype(info.dtype)], "shape": list(info.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start aligned
    partial = path.with_name(f"{path.name}.{os.getpid()}.incomplete")
    with open(partial, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, info in tensors.items():
            array = produce(name)
            if array.shape != info.shape or array.dtype != info.dtype:
                raise errors.CheckpointError(
                    f"{path}: tensor {name!r} was announced otherwise",
                    expected=f"{info.dtype}{list(info.shape)}",
                    found=f"{array.dtype}{list(array.shape)}",
                )
            if array.size:
                file.write(memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8)))
            advance(name)
    os.replace(partial, path)


def _files(path: Path) -> dict[Path, set[str] | None]:
    """Every file of a checkpoint with the tensors to take from it; None: all it has."""
    if path.is_file() and not path.name.endswith(".json"):
        return {path: None}
    if path.is_dir():
        indices, singles = sorted(path.glob("*.safetensors.index.json")), sorted(path.glob("*.safetensors"))
        preferred = path / SINGLE_FILE
        if preferred.is_file():
            return {preferred: None}
        if len(indices) != 1 and len(singles) != 1:
            raise errors.CheckpointError(
                f"{path}: no safetensors checkpoint",
                expected=f"{SINGLE_FILE}, one *.safetensors file, or one *.safetensors.index.json",
                found=", ".join(sorted(child.name for child in path.iterdir())) or "an empty folder",
            )
        if len(indices) != 1:
            return {singles[0]: None}
        path = indices[0]
    if not path.is_file():
        raise errors.CheckpointError(f"{path}: no such file or folder")
    by_file: dict[Path, set[str]] = {}
    for tensor, name in _weight_map(path).items():
        by_file.setdefault(path.parent / Path(name).name, set()).add(tensor)
    lost = [str(file) for file in by_file if not file.is_file()]
    if lost:
        raise errors.CheckpointError(f"{path}: files of the index are missing", expected=lost[0], found="no such file")
    return by_file


def _weight_map(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text())["weight_map"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise errors.CheckpointError(
            f"{path}: not an index of safetensors files", expected="a weight_map of tensor to file", found=repr(error)
        ) from error


def _header(file: Path) -> tuple[dict, int]:
    with open(file, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        text = handle.read(length) if 2 <= length <= min(_MAX_HEADER_BYTES, file.stat().st_size - 8) else b""
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        for entry in header.values():
            entry["dtype"], [int(n) for n in entry["shape"]], [int(n) for n in entry["data_offsets"]]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise errors.CheckpointError(
            f"{file}: not a safetensors file",
            expected="8 bytes of length, then a JSON header",
            found=f"{error!r} (a Git LFS pointer instead of the file?)",
            fix="download the file itself",
        ) from error
    return header, 8 + length


def _split(tensors: Mapping[str, TensorInfo], max_file_bytes: int) -> Iterator[list[str]]:
    groups, size = [[]], 0
    for name, info in tensors.items():
        num_bytes = _num_bytes(info.shape, info.dtype)
        if groups[-1] and size + num_bytes > max_file_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += num_bytes
    return groups


def _num_bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
