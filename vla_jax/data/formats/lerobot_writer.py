"""Episodes become a LeRobot v3.0 dataset that lerobot itself opens: parquet columns, and videos or encoded pictures.

    with LeRobotWriter(root / "tabletop", specs, LeRobotWriterConfig(fps=20)) as writer:
        writer.write(Episode(steps={"observation/front": pictures, "action": actions, ...}))

Files come in groups, one of numbers, one of episodes and one of every camera: when one of them is full, all go on in
the next. The dataset appears under its name only when it is complete (`partial_folder.py`). An interrupted write may be
gone on with after its last full group, if the writer is told what it writes (`identity`); otherwise it begins anew.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from vla_jax.core import errors
from vla_jax.data.formats import image_codec, lerobot_arrow, lerobot_meta, lerobot_stats
from vla_jax.data.formats.lerobot_extra import pa, pq
from vla_jax.data.formats.lerobot_files import FILE, FILES_PER_CHUNK, TableFiles, numbered
from vla_jax.data.formats.partial_folder import PartialFolder
from vla_jax.data.formats.specs import Episode, FeatureSpec
from vla_jax.data.formats.video_writer import Clip, VideoConfig, VideoFiles

REGENERATED = ("timestamp", *lerobot_meta.BOOKKEEPING)  # columns that follow from the order and the rate
_EPISODES_KEPT = 200  # rows of the table of episodes in memory
_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@dataclasses.dataclass(frozen=True)
class LeRobotWriterConfig:
    """What the episodes do not say."""

    fps: float  # control steps per second
    pictures: Literal["video", "parquet"] = "video"  # parquet: JPEG as given, arrays as lossless PNG
    video: VideoConfig = VideoConfig()
    robot_type: str = "unknown"
    max_data_file_bytes: int = 100 << 20

    def __post_init__(self):
        if not self.fps > 0:
            raise errors.ConfigError("LeRobotWriterConfig.fps", expected="more than 0", found=self.fps)
        if self.pictures not in ("video", "parquet"):
            raise errors.ConfigError(
                "LeRobotWriterConfig.pictures", expected="video or parquet", found=repr(self.pictures)
            )


class LeRobotWriter:
    """Writes one dataset of one split, "train"; use it as a context manager.

    The text `language_instruction` becomes the task; other texts are string columns. Features named as in `REGENERATED`
    are left out, whatever they hold. Features of the episode become columns of the table of episodes.
    """

    def __init__(
        self,
        folder: str | Path,
        specs: Mapping[str, FeatureSpec],
        config: LeRobotWriterConfig,
        identity: str | None = None,
    ):
        """With an `identity`, which must change with anything that changes what is written, `notes` is what the caller
        said before the first episode that has to be written again: see `write`.

        Raises DataError when `folder` already holds something or the features cannot be written."""
        self.config, self._folder = config, PartialFolder(folder, identity)
        self._specs = {name: spec for name, spec in specs.items() if name not in REGENERATED}
        self._keys = {n: lerobot_meta.their_name(s) if s.is_step else n for n, s in self._specs.items()}
        _check_features(self._specs, self._keys, str(self.folder))
        self._tasks: dict[str, int] = {}
        self._merged: dict[str, lerobot_stats.Merged] = {}
        self._num_frames = self._num_episodes = self._group = 0
        self.notes: Mapping[str, Any] = {}

    @property
    def folder(self) -> Path:
        return self._folder.folder

    def __enter__(self) -> "LeRobotWriter":
        kept = self._folder.begin()
        if kept:
            self._group, self._num_episodes, self._num_frames = kept["group"], kept["num_episodes"], kept["num_frames"]
            self._tasks, self.notes = dict(kept["tasks"]), kept["notes"]
            self._merged = {key: lerobot_stats.Merged.from_plain(value) for key, value in kept["merged"].items()}
        self._data = TableFiles(self._folder.path / "data", self._group)
        self._episodes = TableFiles(self._folder.path / "meta" / "episodes", self._group)
        self._rows: list[dict[str, Any]] = []  # of the table of episodes, not yet written
        config = self.config
        self._videos = {
            name: VideoFiles(self._video_path(self._keys[name]), spec.shape, config.fps, config.video, self._group)
            for name, spec in self._specs.items()
            if spec.kind == "image" and config.pictures == "video"
        }
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        try:
            if error_type is None:
                self._close_group()
                self._finish()
            else:
                for files in (self._data, self._episodes, *self._videos.values()):
                    files.close()
        except BaseException:
            self._folder.abandon()
            raise
        if error_type is None:
            self._folder.complete()
        else:
            self._folder.abandon()

    def write(self, episode: Episode, notes: Mapping[str, Any] | None = None) -> None:
        """Append one episode. Its pictures may be arrays, encoded pictures (bytes) or any iterable of either, which is
        read once. `notes`, JSON values, are what the caller has to know to go on with this episode. Raises DataError
        when it does not fit the features; the dataset is then not finished."""
        if self._data.num_bytes >= self.config.max_data_file_bytes or any(v.is_full for v in self._videos.values()):
            self._next_group(notes or {})
        place = f"{self.folder}, episode {self._num_episodes}"
        given = {**episode.steps, **episode.metadata}
        given = {name: value for name, value in given.items() if name not in REGENERATED}
        if given.keys() != self._specs.keys():
            raise errors.DataError(
                f"{place}: the episode does not have the features of the dataset",
                expected=", ".join(sorted(self._specs)),
                found=f"missing {sorted(self._specs.keys() - given.keys())}, "
                f"unknown {sorted(given.keys() - self._specs.keys())}",
            )
        num_steps = next(len(given[s.name]) for s in self._specs.values() if s.is_step and s.kind == "tensor")
        if num_steps == 0:
            raise errors.DataError(f"{place}: no steps", expected="at least one")
        texts = _texts(given.get(lerobot_meta.INSTRUCTION, ""), num_steps, place)
        columns = self._bookkeeping(texts, num_steps)
        stats = {key: lerobot_stats.of_numbers(column) for key, column in columns.items()}
        row: dict[str, Any] = {"tasks": list(dict.fromkeys(texts)), "length": num_steps}
        table = {key: pa.array(column) for key, column in columns.items()}
        for name, spec in self._specs.items():
            key, where = self._keys[name], f'{place}, "{name}"'
            if not spec.is_step:
                row[key] = given[name] if spec.kind == "text" else _numbers(given[name], spec, (), where).tolist()
            elif spec.kind == "image":
                levels = lerobot_stats.PictureStatistics()
                pictures = _Pictures(given[name], spec.shape, num_steps, levels, where)
                if self.config.pictures == "video":
                    row |= _clip_row(key, self._videos[name].write(pictures.arrays()))
                else:
                    table[key] = pa.array([{"bytes": data, "path": None} for data in pictures.encoded()], _PICTURE)
                stats[key] = levels.result()
            elif spec.kind == "tensor":
                values = _numbers(given[name], spec, (num_steps,), where)
                table[key], stats[key] = lerobot_arrow.column(values), lerobot_stats.of_numbers(values)
            elif name != lerobot_meta.INSTRUCTION:
                table[key] = pa.array(_texts(given[name], num_steps, where), pa.string())
        chunk, file = self._data.write(pa.table(table))
        row |= {"data/chunk_index": chunk, "data/file_index": file}
        self._add(row, stats, num_steps)

    def _next_group(self, notes: Mapping[str, Any]) -> None:
        self._close_group()
        self._group += 1
        self._folder.keep(
            {
                "group": self._group,
                "num_episodes": self._num_episodes,
                "num_frames": self._num_frames,
                "tasks": self._tasks,
                "merged": {key: merged.to_plain() for key, merged in self._merged.items()},
                "notes": notes,
            }
        )

    def _close_group(self) -> None:
        if self._rows:
            self._write_rows()
        for files in (self._data, self._episodes, *self._videos.values()):
            files.close()

    def _bookkeeping(self, texts: list[str], num_steps: int) -> dict[str, np.ndarray]:
        steps = np.arange(num_steps)
        task = {text: self._tasks.setdefault(text, len(self._tasks)) for text in dict.fromkeys(texts)}
        return {
            "timestamp": (steps / self.config.fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(num_steps, self._num_episodes),
            "index": self._num_frames + steps,
            "task_index": np.array([task[text] for text in texts]),
        }

    def _add(self, row: dict[str, Any], stats: Mapping[str, Mapping[str, np.ndarray]], num_steps: int) -> None:
        for key, statistics in stats.items():
            row |= {f"stats/{key}/{name}": value.tolist() for name, value in statistics.items()}
            if key in self._merged:
                self._merged[key].add(statistics)
            else:
                self._merged[key] = lerobot_stats.Merged(statistics)
        chunk, file = divmod(self._group, FILES_PER_CHUNK)
        row |= {"episode_index": self._num_episodes}
        row |= {"meta/episodes/chunk_index": chunk, "meta/episodes/file_index": file}
        row |= {"dataset_from_index": self._num_frames, "dataset_to_index": self._num_frames + num_steps}
        self._rows.append(row)
        self._num_episodes += 1
        self._num_frames += num_steps
        if len(self._rows) == _EPISODES_KEPT:
            self._write_rows()

    def _write_rows(self) -> None:
        fields = []
        for key in self._rows[0]:
            if key in self._specs:
                fields.append((key, lerobot_arrow.episode_type(self._specs[key])))
            elif key == "tasks":
                fields.append((key, pa.list_(pa.string())))
            else:
                fields.append((key, pa.array([self._rows[0][key]]).type))
        self._episodes.write(pa.Table.from_pylist(self._rows, schema=pa.schema(fields)))
        self._rows.clear()

    def _finish(self) -> None:
        if self._num_episodes == 0:
            raise errors.DataError(f"{self.folder}: no episodes were written", expected="at least one")
        meta = self._folder.path / "meta"
        pq.write_table(lerobot_arrow.task_table(self._tasks), meta / "tasks.parquet")
        stats = {key: merged.to_plain() for key, merged in self._merged.items()}
        (meta / "stats.json").write_text(json.dumps(stats, indent=4))
        (meta / "info.json").write_text(json.dumps(self._info(), indent=4))

    def _info(self) -> dict[str, Any]:
        config = self.config
        numbers = {"timestamp": "float32"} | dict.fromkeys(lerobot_meta.BOOKKEEPING, "int64")
        features = {
            self._keys[name]: _feature_info(spec, config)
            for name, spec in self._specs.items()
            if spec.is_step and name != lerobot_meta.INSTRUCTION
        }
        features |= {key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in numbers.items()}
        return {
            "codebase_version": "v3.0",
            "robot_type": config.robot_type,
            "total_episodes": self._num_episodes,
            "total_frames": self._num_frames,
            "total_tasks": len(self._tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": max(1, config.max_data_file_bytes >> 20),
            "video_files_size_in_mb": max(1, config.video.max_file_bytes >> 20),
            "fps": int(config.fps) if float(config.fps).is_integer() else config.fps,
            "splits": {"train": f"0:{self._num_episodes}"},
            "data_path": f"data/{FILE}.parquet",
            "video_path": f"videos/{{video_key}}/{FILE}.mp4" if self._videos else None,
            "features": features,
        }

    def _video_path(self, key: str) -> Callable[[int], Path]:
        return lambda number: self._folder.path / "videos" / key / (numbered(number) + ".mp4")


class _Pictures:
    """The pictures of one camera in one episode, checked as they pass; some of them are added to `levels`."""

    def __init__(
        self,
        items: Iterable[bytes | np.ndarray],
        shape: tuple[int, int, int],
        count: int,
        levels: lerobot_stats.PictureStatistics,
        where: str,
    ):
        self._items, self._shape, self._count, self._levels, self._where = items, shape, count, levels, where

    def arrays(self) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
        for item, is_sampled in self._counted():
            picture = self._decoded(item)
            if is_sampled:
                self._levels.add(picture)
            yield picture

    def encoded(self) -> Iterator[bytes]:
        for item, is_sampled in self._counted():
            if is_sampled or not isinstance(item, bytes):
                picture = self._decoded(item)
                if is_sampled:
                    self._levels.add(picture)
            yield item if isinstance(item, bytes) else image_codec.encode_png(picture)

    def _counted(self) -> Iterator[tuple[bytes | np.ndarray, bool]]:
        sampled, number = lerobot_stats.sampled_frames(self._count), -1
        for number, item in enumerate(self._items):
            yield item, number in sampled
        if number + 1 != self._count:
            raise errors.DataError(self._where, expected=f"{self._count} pictures", found=number + 1)

    def _decoded(self, item: bytes | np.ndarray) -> np.ndarray:
        try:
            picture = image_codec.decode(item) if isinstance(item, bytes) else np.asarray(item)
        except ValueError as error:
            raise errors.DataError(f"{self._where}: a picture does not decode", found=str(error)) from error
        if picture.dtype != np.uint8 or picture.shape != self._shape:
            raise errors.DataError(
                self._where,
                expected=f"uint8 {list(self._shape)}",
                found=f"{picture.dtype} {list(picture.shape)}",
                fix="give every picture of a camera one size",
            )
        return picture


def _check_features(specs: Mapping[str, FeatureSpec], keys: Mapping[str, str], place: str) -> None:
    if not any(spec.is_step and spec.kind == "tensor" for spec in specs.values()):
        raise errors.DataError(f"{place}: the features hold no numbers per step", found=", ".join(specs) or "none")
    seen: dict[str, str] = {}
    for name, key in keys.items():
        if key in seen or key in REGENERATED:
            raise errors.DataError(
                f"{place}: two features would be called {key!r}",
                found=f"{seen.get(key, 'a column of LeRobot')}, {name}",
            )
        seen[key] = name
        if specs[name].kind == "image" and (not specs[name].is_step or None in specs[name].shape):
            raise errors.DataError(
                f'{place}: "{name}" cannot be written',
                expected="one picture per step, of one known size",
                found=f"{specs[name]}{'' if specs[name].is_step else ' per episode'}",
                fix="leave it out, or give its size in the spec",
            )


def _feature_info(spec: FeatureSpec, config: LeRobotWriterConfig) -> dict[str, Any]:
    if spec.kind == "text":
        return {"dtype": "string", "shape": [1], "names": None}
    if spec.kind == "tensor":
        return {"dtype": spec.stored_dtype.name, "shape": list(spec.shape) or [1], "names": None}
    described = {"shape": list(spec.shape), "names": ["height", "width", "channels"]}
    if config.pictures == "parquet":
        return {"dtype": "image", **described}
    return {
        "dtype": "video",
        **described,
        "info": {
            "video.height": spec.shape[0],
            "video.width": spec.shape[1],
            "video.channels": 3,
            "video.codec": config.video.codec,
            "video.pix_fmt": "yuv420p",
            "video.is_depth_map": False,
            "video.fps": config.fps,
            "has_audio": False,
        },
    }


def _clip_row(key: str, clip: Clip) -> dict[str, Any]:
    chunk, file = divmod(clip.file, FILES_PER_CHUNK)
    return {
        f"videos/{key}/chunk_index": chunk,
        f"videos/{key}/file_index": file,
        f"videos/{key}/from_timestamp": clip.start,
        f"videos/{key}/to_timestamp": clip.stop,
    }


def _numbers(value: Any, spec: FeatureSpec, leading: tuple[int, ...], where: str) -> np.ndarray:
    array = np.asarray(value)
    if array.shape != leading + spec.shape or not np.can_cast(array.dtype, spec.dtype, "same_kind"):
        raise errors.DataError(
            where, expected=f"{spec.dtype} {list(leading + spec.shape)}", found=f"{array.dtype} {list(array.shape)}"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise errors.DataError(
            where, expected="finite numbers", found="NaN or infinity", fix="leave the feature or the episode out"
        )
    return array.astype(spec.stored_dtype)


def _texts(value: Any, count: int, where: str) -> list[str]:
    texts = [value] * count if isinstance(value, str) else list(value)
    if len(texts) != count:
        raise errors.DataError(where, expected=f"one text, or {count}", found=len(texts))
    return texts
