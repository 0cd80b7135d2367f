"""A folder that appears under its name only when it is complete, and may be gone on with after a stop.

    <folder>.incomplete/                what is being written
    <folder>.incomplete/progress.json   which files of it are finished, and what their writer has to know to go on

The progress file is replaced whenever some files are finished, never before they are closed. After a stop, whatever is
not finished is thrown away, so the rest is written as if nothing had happened.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_jax.core import errors, files

_PROGRESS = "progress.json"


class PartialFolder:
    """One folder in the making; `path` is where to write."""

    def __init__(self, folder: str | Path, identity: str | None = None):
        """`identity` changes when something else is written; without one, what a stopped writer left is never gone on
        with. Raises DataError when `folder` already holds something."""
        self.folder, self._identity = Path(folder), identity
        if self.folder.exists() and any(self.folder.iterdir()):
            raise errors.DataError(
                f"{self.folder}: a dataset is never written over",
                found=", ".join(sorted(p.name for p in self.folder.iterdir())[:4]),
                fix="choose another folder or version, or delete this one",
            )
        self.path = self.folder.with_name(self.folder.name + ".incomplete")
        self._has_progress = False

    def begin(self) -> Mapping[str, Any]:
        """What was last given to `keep` by a writer of the same identity, its files alone being there; nothing, and an
        empty folder, where there is none or its files are no longer whole."""
        progress = self._read()
        if progress is None:
            shutil.rmtree(self.path, ignore_errors=True)
            self.path.mkdir(parents=True)
            return {}
        for file in self._files():
            if str(file.relative_to(self.path)) not in {*progress["files"], _PROGRESS}:
                file.unlink()
        self._has_progress = True
        return progress["notes"]

    def keep(self, notes: Mapping[str, Any]) -> None:
        """Every file in the folder is finished; `notes`, JSON values, say how to go on."""
        if self._identity is None:
            return
        sizes = {str(file.relative_to(self.path)): file.stat().st_size for file in self._files()}
        sizes.pop(_PROGRESS, None)
        progress = {"identity": self._identity, "files": sizes, "notes": notes}
        files.write_text(self.path / _PROGRESS, json.dumps(progress))
        self._has_progress = True

    def complete(self) -> None:
        """Everything is written: the folder gets its name."""
        (self.path / _PROGRESS).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self.folder.rmdir()  # an empty folder may stand in the way
        os.replace(self.path, self.folder)

    def abandon(self) -> None:
        """Writing stopped: what is finished stays, and where nothing is, nothing does."""
        if not self._has_progress:
            shutil.rmtree(self.path, ignore_errors=True)

    def _files(self) -> list[Path]:
        return [file for file in self.path.rglob("*") if file.is_file()]

    def _read(self) -> dict[str, Any] | None:
        path = self.path / _PROGRESS
        if self._identity is None or not path.is_file():
            return None
        progress = json.loads(path.read_text())  # whole: it was renamed into place
        is_whole = all(
            (self.path / name).is_file() and (self.path / name).stat().st_size == size
            for name, size in progress["files"].items()
        )
        return progress if progress["identity"] == self._identity and is_whole else None
