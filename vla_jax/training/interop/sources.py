"""Where foreign tensors are read from: safetensors files, and the orbax checkpoints of openpi."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import tensorstore

from vla_jax.core import errors


class TensorInfo(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype


class TensorSource(Protocol):
    """Named tensors on disk, read one at a time."""

    path: Path
    tensors: Mapping[str, TensorInfo]

    def read(self, name: str, layer: int | None = None) -> np.ndarray:
        """The whole tensor, or one row of its first axis."""


class OrbaxArrays:
    """A `TensorSource` over a PyTree that orbax wrote as OCDBT (openpi's `params` folder), names joined by "/".

    The arrays are opened one by one with tensorstore, so that a layer is read without its neighbours. openpi keeps
    everything below a top key `params`, and below each name `value` where its trainer wrote it; both are left out.
    """

    def __init__(self, path: str | Path):
        self.path = _orbax_folder(Path(path))
        document = json.loads((self.path / "_METADATA").read_text())
        self._driver = "zarr3" if document.get("use_zarr3") else "zarr"
        self._keys: dict[str, str] = {}
        for entry in document["tree_metadata"].values():
            parts = [str(part["key"]) for part in entry["key_metadata"]]
            name = "/".join(parts[1:] if parts[0] == "params" else parts).removesuffix("/value")
            self._keys[name] = ".".join(parts)
        self._stores = {name: self._open(name) for name in self._keys}
        self.tensors = {
            name: TensorInfo(tuple(store.shape), np.dtype(store.dtype.numpy_dtype))
            for name, store in self._stores.items()
        }

    def read(self, name: str, layer: int | None = None) -> np.ndarray:
        """The whole tensor, or one row of its first axis."""
        store = self._stores[name]
        return np.asarray((store if layer is None else store[layer]).read().result())

    def _open(self, name: str) -> tensorstore.TensorStore:
        base = {"driver": "file", "path": f"{self.path}{os.sep}"}
        store = {"driver": "ocdbt", "base": base, "path": f"{self._keys[name]}/"}
        spec = {"driver": self._driver, "kvstore": store, "recheck_cached_data": False}
        try:
            return tensorstore.open(spec, read=True, open=True).result()
        except ValueError as error:
            raise errors.CheckpointError(
                f"{self.path}: cannot read {name!r}",
                expected="an array in OCDBT format, as openpi's checkpoints have",
                found=str(error).splitlines()[0][:200],
                fix="copy the whole folder, with manifest.ocdbt and its d/ and ocdbt.process_* folders",
            ) from error


def _orbax_folder(path: Path) -> Path:
    """The folder itself, or the `params` folder in it."""
    for folder in (path, path / "params"):
        if (folder / "_METADATA").is_file() and (folder / "manifest.ocdbt").is_file():
            return folder.absolute()
    raise errors.CheckpointError(
        f"{path}: not an openpi checkpoint",
        expected="a folder (or its params folder) with _METADATA and manifest.ocdbt",
        found=", ".join(sorted(child.name for child in path.iterdir())[:20]) if path.is_dir() else "no such folder",
        fix="copy the checkpoint's params folder here; safetensors have layouts of their own",
    )
