"""Which frames of which episodes are worth sampling, as ranges by episode key: the format of openpi's idle filter.

One JSON object in a file. A range is half open, in steps of its episode; an episode that is not named keeps nothing:

    {"<recording_folderpath>--<file_path>": [[0, 57], [80, 143]], ...}

The key of an episode joins what the set has of `recording_folderpath`, `file_path` and `episode_id`: a set with file
paths alone is keyed by those, and Bridge, which has many episodes per file, by file and number.
"""

import collections
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64

from vla_jax.core import errors
from vla_jax.data.formats.episodes import EpisodeDataset

KEY_FEATURES = (
    "episode_metadata/recording_folderpath",
    "episode_metadata/file_path",
    "episode_metadata/episode_id",
)
Ranges = Mapping[str, Sequence[tuple[int, int]]]  # episode key -> [start, stop) in steps


def episode_keys(dataset: EpisodeDataset) -> tuple[str, ...]:
    """The key of every episode, in order. Raises DataError when the set has none of the features."""
    names = [name for name in KEY_FEATURES if name in dataset.specs]
    if not names:
        raise errors.DataError(
            f"{dataset.place}: episodes have no names that ranges could refer to",
            expected=" or ".join(KEY_FEATURES),
            found=", ".join(sorted(name for name, spec in dataset.specs.items() if not spec.is_step)) or "no metadata",
        )
    parts = [_words(dataset, name) for name in names]
    return tuple("--".join(texts) for texts in zip(*parts, strict=True))


def frame_mask(dataset: EpisodeDataset, ranges: Ranges, place: str = "kept frames") -> Bool[np.ndarray, "frames"]:
    """True for the frames that the ranges keep; what reaches past the end of an episode is cut off.

    Raises DataError, naming `place`, when no episode of the set is named (then the ranges are of another set), or when
    a named one shares its key with another.
    """
    keys, starts = episode_keys(dataset), np.asarray(dataset.episode_starts)
    counts = collections.Counter(keys)
    if shared := [key for key in ranges if counts[key] > 1]:
        raise errors.DataError(
            f"{place}: {shared[0]!r} is not one episode of {dataset.place}",
            expected="a key that only one episode has",
            found=f"{counts[shared[0]]} episodes with it",
        )
    if not any(key in ranges for key in keys):
        raise errors.DataError(
            f"{place}: names no episode of {dataset.place}",
            expected=f"keys like {keys[0]!r}",
            found=f"{len(ranges)} episodes, such as {next(iter(ranges), '(none)')!r}",
            fix="use the ranges of this set, or compute them",
        )
    mask = np.zeros(dataset.num_frames, bool)
    for key, begin, end in zip(keys, starts[:-1], starts[1:], strict=True):
        for start, stop in ranges.get(key, ()):
            mask[begin + start : min(begin + stop, end)] = True
    return mask


def mask_ranges(mask: Bool[np.ndarray, "t"]) -> Int64[np.ndarray, "ranges 2"]:
    """The maximal runs of True as [start, stop) pairs."""
    edges = np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8))
    return np.stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)], axis=1)


def _words(dataset: EpisodeDataset, name: str) -> list[str]:
    if dataset.specs[name].kind == "text":
        return [dataset.texts(name)[i] for i in dataset.text_ids(name)]
    return [str(number) for number in np.asarray(dataset.columns[name]).tolist()]


def save(path: str | Path, ranges: Ranges) -> None:
    """Write the ranges; the file appears whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.incomplete")
    partial.write_text(json.dumps({key: [[int(a), int(b)] for a, b in pairs] for key, pairs in ranges.items()}))
    os.replace(partial, path)


def load(path: str | Path) -> dict[str, list[tuple[int, int]]]:
    """Read ranges that `save` or openpi's script wrote. Raises DataError when the file is missing or says otherwise."""
    path = Path(path)
    expected = 'an object of [start, stop] lists by episode key, such as {"<folder>--<file>": [[0, 57]]}'
    if not path.is_file():
        raise errors.DataError(f"{path}: no kept frames", expected=expected, found="no such file")
    try:
        stored = json.loads(path.read_text())
        ranges = {key: [(int(start), int(stop)) for start, stop in pairs] for key, pairs in stored.items()}
    except (json.JSONDecodeError, AttributeError, TypeError, ValueError) as error:
        raise errors.DataError(f"{path}: not kept frames", expected=expected, found=repr(error)) from error
    for key, pairs in ranges.items():
        if any(not 0 <= start <= stop for start, stop in pairs):
            raise errors.DataError(f"{path}: {key!r}", expected="0 <= start <= stop", found=pairs)
    return ranges
