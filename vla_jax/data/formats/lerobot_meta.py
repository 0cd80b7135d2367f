"""What the `meta` folder of a LeRobot dataset says, v2.0, v2.1 and v3.0: features, episodes, tasks, files.

Names are translated here, once, in both directions:

    theirs                                        ours
    observation.images.front, observation.front   observation/front     (pictures)
    image, wrist_image (no prefix)                observation/image, observation/wrist_image     (pictures)
    observation.state, state                      observation/state
    action, actions                               action
    next.reward, next.done                        reward, is_last
    the text of task_index                        language_instruction
    any other a.b                                 a/b

A picture keeps its whole name where the short one is taken. The bookkeeping columns index, episode_index, frame_index
and task_index are not features of ours: order and text say the same.

Source: the layouts written by lerobot 0.3 (v2.1) and 0.4 to 0.6 (v3.0).
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64, Int32, Int64

from vla_jax.core import errors
from vla_jax.data.formats.lerobot_extra import pa, pq
from vla_jax.data.formats.specs import FeatureSpec

INSTRUCTION = "language_instruction"
FILE_PATH = "episode_metadata/file_path"
BOOKKEEPING = ("index", "episode_index", "frame_index", "task_index")
_PICTURES = "observation.images."
_OURS = {"state": "observation/state", "actions": "action", "next.reward": "reward", "next.done": "is_last"}
_THEIRS = {"reward": "next.reward", "is_last": "next.done"}


@dataclasses.dataclass(frozen=True)
class Feature:
    """One feature of the steps and where it is kept."""

    key: str  # theirs
    spec: FeatureSpec  # ours
    storage: Literal["column", "image", "video"]  # image: encoded bytes in the parquet file


@dataclasses.dataclass(frozen=True)
class Info:
    """What info.json says."""

    folder: Path
    version: tuple[int, int]
    fps: float
    robot_type: str
    splits: Mapping[str, tuple[int, int]]  # [first, stop) in episode_index
    chunks_size: int
    data_path: str
    video_path: str
    features: Mapping[str, Feature]  # by our names


@dataclasses.dataclass(frozen=True)
class Places:
    """For every episode, in which of some files it is and how far into it, in seconds."""

    paths: tuple[Path, ...]
    file: Int32[np.ndarray, "episodes"]
    offset: Float64[np.ndarray, "episodes"]


@dataclasses.dataclass(frozen=True)
class Episodes:
    """One row per episode, in the order of episode_index."""

    ids: Int64[np.ndarray, "episodes"]
    lengths: Int64[np.ndarray, "episodes"]
    data: Places
    videos: Mapping[str, Places]  # by our camera names
    extra: pa.Table  # what the episodes file has beside LeRobot's own columns, by our names


def our_name(key: str, is_picture: bool) -> str:
    """Our name of a LeRobot feature."""
    if is_picture:
        short = key.removeprefix(_PICTURES).removeprefix("observation.")
        return "observation/" + short.replace(".", "/")
    return _OURS.get(key, key.replace(".", "/"))


def their_name(spec: FeatureSpec) -> str:
    """The LeRobot key of a feature of ours."""
    if spec.kind == "image":
        return _PICTURES + spec.name.removeprefix("observation/").replace("/", ".")
    return _THEIRS.get(spec.name, spec.name.replace("/", "."))


def load_info(folder: str | Path) -> Info:
    """meta/info.json, checked. Raises DataError when this is not a LeRobot dataset of a version that is read."""
    folder = Path(folder)
    path = folder / "meta" / "info.json"
    if not path.is_file():
        raise errors.DataError(
            f"{folder}: not a LeRobot dataset",
            expected="meta/info.json in this folder",
            found=", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "no such folder",
            fix="give the folder that holds data, meta and (for videos) videos",
        )
    try:
        stored = json.loads(path.read_text())
        version = tuple(int(part) for part in stored["codebase_version"].removeprefix("v").split(".")[:2])
        if version[0] not in (2, 3):
            raise errors.DataError(
                f"{path}: unknown version",
                expected="v2.0, v2.1 or v3.x",
                found=stored["codebase_version"],
                fix="convert it with the scripts of lerobot",
            )
        return Info(
            folder=folder,
            version=version,
            fps=float(stored["fps"]),
            robot_type=str(stored.get("robot_type") or "unknown"),
            splits={name: _split_range(rows) for name, rows in (stored.get("splits") or {}).items()},
            chunks_size=int(stored.get("chunks_size", 1000)),
            data_path=stored["data_path"],
            video_path=stored.get("video_path") or "",
            features=_features(stored["features"]),
        )
    except (json.JSONDecodeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise errors.DataError(f"{path}: not readable as LeRobot's info.json", found=repr(error)) from error


def load_tasks(info: Info) -> dict[int, str]:
    """The text of every task_index. Raises DataError."""
    meta = info.folder / "meta"
    if info.version[0] == 2:
        return {
            int(row["task_index"]): str(row["task"]) for row in _json_lines(meta / "tasks.jsonl", "task_index", "task")
        }
    table = read_table(meta / "tasks.parquet")
    texts = [name for name in table.column_names if name != "task_index"]  # "task", or the index of a pandas frame
    if "task_index" not in table.column_names or len(texts) != 1:
        raise errors.DataError(
            f"{meta / 'tasks.parquet'}",
            expected="task_index and one column of texts",
            found=", ".join(table.column_names),
        )
    return dict(zip(table["task_index"].to_pylist(), map(str, table[texts[0]].to_pylist()), strict=True))


def load_episodes(info: Info) -> Episodes:
    """The episodes and the files they are in. Raises DataError when the tables are missing or damaged."""
    return _load_episodes_v2(info) if info.version[0] == 2 else _load_episodes_v3(info)


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """A parquet file as a table. Raises DataError when it is missing or damaged."""
    try:
        with pq.ParquetFile(path) as file:
            return file.read(columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise errors.DataError(
            f"{path}: not readable as parquet",
            expected="a whole file" + (f" with columns {', '.join(columns)}" if columns else ""),
            found=str(error).splitlines()[0],
            fix="copy or download it again",
        ) from error


def _split_range(rows: str | Iterable[int]) -> tuple[int, int]:
    first, stop = rows.split(":") if isinstance(rows, str) else rows
    return int(first), int(stop)


def _features(stored: Mapping[str, Mapping[str, Any]]) -> dict[str, Feature]:
    features: dict[str, Feature] = {}
    for key, value in stored.items():
        if key in BOOKKEEPING:
            continue
        feature = _feature(key, value)
        if feature is None:
            continue
        if feature.spec.name in features:
            whole = dataclasses.replace(feature.spec, name=key.replace(".", "/"))
            feature = dataclasses.replace(feature, spec=whole)
        if feature.spec.name in features:
            raise errors.DataError(
                f"two features have the name {feature.spec.name!r}",
                found=f"{features[feature.spec.name].key}, {key}",
                fix="rename one in info.json and the data",
            )
        features[feature.spec.name] = feature
    instruction = INSTRUCTION if INSTRUCTION not in features else "task"
    features[instruction] = Feature("task_index", FeatureSpec(instruction, "text", (), "object", True), "column")
    return dict(sorted(features.items()))


def _feature(key: str, stored: Mapping[str, Any]) -> Feature | None:
    """None for what has no place among our kinds: depth maps, audio, nested language annotations."""
    dtype, shape = stored["dtype"], tuple(int(n) for n in stored["shape"])
    if dtype in ("image", "video"):
        shape = _height_width_channels(shape, stored.get("names"))
        info = {**(stored.get("info") or {}), **(stored.get("video_info") or {})}
        if shape is None or shape[2] != 3 or info.get("video.is_depth_map") or info.get("is_depth_map"):
            return None
        return Feature(key, FeatureSpec(our_name(key, True), "image", shape, "uint8", True), dtype)
    name = our_name(key, False)
    if dtype == "string":
        return Feature(key, FeatureSpec(name, "text", (), "object", True), "column")
    try:
        kind = np.dtype(dtype).kind
    except TypeError:
        return None
    if kind not in "iufb":
        return None
    # LeRobot has no scalars: one number per step is [1]. Observations and actions are vectors, the rest are scalars.
    is_vector = name.split("/")[0] in ("observation", "action")
    return Feature(key, FeatureSpec(name, "tensor", shape if is_vector or shape != (1,) else (), dtype, True), "column")


def _height_width_channels(shape: tuple[int, ...], names: Any) -> tuple[int, int, int] | None:
    if len(shape) != 3:
        return None
    names = [str(name) for name in names] if isinstance(names, list | tuple) else []
    is_channels_first = names[0].startswith("channel") if names else shape[0] in (1, 3) and shape[2] not in (1, 3)
    return (*shape[1:], shape[0]) if is_channels_first else shape


def _load_episodes_v2(info: Info) -> Episodes:
    rows = _json_lines(info.folder / "meta" / "episodes.jsonl", "episode_index", "length")
    rows.sort(key=lambda row: row["episode_index"])
    ids = np.array([row["episode_index"] for row in rows], np.int64)

    def places(template: str, **names: str) -> Places:
        paths = tuple(
            info.folder / template.format(episode_chunk=i // info.chunks_size, episode_index=i, **names)
            for i in ids.tolist()
        )
        return Places(paths, np.arange(len(ids), dtype=np.int32), np.zeros(len(ids)))

    return Episodes(
        ids=ids,
        lengths=np.array([row["length"] for row in rows], np.int64),
        data=places(info.data_path),
        videos={
            name: places(info.video_path, video_key=feature.key)
            for name, feature in info.features.items()
            if feature.storage == "video"
        },
        extra=_with_keys(pa.table({"episode_index": ids}), ids),
    )


def _load_episodes_v3(info: Info) -> Episodes:
    folder = info.folder / "meta" / "episodes"
    paths = sorted(folder.glob("*/*.parquet"))
    if not paths:
        raise errors.DataError(f"{folder}: no episodes", expected="chunk-000/file-000.parquet", found="no parquet file")
    keys = {name: f.key for name, f in info.features.items() if f.storage == "video"}
    tables = []
    for path in paths:
        names = [name for name in _column_names(path) if not name.startswith("stats/")]
        tables.append(read_table(path, names))
    table = pa.concat_tables(tables, promote_options="default")
    try:
        table = table.sort_by("episode_index")
        return Episodes(
            ids=table["episode_index"].to_numpy(),
            lengths=table["length"].to_numpy(),
            data=_places_v3(info, table, "data", info.data_path),
            videos={
                name: _places_v3(info, table, f"videos/{key}", info.video_path, video_key=key)
                for name, key in keys.items()
            },
            extra=_with_keys(table, table["episode_index"].to_numpy()),
        )
    except (pa.ArrowException, KeyError) as error:
        raise errors.DataError(
            f"{folder}: not readable as LeRobot's episodes",
            expected="episode_index, length, data/chunk_index, data/file_index and the same per video",
            found=f"{error}; columns {', '.join(table.column_names)}",
        ) from error


def _places_v3(info: Info, table: pa.Table, prefix: str, template: str, **names: str) -> Places:
    pairs = np.stack([table[f"{prefix}/{part}_index"].to_numpy() for part in ("chunk", "file")], axis=1)
    distinct, file = np.unique(pairs, axis=0, return_inverse=True)
    paths = tuple(info.folder / template.format(chunk_index=c, file_index=f, **names) for c, f in distinct.tolist())
    start = f"{prefix}/from_timestamp"
    offset = table[start].to_numpy() if start in table.column_names else np.zeros(len(pairs))
    return Places(paths, file.reshape(-1).astype(np.int32), offset.astype(np.float64))


def episode_features(extra: pa.Table) -> dict[str, Feature]:
    """The texts, numbers and arrays of fixed size among the columns of `Episodes.extra` that have no gaps."""
    features = {}
    for name in (name for name in extra.column_names if not extra[name].null_count):
        kind, shape = extra.schema.field(name).type, ()
        while pa.types.is_fixed_size_list(kind):
            kind, shape = kind.value_type, (*shape, kind.list_size)
        if shape == () and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            features[name] = Feature(name, FeatureSpec(name, "text", (), "object", False), "column")
        elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            dtype = np.dtype(kind.to_pandas_dtype()).name
            features[name] = Feature(name, FeatureSpec(name, "tensor", shape, dtype, False), "column")
    return features


def _with_keys(table: pa.Table, ids: Int64[np.ndarray, "episodes"]) -> pa.Table:
    """The columns that LeRobot does not define; where no file path is among them, `episode_000012` stands for one, so
    that every episode has a key."""
    columns = {name: table[name] for name in table.column_names if not _is_defined(name)}
    return pa.table({FILE_PATH: [f"episode_{i:06d}" for i in ids.tolist()], **columns})


def _is_defined(name: str) -> bool:
    """Whether LeRobot itself gives this column of the episodes file a meaning."""
    return name in ("episode_index", "tasks", "length", "dataset_from_index", "dataset_to_index") or name.startswith(
        ("data/", "videos/", "meta/", "stats/")
    )


def _column_names(path: Path) -> list[str]:
    try:
        return pq.read_schema(path).names
    except (pa.ArrowException, OSError) as error:
        raise errors.DataError(f"{path}: not readable as parquet", found=str(error).splitlines()[0]) from error


def _json_lines(path: Path, *keys: str) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        if all(key in row for row in rows for key in keys):
            return rows
        found = "a line without them"
    except (OSError, json.JSONDecodeError) as error:
        found = str(error)
    raise errors.DataError(
        f"{path}: not readable",
        expected=f"one JSON object per line, with {' and '.join(keys)}",
        found=found,
        fix="copy or download it again",
    )
