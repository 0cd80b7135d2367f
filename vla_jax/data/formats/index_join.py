"""The parts of an index laid end to end: numbers become those of the split, and text tables become one."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64

from vla_jax.core import errors
from vla_jax.data.formats import index_build
from vla_jax.data.formats.faults import Fault
from vla_jax.data.formats.index_build import Split

_PLACES = ("number", "start", "length")  # of a record
_SURVEYED = ("number", "num_steps", "columns/is_first", "columns/is_last")


def join(parts: Sequence[Path], split: Split, folder: Path) -> None:
    """Write the joined arrays and index.json into `folder`, with one part in memory at a time.

    Raises DataError when nothing usable is left, when a camera has no picture at all, or when the records of a split of
    steps are out of order.
    """
    kept, starts, faults, keys = _survey(parts, split)
    if len(starts) < 2:
        raise _no_episodes(split, faults)
    num_records = sum(int(mask.sum()) for mask in kept)
    writer = _Writer(folder, {"frames": int(starts[-1]), "episodes": len(starts) - 1, "records": num_records})
    texts: dict[str, dict[str, int]] = {name: {} for name, spec in split.specs.items() if spec.kind == "text"}
    pictures = {name: 0 for name, spec in split.specs.items() if spec.kind == "image"}
    for shard, (path, mask) in enumerate(zip(parts, kept, strict=True)):
        part = index_build.load(path)
        writer.append("record_shard", np.full(int(mask.sum()), shard, np.int32), "records")
        for name in _PLACES:
            writer.append(f"record_{name}", part.arrays[name][mask], "records")
        for name, spec in split.specs.items():
            axis = "frames" if spec.is_step else "episodes"
            for array in index_build.arrays_of(spec):
                rows = part.arrays[array]
                if split.one_record_per_step:
                    rows = rows[mask]
                if spec.kind == "text":
                    rows = _renumber(rows, part.texts[name], texts[name])
                if array.startswith("image_lengths/"):
                    pictures[name] += int(np.count_nonzero(rows))
                writer.append(array, rows, axis)
    for name, count in pictures.items():
        if not count:
            raise errors.DataError(
                f'{split.shards[0].path}, record 0: no key "{split.specs[name].key}"',
                expected=f"{split.specs[name]}, promised by features.json",
                found=", ".join(keys),
                fix="rebuild the set, or read other columns",
            )
    writer.save("episode_starts", starts)
    about = {
        "arrays": writer.close(),
        "texts": {name: list(table) for name, table in texts.items()},
        "faults": [dataclasses.asdict(fault) for fault in faults],
    }
    (folder / "index.json").write_text(json.dumps(about))


def episodes_of_steps(
    is_first: Bool[np.ndarray, "n"],
    is_last: Bool[np.ndarray, "n"],
    after_gap: Bool[np.ndarray, "n"],
    ends_in_gap: bool,
) -> tuple[Bool[np.ndarray, "n"], Int64[np.ndarray, "episodes_plus_one"]]:
    """Which steps belong to whole episodes, and where these start among the steps that do.

    `after_gap` marks steps before which records are missing; an episode that a gap cuts is left out. Raises ValueError
    when an episode is cut where no record is missing: then the steps are not in order.
    """
    if not len(is_first):
        return np.zeros(0, bool), np.zeros(1, np.int64)
    begins = is_first | after_gap
    begins[0] = True
    first = np.flatnonzero(begins)
    last = np.append(first[1:], len(begins)) - 1
    before_gap = np.append(after_gap[first[1:]], ends_in_gap)
    ends_inside = is_last.copy()
    ends_inside[last] = False
    lost = (~is_first[first] & ~after_gap[first]) | (~is_last[last] & ~before_gap)
    if lost.any() or ends_inside.any():
        where = int(first[lost][0]) if lost.any() else int(np.flatnonzero(ends_inside)[0])
        raise ValueError(f"step {where}: an episode does not run from is_first to is_last")
    whole = is_first[first] & is_last[last]
    lengths = last - first + 1
    return np.repeat(whole, lengths), np.concatenate([[0], np.cumsum(lengths[whole])]).astype(np.int64)


def _survey(
    parts: Sequence[Path], split: Split
) -> tuple[list[Bool[np.ndarray, "records"]], Int64[np.ndarray, "episodes_plus_one"], list[Fault], tuple[str, ...]]:
    """Which records of every part stay, the first frame of every episode, all faults, the keys of some record."""
    faults, keys, numbers, num_steps, flags = [], (), [], [], []
    for path in parts:
        part = index_build.load(path, _SURVEYED)
        faults += part.faults
        keys = keys or part.keys
        numbers.append(part.arrays["number"])
        num_steps.append(part.arrays["num_steps"])
        if split.one_record_per_step:
            flags.append((part.arrays["columns/is_first"], part.arrays["columns/is_last"]))
    if not split.one_record_per_step:
        starts = np.concatenate([[0], np.cumsum(np.concatenate(num_steps))]) if num_steps else np.zeros(1)
        return [np.ones(len(number), bool) for number in numbers], starts.astype(np.int64), faults, keys
    promised = [
        max(shard.num_records, number.max(initial=-1) + 1) for shard, number in zip(split.shards, numbers, strict=True)
    ]
    offsets = np.concatenate([[0], np.cumsum(promised)])
    places = np.concatenate([number + offset for number, offset in zip(numbers, offsets[:-1], strict=True)])
    after_gap = np.diff(places, prepend=-1) != 1
    try:
        mask, starts = episodes_of_steps(
            *(np.concatenate(flag) for flag in zip(*flags, strict=True)),
            after_gap,
            ends_in_gap=bool(len(places)) and int(places[-1]) != int(offsets[-1]) - 1,
        )
    except ValueError as error:
        raise errors.DataError(
            f"{split.place}: the records are single steps, and not in order",
            expected="every episode from is_first to is_last, one step after the other",
            found=str(error),
            fix="write the set again without shuffling, or with one record per episode",
        ) from error
    return np.split(mask, np.cumsum([len(number) for number in numbers])[:-1]), starts, faults, keys


def _renumber(ids: np.ndarray, strings: Sequence[str], table: dict[str, int]) -> np.ndarray:
    """Rows of a part's text table as rows of the split's `table`, which grows."""
    rows = np.array([table.setdefault(string, len(table)) for string in strings], np.int32)
    return rows[ids] if len(ids) else ids


class _Writer:
    """Arrays of known length, filled from the front, as numbered .npy files."""

    def __init__(self, folder: Path, sizes: dict[str, int]):
        self._folder, self._sizes = folder, sizes
        self._files: dict[str, str] = {}
        self._open: dict[str, np.memmap] = {}
        self._filled: dict[str, int] = {}

    def append(self, name: str, rows: np.ndarray, axis: str) -> None:
        if name not in self._open:
            shape = (self._sizes[axis], *rows.shape[1:])
            self._open[name] = np.lib.format.open_memmap(self._path(name), "w+", rows.dtype, shape)
            self._filled[name] = 0
        start = self._filled[name]
        self._open[name][start : start + len(rows)] = rows
        self._filled[name] = start + len(rows)

    def save(self, name: str, array: np.ndarray) -> None:
        np.save(self._path(name), array)

    def close(self) -> dict[str, str]:
        """The file of every array."""
        for name, array in self._open.items():
            if self._filled[name] != len(array):  # our mistake, and not the data's
                raise RuntimeError(f"{name}: {self._filled[name]} rows of {len(array)}")
            array.flush()
        return self._files

    def _path(self, name: str) -> Path:
        self._files[name] = f"array-{len(self._files):03d}.npy"
        return self._folder / self._files[name]


def _no_episodes(split: Split, faults: Sequence[Fault]) -> errors.DataError:
    if not faults:
        return errors.DataError(f"{split.place}: no episodes", expected="at least one")
    return errors.DataError(
        f"{faults[0].place}: {faults[0].reason}",
        expected="at least one usable episode in the split",
        found=f"none: {len(faults)} damaged records or files in {split.place}, of which this is the first",
        fix="check that features.json and dataset_info.json belong to these files, or copy them again",
    )
