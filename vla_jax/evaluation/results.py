"""Numbers on disk: `results/<table>/<run>.json`, one entry per cell that the run filled.

    {"format": 1,
     "entries": [{"table": "demo", "row": "fine_tuned", "cell": "success_rate", "metric": "success_rate",
                  "seeds": [0], "episodes": 256, "mean": 0.76, "interval": [0.70, 0.81],
                  "records": {"success": [true, ...], "returns": [0.9, ...], "length": [31, ...],
                              "instruction": [2, ...], "initial_state": ["tabletop:00ab...", ...]},
                  "manifest": {"git": {"commit": ..., "dirty": false}, ...}}]}

`records` holds one value per episode; equal `initial_state` entries mean equal initial states, which is what
`compare.py` pairs by.
"""

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_jax.core import errors
from vla_jax.evaluation import statistics
from vla_jax.evaluation.rollouts import Episodes

FORMAT = 1
_TYPES = {
    "table": str,
    "row": str,
    "cell": str,
    "seeds": list,
    "episodes": int,
    "mean": (int, float),
    "interval": list,
    "manifest": dict,
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One filled cell of a table."""

    table: str
    row: str
    cell: str  # name of the column
    seeds: tuple[int, ...]
    episodes: int
    mean: float
    interval: statistics.Interval  # 95 %
    manifest: Mapping[str, Any]
    metric: str = "success_rate"
    records: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)  # per episode, by name

    def __post_init__(self):
        place = f"result {self.table}/{self.row}/{self.cell}"
        for name, values in self.records.items():
            if len(values) != self.episodes:
                raise errors.DataError(place, expected=f"{self.episodes} values of {name!r}", found=len(values))
        if not all(math.isfinite(value) for value in (self.mean, *self.interval)):
            raise errors.DataError(place, expected="finite mean and interval", found=f"{self.mean}, {self.interval}")
        if not self.interval.low <= self.interval.high:
            raise errors.DataError(place, expected="interval [low, high]", found=list(self.interval))


def from_episodes(
    episodes: Episodes, *, table: str, row: str, cell: str, seed: int, env_name: str, manifest: Mapping[str, Any]
) -> Entry:
    """The success rate of one evaluation with its Wilson interval and the record of every episode."""
    success = np.asarray(episodes.success)
    return Entry(
        table=table,
        row=row,
        cell=cell,
        seeds=(seed,),
        episodes=success.size,
        mean=float(success.mean()),
        interval=statistics.wilson(int(success.sum()), success.size),
        manifest=manifest,
        records={
            "success": success.tolist(),
            "returns": np.asarray(episodes.returns, np.float64).round(6).tolist(),
            "length": np.asarray(episodes.length).tolist(),
            "instruction": np.asarray(episodes.instruction).tolist(),
            "shown_instruction": np.asarray(episodes.shown_instruction).tolist(),
            "initial_state": [f"{env_name}:{data.tobytes().hex()}" for data in np.asarray(episodes.initial_key)],
        },
    )


def append(folder: Path, run: str, entries: Iterable[Entry]) -> tuple[Path, ...]:
    """Add entries to `folder/<table>/<run>.json` and return the files.

    An entry with the row, cell and seeds of an older one replaces it. Files are written under a temporary name and
    renamed, so a reader or a crash never sees half of one; two processes must not append to the same run.
    """
    by_table: dict[str, list[Entry]] = {}
    for entry in entries:
        by_table.setdefault(entry.table, []).append(entry)
    paths = []
    for table, added in by_table.items():
        path = Path(folder) / table / f"{run}.json"
        replaced = {_identity(entry) for entry in added}
        kept = [entry for entry in (load(path) if path.exists() else ()) if _identity(entry) not in replaced]
        _write_atomically(path, {"format": FORMAT, "entries": [_to_json(entry) for entry in (*kept, *added)]})
        paths.append(path)
    return tuple(paths)


def load(path: Path) -> tuple[Entry, ...]:
    """The entries of one file. Raises DataError naming the entry and key that do not fit the format."""
    path = Path(path)
    if not path.is_file():
        raise errors.DataError(f"no results file {path}", fix="pass a file below results/<table>/")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise errors.DataError(f"{path}: not JSON", found=error) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("entries"), list):
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise errors.DataError(
            f"{path}: not a results file", expected=f'{{"format": {FORMAT}, "entries": [...]}}', found=found
        )
    return tuple(_from_json(f"{path}, entry {i}", value) for i, value in enumerate(content["entries"]))


def load_table(folder: Path, table: str) -> tuple[Entry, ...]:
    """The entries of every run of a table, oldest run name first; none when nothing was run."""
    return tuple(entry for path in sorted((Path(folder) / table).glob("*.json")) for entry in load(path))


def _identity(entry: Entry) -> tuple:
    return entry.row, entry.cell, entry.seeds


def _to_json(entry: Entry) -> dict[str, Any]:
    return {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry)}


def _from_json(place: str, value: Any) -> Entry:
    if not isinstance(value, dict):
        raise errors.DataError(place, expected="an object", found=type(value).__name__)
    for key, kind in _TYPES.items():
        if not isinstance(value.get(key), kind) or isinstance(value.get(key), bool):
            expected = kind.__name__ if isinstance(kind, type) else "number"
            found = f"{type(value[key]).__name__} {value[key]!r}" if key in value else f"keys {sorted(value)}"
            raise errors.DataError(f"{place}: {key!r}", expected=expected, found=found)
    ends = value["interval"]
    if len(ends) != 2 or not all(isinstance(end, int | float) for end in ends):
        raise errors.DataError(f"{place}: 'interval'", expected="[low, high]", found=ends)
    known = {field.name for field in dataclasses.fields(Entry)}
    if unknown := sorted(set(value) - known):
        raise errors.DataError(f"{place}: unknown keys", expected=sorted(known), found=unknown)
    return Entry(**{**value, "seeds": tuple(value["seeds"]), "interval": statistics.Interval(*ends)})


def _write_atomically(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # mkstemp makes it private
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
