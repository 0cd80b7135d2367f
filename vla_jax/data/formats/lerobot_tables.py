"""The columns of a LeRobot dataset as one index: read from parquet once, kept as memory maps in a cache folder.

Parquet cannot be mapped, and a frame's row is wanted thousands of times a second, so the numbers are copied out of it:
state and actions of 27 million frames are a few GB on disk and no memory. Pictures stay where they are.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, Int64

from vla_jax.core import errors
from vla_jax.data.formats.faults import Fault, FaultLog
from vla_jax.data.formats.lerobot_arrow import flat_numbers
from vla_jax.data.formats.lerobot_extra import pa, pq
from vla_jax.data.formats.lerobot_meta import Episodes, Feature, Info, load_tasks

_VERSION = 1  # of the index on disk
_TIME, _EPISODE, _TASK = "timestamp", "episode_index", "task_index"


@dataclasses.dataclass(frozen=True)
class EpisodeIndex:
    """The episodes that are whole, one after the other."""

    episode_starts: Int64[np.ndarray, "episodes_plus_one"]
    rows: Int64[np.ndarray, "episodes"]  # of `Episodes`: which of them these are
    first_row: Int64[np.ndarray, "episodes"]  # where the episode begins in its data file
    times: Float32[np.ndarray, "frames"]  # seconds since the start of the episode
    columns: dict[str, np.ndarray]
    text_ids: dict[str, Int32[np.ndarray, "n"]]  # rows of `texts`
    texts: dict[str, tuple[str, ...]]


def load_or_build(
    info: Info, episodes: Episodes, wanted: np.ndarray, features: Mapping[str, Feature], cache: Path, faults: FaultLog
) -> EpisodeIndex:
    """The index of the `wanted` rows of `episodes`, restricted to `features`.

    Files that are missing or damaged are added to `faults`, now or again on loading, and their episodes left out.
    Raises DataError when `faults` does not tolerate that.
    """
    folder = cache / _fingerprint(info, episodes, wanted, features)
    if not (folder / "index.json").is_file():
        _build(info, episodes, wanted, features, folder, faults)
        return _load(folder)[0]
    index, known = _load(folder)
    for fault in known:
        faults.add(fault)
    return index


class _Texts:
    """Distinct strings in order of appearance."""

    def __init__(self):
        self.table: dict[str, int] = {}

    def ids(self, array: pa.ChunkedArray) -> Int32[np.ndarray, "n"]:
        encoded = array.combine_chunks().dictionary_encode()
        if encoded.indices.null_count:
            raise ValueError("a text is null")
        return self.of(encoded.dictionary.to_pylist())[encoded.indices.to_numpy()]

    def of(self, texts: list[str]) -> Int32[np.ndarray, "n"]:
        return np.array([self.table.setdefault(text, len(self.table)) for text in texts], np.int32)


class _Files:
    """Arrays that grow on disk: one raw file per name, described in the end."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.described: dict[str, dict[str, Any]] = {}

    def append(self, name: str, values: np.ndarray) -> None:
        described = self.described.setdefault(
            name, {"file": f"{len(self.described):03d}.bin", "dtype": values.dtype.str, "shape": [0, *values.shape[1:]]}
        )
        with (self._folder / described["file"]).open("ab") as file:
            file.write(np.ascontiguousarray(values).data)
        described["shape"][0] += len(values)


def _build(
    info: Info, episodes: Episodes, wanted: np.ndarray, features: Mapping[str, Feature], folder: Path, faults: FaultLog
) -> None:
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.incomplete")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        description = _write(info, episodes, wanted, features, _Files(partial), faults)
        (partial / "index.json").write_text(json.dumps(description))
        try:
            os.replace(partial, folder)
        except OSError:  # another process finished the same index first; its content is equal
            if not (folder / "index.json").is_file():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(
    info: Info, episodes: Episodes, wanted: np.ndarray, features: Mapping[str, Feature], files: _Files, faults: FaultLog
) -> dict[str, Any]:
    """Append every whole episode to `files`, one data file at a time."""
    columns = {name: f for name, f in features.items() if f.storage == "column" and f.spec.is_step}
    texts = {name: _Texts() for name, f in features.items() if f.spec.kind == "text"}
    tasks = load_tasks(info) if any(f.key == _TASK for f in columns.values()) else {}
    known: list[Fault] = []

    def report(fault: Fault) -> None:
        known.append(fault)
        faults.add(fault)

    wanted = _with_videos(episodes, wanted, features, report)
    kept_rows: list[int] = []
    lengths: list[int] = []
    for file, rows in _by_file(episodes.data.file, wanted):
        path = episodes.data.paths[file]
        try:
            values, runs = _read_file(path, columns, tasks, texts)
        except FileNotFoundError:
            report(Fault("missing file", str(path), "no such file"))
            continue
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            report(Fault("truncated shard", str(path), str(error).splitlines()[0]))
            continue
        for row in rows.tolist():
            start, stop = runs.get(int(episodes.ids[row]), (0, 0))
            if stop - start != episodes.lengths[row] or stop == start:
                place = f"{path}, episode {episodes.ids[row]}"
                reason = f"{stop - start} rows in one piece where the episodes table says {episodes.lengths[row]}"
                report(Fault("corrupt record", place, reason))
                continue
            for name, column in values.items():
                files.append(name, column[start:stop])
            files.append("first_row", np.array([start]))
            kept_rows.append(row)
            lengths.append(stop - start)
    if not kept_rows:
        raise errors.DataError(
            f"{info.folder}: no whole episodes",
            expected="at least one",
            found=f"{len(known)} faults, first {known[0].place}: {known[0].reason}" if known else "none in this split",
        )
    files.append("rows", np.array(kept_rows, np.int64))
    files.append("episode_starts", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    for name, feature in features.items():
        if not feature.spec.is_step:
            column = episodes.extra[feature.key].take(pa.array(kept_rows, pa.int64()))
            files.append(_file(name), _values(column, feature, {}, texts))
    return {
        "arrays": files.described,
        "texts": {name: list(distinct.table) for name, distinct in texts.items()},
        "faults": [dataclasses.asdict(fault) for fault in known],
    }


def _read_file(
    path: Path, columns: Mapping[str, Feature], tasks: Mapping[int, str], texts: Mapping[str, _Texts]
) -> tuple[dict[str, np.ndarray], dict[int, tuple[int, int]]]:
    """The arrays of a data file by their name in the index, and the rows [start, stop) of every episode in it."""
    with pq.ParquetFile(path) as file:
        table = file.read(columns=[_TIME, _EPISODE, *(feature.key for feature in columns.values())])
    values = {_TIME: flat_numbers(table[_TIME], ()).astype(np.float32)}
    for name, feature in columns.items():
        values[_file(name)] = _values(table[feature.key], feature, tasks, texts)
    numbers = flat_numbers(table[_EPISODE], ())
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    stops = np.append(starts[1:], len(numbers))
    return values, dict(zip(numbers[starts].tolist(), zip(starts.tolist(), stops.tolist(), strict=True), strict=True))


def _values(
    column: pa.ChunkedArray, feature: Feature, tasks: Mapping[int, str], texts: Mapping[str, _Texts]
) -> np.ndarray:
    if feature.key == _TASK:
        numbers, rows = np.unique(flat_numbers(column, ()), return_inverse=True)
        unknown = [number for number in numbers.tolist() if number not in tasks]
        if unknown:
            raise ValueError(f"task_index {unknown[0]} is not in the table of tasks")
        return texts[feature.spec.name].of([tasks[number] for number in numbers.tolist()])[rows]
    if feature.spec.kind == "text":
        return texts[feature.spec.name].ids(column)
    return flat_numbers(column, feature.spec.shape).astype(feature.spec.stored_dtype)


def _with_videos(
    episodes: Episodes, wanted: np.ndarray, features: Mapping[str, Feature], report: Callable[[Fault], None]
) -> np.ndarray:
    """Those of the `wanted` episodes whose video files are all there."""
    for name in (name for name, feature in features.items() if feature.storage == "video"):
        places = episodes.videos[name]
        missing = [file for file in np.unique(places.file[wanted]).tolist() if not places.paths[file].is_file()]
        for file in missing:
            report(Fault("missing file", str(places.paths[file]), "no such file"))
        wanted = wanted[~np.isin(places.file[wanted], missing)]
    return wanted


def _by_file(file: np.ndarray, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The wanted rows of one file after the other, in the order in which the files are first wanted."""
    changes = np.flatnonzero(np.diff(file[wanted])) + 1
    for rows in np.split(wanted, changes):
        if rows.size:
            yield int(file[rows[0]]), rows


def _file(name: str) -> str:
    return f"feature {name}"


def _fingerprint(info: Info, episodes: Episodes, wanted: np.ndarray, features: Mapping[str, Feature]) -> str:
    """Of everything the index depends on: a file that changes, appears or goes makes another index."""

    def state(path: Path) -> tuple[int, int] | None:
        try:
            found = path.stat()
        except FileNotFoundError:
            return None
        return found.st_size, found.st_mtime_ns

    used = [episodes.data, *(episodes.videos[name] for name, f in features.items() if f.storage == "video")]
    paths = [places.paths[file] for places in used for file in np.unique(places.file[wanted]).tolist()]
    paths += sorted(path for path in (info.folder / "meta").rglob("*") if path.is_file())
    text = json.dumps(
        [
            _VERSION,
            [(str(path.resolve()), state(path)) for path in paths],
            wanted.tolist(),
            [(name, feature.key, dataclasses.astuple(feature.spec)) for name, feature in features.items()],
        ]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _load(folder: Path) -> tuple[EpisodeIndex, list[Fault]]:
    stored = json.loads((folder / "index.json").read_text())

    def array(name: str) -> np.ndarray:
        described = stored["arrays"][name]
        shape = tuple(described["shape"])
        if 0 in shape:  # nothing to map
            return np.zeros(shape, described["dtype"])
        return np.memmap(folder / described["file"], described["dtype"], "r", shape=shape)

    names = [name.removeprefix(_file("")) for name in stored["arrays"] if name.startswith(_file(""))]
    index = EpisodeIndex(
        episode_starts=array("episode_starts"),
        rows=array("rows"),
        first_row=array("first_row"),
        times=array(_TIME),
        columns={name: array(_file(name)) for name in names if name not in stored["texts"]},
        text_ids={name: array(_file(name)) for name in stored["texts"]},
        texts={name: tuple(texts) for name, texts in stored["texts"].items()},
    )
    return index, [Fault(**fault) for fault in stored["faults"]]
