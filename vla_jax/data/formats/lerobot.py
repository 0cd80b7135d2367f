"""LeRobot datasets read in place, v2.1 and v3.0, without torch: parquet columns, pictures from videos or from parquet.

    dataset = LeRobotDataset("data/pusht", split="train")
    dataset.columns["action"]                                   # float32 [frames, a], all episodes one after the other
    dataset.read_images(frames, "observation/front", out)

`lerobot_meta` says how names are translated.
"""

import collections
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from vla_jax.core import errors
from vla_jax.data.formats import image_codec, lerobot_meta, lerobot_tables
from vla_jax.data.formats.episodes import assemble
from vla_jax.data.formats.faults import SKIP_AND_COUNT, Fault, FaultLog, FaultPolicy
from vla_jax.data.formats.indexed import IndexedEpisodes
from vla_jax.data.formats.lerobot_extra import pa, pq
from vla_jax.data.formats.specs import Episode, FeatureSpec
from vla_jax.data.formats.video import VideoError, VideoReader

_BYTES_KEPT = 256 << 20  # row groups of encoded pictures in memory: neighbours of a frame are often asked for next


class LeRobotDataset(IndexedEpisodes):
    """One split of a dataset, an `EpisodeDataset`. Safe to share between threads."""

    def __init__(
        self,
        folder: str | Path,
        split: str = "train",
        *,
        names: Sequence[str] | None = None,
        cache_folder: str | Path | None = None,
        faults: FaultPolicy = SKIP_AND_COUNT,
    ):
        """`folder` holds data, meta and videos. The splits are those of info.json; "all" is every episode, and so is
        "train" where info.json does not define it. `names` restricts the index to some features. The index goes to
        `cache_folder`, by default `$XDG_CACHE_HOME/vla_jax/lerobot`. Raises DataError."""
        self.folder, self.split = Path(folder), split
        self.info = lerobot_meta.load_info(self.folder)
        self._episodes = lerobot_meta.load_episodes(self.info)
        wanted = _split_rows(self.info, self._episodes.ids, split)
        features = {**self.info.features, **lerobot_meta.episode_features(self._episodes.extra)}
        self._features = _select(features, names, self.place)
        self.specs: Mapping[str, FeatureSpec] = {name: feature.spec for name, feature in self._features.items()}
        self.faults = FaultLog(faults)
        cache = Path(cache_folder) if cache_folder else _default_cache_folder()
        self._index = lerobot_tables.load_or_build(
            self.info, self._episodes, wanted, self._features, cache, self.faults
        )
        self._videos = VideoReader()
        self._pictures = _EncodedPictures()

    @property
    def place(self) -> str:
        return f"{self.folder}, split {self.split}"

    @property
    def fps(self) -> float:
        """Control steps per second."""
        return self.info.fps

    def describe_frame(self, frame: int) -> str:
        """The place of a frame, for an error: data file, episode, step."""
        episode = int(self.episode_of(np.asarray(frame)))
        row = int(self._index.rows[episode])
        path = self._episodes.data.paths[int(self._episodes.data.file[row])]
        return f"{path}, episode {self._episodes.ids[row]}, step {frame - int(self.episode_starts[episode])}"

    def image_shape(self, name: str) -> tuple[int, int, int]:
        """Height, width and channels, as info.json has them."""
        return self.specs[name].shape

    def is_encoded(self, name: str) -> bool:
        """Whether a camera's pictures are kept one by one, as JPEG or PNG, and not as a video."""
        return self._features[name].storage == "image"

    def image_bytes(self, frame: int, name: str) -> bytes:
        """The picture of an encoded camera as it is stored, JPEG or PNG. Raises ValueError when it cannot be read."""
        episode = int(self.episode_of(np.asarray(frame)))
        row = int(self._index.rows[episode])
        path = self._episodes.data.paths[int(self._episodes.data.file[row])]
        line = int(self._index.first_row[episode]) + frame - int(self.episode_starts[episode])
        return self._pictures.read(path, self._features[name].key, line)

    def read_images(
        self, frames: Int64[np.ndarray, "n"], name: str, out: Sequence[UInt8[np.ndarray, "height width 3"]]
    ) -> Bool[np.ndarray, "n"]:
        """Decode the picture of each frame into that of `out`; False where one is damaged (the fault is logged, it
        becomes black). Raises DataError when `faults` does not tolerate it.

        Pictures in parquet are read a row group at a time; sets that are sampled at random for long train faster after
        a conversion.
        """
        frames = np.asarray(frames)
        read = self._read_encoded if self.is_encoded(name) else self._read_videos
        failures = read(frames, name, out)
        ok = np.ones(len(frames), bool)
        ok[list(failures)] = False
        for row, fault in failures.items():
            out[row][...] = 0
            self.faults.add(fault)
        return ok

    def episode(self, i: int) -> Episode:
        """Episode `i` with every indexed feature, images decoded, texts as strings."""
        if not 0 <= i < len(self):
            raise IndexError(f"episode {i} of {len(self)}")
        frames = np.arange(*self.episode_starts[i : i + 2])
        pictures = {}
        for name in self.cameras:
            pictures[name] = np.zeros((len(frames), *self.specs[name].shape), np.uint8)
            self.read_images(frames, name, pictures[name])
        return assemble(self, self.specs, i, pictures)

    def _read_videos(self, frames: np.ndarray, name: str, out: Sequence[np.ndarray]) -> dict[int, Fault]:
        places = self._episodes.videos[name]
        rows = self._index.rows[self.episode_of(frames)]
        times = places.offset[rows] + self._index.times[frames]
        files = places.file[rows]
        failures: dict[int, Fault] = {}
        for file in np.unique(files).tolist():
            chosen = np.flatnonzero(files == file)
            path = places.paths[file]
            try:
                failed = self._videos.read(path, times[chosen], out, chosen)
            except VideoError as error:
                kind = "truncated shard" if path.is_file() else "missing file"
                failures |= dict.fromkeys(chosen.tolist(), Fault(kind, str(path), str(error)))
                continue
            for row, reason in failed.items():
                place = f'{self.describe_frame(int(frames[row]))}, "{name}" in {path}'
                failures[row] = Fault("bad image", place, reason)
        return failures

    def _read_encoded(self, frames: np.ndarray, name: str, out: Sequence[np.ndarray]) -> dict[int, Fault]:
        failures: dict[int, Fault] = {}
        for row in np.argsort(frames, kind="stable").tolist():
            try:
                image_codec.decode(self.image_bytes(int(frames[row]), name), out[row])
            except (ValueError, OSError) as error:
                place = f'{self.describe_frame(int(frames[row]))}, "{name}"'
                failures[row] = Fault("bad image", place, str(error))
        return failures


class _EncodedPictures:
    """Encoded pictures by file, column and row; the row groups used last stay in memory."""

    def __init__(self):
        self._groups: collections.OrderedDict[tuple[Path, str, int], pa.Array] = collections.OrderedDict()
        self._starts: dict[Path, np.ndarray] = {}  # first row of every row group
        self._lock = threading.Lock()

    def read(self, path: Path, key: str, row: int) -> bytes:
        """Raises ValueError when the file or the row holds no picture."""
        with self._lock:
            if path not in self._starts:
                self._starts[path] = self._group_starts(path)
            group = int(np.searchsorted(self._starts[path], row, side="right")) - 1
            cell = self._group(path, key, group)[row - int(self._starts[path][group])].as_py()
        if cell is None or cell["bytes"] is None:
            raise ValueError("the picture is not in the file" + (f" but in {cell['path']}" if cell else ""))
        return cell["bytes"]

    def _group(self, path: Path, key: str, group: int) -> pa.Array:
        if (path, key, group) not in self._groups:
            try:
                with pq.ParquetFile(path) as file:
                    column = file.read_row_group(group, columns=[key])[key].combine_chunks()
            except (pa.ArrowException, OSError, KeyError) as error:
                raise ValueError(str(error).splitlines()[0]) from error
            self._groups[path, key, group] = column
            while len(self._groups) > 1 and sum(kept.nbytes for kept in self._groups.values()) > _BYTES_KEPT:
                self._groups.popitem(last=False)
        self._groups.move_to_end((path, key, group))
        return self._groups[path, key, group]

    @staticmethod
    def _group_starts(path: Path) -> np.ndarray:
        try:
            metadata = pq.read_metadata(path)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(str(error).splitlines()[0]) from error
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        return np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)


def _default_cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vla_jax" / "lerobot"


def _split_rows(info: lerobot_meta.Info, ids: np.ndarray, split: str) -> Int64[np.ndarray, "episodes"]:
    if split in info.splits:
        first, stop = info.splits[split]
        return np.flatnonzero((ids >= first) & (ids < stop))
    if split in ("all", "train"):
        return np.arange(len(ids))
    raise errors.DataError(f"{info.folder}: no split {split!r}", fix=errors.closest(split, [*info.splits, "all"]))


def _select(
    features: Mapping[str, lerobot_meta.Feature], names: Sequence[str] | None, place: str
) -> dict[str, lerobot_meta.Feature]:
    for name in names or ():
        if name not in features:
            raise errors.DataError(
                f'{place}: no key "{name}"', found=", ".join(sorted(features)), fix=errors.closest(name, features)
            )
    return dict(features) if names is None else {name: features[name] for name in dict.fromkeys(names)}
