"""Where every frame of an RLDS split lies, and its low-dimensional columns, built once and kept as .npy files.

Building walks the wire format of every record and checks its checksum; afterwards one frame costs one slice per camera.

    <cache>/<dataset>-<split>-<hash of its folder>/      or <dataset folder>/.vla_jax_index/<split>/
        <hash of the features>/specs.json
        <hash of the features>/parts/<fingerprint>.npz   one per shard: a build that was killed goes on from here
        <hash of the features>/<fingerprint>/*.npy       the parts joined, memory-mapped when read

A fingerprint is made of the file's name, size and modification time, and the number of records it should hold. A shard
that changed gets a new part, and the others keep theirs.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64, UInt32

from vla_jax.core import files
from vla_jax.data.formats import index_build, index_join, index_workers
from vla_jax.data.formats.faults import Fault, FaultLog
from vla_jax.data.formats.index_build import Split
from vla_jax.data.formats.index_workers import Job
from vla_jax.data.formats.records import RecordPlaces, Shard
from vla_jax.data.formats.specs import FeatureSpec

Progress = Callable[[int, int], None]  # shards done, shards in all
_VERSION = 3  # raise it when the arrays change their meaning
_BYTES_WITHOUT_WORKERS = 256 << 20  # read in this process: starting others takes as long


@dataclasses.dataclass(frozen=True)
class FrameIndex:
    """Arrays over the frames (axis 0, episodes one after the other), the episodes or the records of a split."""

    episode_starts: Int64[np.ndarray, "episodes_plus_one"]  # frame numbers; the last entry is the number of frames
    records: RecordPlaces  # one per episode, or one per frame
    one_record_per_step: bool
    columns: Mapping[str, np.ndarray]  # per frame [frames, ...], or per episode [episodes, ...]
    text_ids: Mapping[str, Int32[np.ndarray, "frames"]]  # rows of `texts`
    texts: Mapping[str, tuple[str, ...]]
    image_offsets: Mapping[str, UInt32[np.ndarray, "frames"]]  # in the payload of the record
    image_lengths: Mapping[str, UInt32[np.ndarray, "frames"]]  # 0 where there is no picture
    faults: tuple[Fault, ...]


def load_or_build(
    split: Split,
    folder: Path,
    log: FaultLog,
    *,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> FrameIndex:
    """The index of a split, from `folder` or put there.

    What is damaged is left out and goes to `log`, now and whenever the index is loaded. Raises DataError when the log
    does not tolerate it, when nothing usable is left, or when a worker process fails.
    """
    found = find(split, folder)
    if found is None:
        found = _build(split, folder / _hash_specs(split), log, num_workers or _num_cores(), progress)
    index = _load(found, split)
    for fault in index.faults:
        log.add(fault)
    return index


def find(split: Split, folder: Path) -> Path | None:
    """An index of these files with at least these features, or None."""
    exact = folder / _hash_specs(split)
    for candidate in (exact, *(sorted(folder.iterdir()) if folder.is_dir() else ())):
        joined = candidate / _hash_shards(split)
        if (joined / "index.json").is_file() and (candidate / "specs.json").is_file():
            stored = {spec["name"]: spec for spec in json.loads((candidate / "specs.json").read_text())}
            if all(stored.get(name) == _as_json(spec) for name, spec in split.specs.items()):
                return joined
    return None


def _build(split: Split, folder: Path, log: FaultLog, num_workers: int, progress: Progress | None) -> Path:
    paths = {i: folder / "parts" / f"{_fingerprint(shard)}.npz" for i, shard in enumerate(split.shards)}
    waiting = [i for i, path in paths.items() if not path.is_file()]
    waiting.sort(key=lambda i: -_size(split.shards[i]))  # the largest first, so that workers end together
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / "specs.json", json.dumps([_as_json(spec) for spec in split.specs.values()]))
    jobs = [Job(split.shards[i], paths[i]) for i in waiting]
    for count, number in enumerate(_parts(jobs, tuple(split.specs.values()), num_workers), len(paths) - len(jobs) + 1):
        for fault in index_build.load(jobs[number].part, names=()).faults:
            log.add(fault)
        if progress is not None:
            progress(count, len(paths))
    target = folder / _hash_shards(split)
    partial = target.with_name(f"{target.name}.{os.getpid()}.incomplete")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        index_join.join([paths[i] for i in range(len(paths))], split, partial)
        _rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _remove_stale(folder, target, set(paths.values()))
    return target


def _parts(jobs: Sequence[Job], specs: Sequence[FeatureSpec], num_workers: int) -> Iterator[int]:
    """Build parts here or in worker processes; yields the number of each job when it is done."""
    num_workers = min(num_workers, len(jobs))
    if num_workers > 1 and sum(_size(job.shard) for job in jobs) > _BYTES_WITHOUT_WORKERS:
        yield from index_workers.run(jobs, specs, num_workers)
        return
    for number, job in enumerate(jobs):
        index_build.save(index_build.build(job.shard, specs), job.part)
        yield number


def _load(folder: Path, split: Split) -> FrameIndex:
    about = json.loads((folder / "index.json").read_text())

    def load(file: str) -> np.ndarray:
        return np.asarray(np.load(folder / file, mmap_mode="r"))  # a plain array over the map: it slices faster

    arrays = {name: load(file) for name, file in about["arrays"].items()}

    def group(prefix: str, kind: str) -> dict[str, np.ndarray]:
        return {name: arrays[f"{prefix}/{name}"] for name, spec in split.specs.items() if spec.kind == kind}

    return FrameIndex(
        episode_starts=arrays["episode_starts"],
        records=RecordPlaces(
            arrays["record_shard"], arrays["record_number"], arrays["record_start"], arrays["record_length"]
        ),
        one_record_per_step=split.one_record_per_step,
        columns=group("columns", "tensor"),
        text_ids=group("text_ids", "text"),
        texts={name: tuple(texts) for name, texts in about["texts"].items() if name in split.specs},
        image_offsets=group("image_offsets", "image"),
        image_lengths=group("image_lengths", "image"),
        faults=tuple(Fault(**fault) for fault in about["faults"]),
    )


def _rename(partial: Path, target: Path) -> None:
    try:
        os.replace(partial, target)
    except OSError:  # another process finished the same index first; its content is equal
        if not (target / "index.json").is_file():
            raise


def _remove_stale(folder: Path, target: Path, parts: set[Path]) -> None:
    """What older states of the files left behind. A reader that still maps it keeps its pages."""
    for path in (folder / "parts").glob("*.npz"):
        if path not in parts:
            path.unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_dir() and (path / "index.json").is_file() and path != target:
            shutil.rmtree(path, ignore_errors=True)


def _as_json(spec: FeatureSpec) -> dict:
    return {**dataclasses.asdict(spec), "shape": list(spec.shape)}


def _hash_specs(split: Split) -> str:
    specs = sorted((_as_json(spec) for spec in split.specs.values()), key=lambda spec: spec["name"])
    return _digest([_VERSION, split.one_record_per_step, specs])


def _hash_shards(split: Split) -> str:
    return _digest([_fingerprint(shard) for shard in split.shards])


def _fingerprint(shard: Shard) -> str:
    """Changes when the file does; not when the whole set is moved."""
    try:
        stat = shard.path.stat()
    except FileNotFoundError:
        return _digest([_VERSION, shard.path.name, shard.num_records, None])
    return _digest([_VERSION, shard.path.name, shard.num_records, stat.st_size, stat.st_mtime_ns])


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]


def _size(shard: Shard) -> int:
    return shard.path.stat().st_size if shard.path.is_file() else 0


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def folder_name(name: str, split: str, folder: Path) -> str:
    """Of the index of a split, unique in a cache that several sets share."""
    return f"{name}-{split}-{_digest(str(folder.resolve()))[:12]}"
