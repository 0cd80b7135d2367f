"""The arrays behind a host buffer: in memory, or in a folder of memory-mapped files that outlives its process.

    <folder>/schema.json       capacity, and the shape and dtype of every column; written last
    <folder>/<column>.npy      plain numpy files, [capacity, ...]

What was stored into a memory map is in the kernel's page cache: it is there after the process was killed. Only a power
failure can lose it, unless `sync` is called.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vla_jax.core import errors
from vla_jax.core.files import write_text

FORMAT = 1
Specs = Mapping[str, jax.ShapeDtypeStruct]  # of a whole column, by its path


class Columns:
    """Named arrays. Without a folder they live in memory and start as zeros."""

    def __init__(self, specs: Specs, folder: str | Path | None = None):
        """Opens the folder if it holds columns, else makes them, with all their disk space taken at once.

        Raises ConfigError for columns that are no plain numbers, DataError when the folder holds other columns, is in
        use by another process, or the disk is too small.
        """
        for path, spec in specs.items():
            if np.dtype(spec.dtype).kind not in "biuf":
                raise errors.ConfigError(
                    f"host buffer: column {path!r}", expected="booleans, integers or floats", found=spec.dtype
                )
        self._folder = None if folder is None else Path(folder)
        self._lock: int | None = None
        self._maps: list[np.memmap] = []
        self.is_new = True
        if self._folder is None:
            self.arrays = {path: np.zeros(spec.shape, spec.dtype) for path, spec in specs.items()}
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = self._locked()
        schema = self._folder / "schema.json"
        self.is_new = not schema.is_file()
        if not self.is_new:
            self._check(json.loads(schema.read_text()), specs)
        self._maps = [self._map(path, spec) for path, spec in specs.items()]
        # plain views: writing through a memmap object costs a subclass's bookkeeping each time
        self.arrays = {path: mapped.view(np.ndarray) for path, mapped in zip(specs, self._maps, strict=True)}
        if self.is_new:
            write_text(schema, json.dumps({"format": FORMAT, "columns": _described(specs)}, indent=2))

    def sync(self) -> None:
        """Wait until everything is on the disk itself."""
        for mapped in self._maps:
            mapped.flush()

    def close(self) -> None:
        """Let go of the folder; a second call does nothing."""
        self.sync()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _locked(self) -> int:
        lock = os.open(self._folder / "lock", os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it when the process dies
        except BlockingIOError as error:
            os.close(lock)
            raise errors.DataError(
                f"{self._folder}: the replay buffer is in use",
                expected="one process",
                found="another one that has it open",
                fix="stop the other learner, or give this one a folder of its own",
            ) from error
        return lock

    def _map(self, path: str, spec: jax.ShapeDtypeStruct) -> np.memmap:
        file = self._folder / f"{path.replace('/', '.')}.npy"
        if not self.is_new:
            return np.lib.format.open_memmap(file, mode="r+")
        array = np.lib.format.open_memmap(file, mode="w+", dtype=np.dtype(spec.dtype), shape=spec.shape)
        try:
            with open(file, "r+b") as opened:  # a full disk must show here: later it would be a bus error
                os.posix_fallocate(opened.fileno(), 0, max(1, os.path.getsize(file)))
        except OSError as error:
            raise errors.DataError(
                f"{file}: no room for a column of the replay buffer",
                expected=f"{array.nbytes / 2**30:.2f} GiB of disk",
                found=error,
                fix="lower the capacity, or give a folder on another disk",
            ) from error
        return array

    def _check(self, found: Mapping[str, Any], specs: Specs) -> None:
        ours = {"format": FORMAT, "columns": _described(specs)}
        if found == ours:
            return
        theirs = found.get("columns", {})
        rows = [
            f"{path}: {ours['columns'].get(path, 'absent')} here, {theirs.get(path, 'absent')} there"
            for path in sorted(ours["columns"].keys() | theirs.keys())
            if ours["columns"].get(path) != theirs.get(path)
        ]
        raise errors.DataError(
            f"{self._folder}: a replay buffer of other columns",
            expected=f"format {FORMAT}, the same rows and capacity",
            found="; ".join(rows[:8]) or f"format {found.get('format')}",
            fix="use the recipe that it was made with, or another folder",
        )


def _described(specs: Specs) -> dict[str, str]:
    return {path: f"{np.dtype(spec.dtype).name}{list(spec.shape)}" for path, spec in specs.items()}
