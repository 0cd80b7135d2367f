"""What a folder says of the dataset in it, before any record is read: format, splits, files, control frequency."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_jax.core import errors
from vla_jax.data.formats.rlds import load_info


@dataclasses.dataclass(frozen=True)
class Layout:
    """A dataset of any format."""

    title: str
    description: str
    splits: Mapping[str, tuple[Path, ...]]  # -> the files that hold it
    control_hz: float | None  # control steps per second; None: not said
    action_names: tuple[str, ...]  # of the entries of the action; empty: not said


def read_layout(folder: str | Path) -> Layout:
    """Raises DataError when `folder` is no dataset (see `open.open_dataset`)."""
    folder = Path(folder)
    return _lerobot(folder) if (folder / "meta" / "info.json").is_file() else _rlds(folder)


def _rlds(folder: Path) -> Layout:
    info = load_info(folder)
    hz = info.metadata.get("control_hz")
    return Layout(
        title=f"{info.name} {info.version}, {info.file_format}, in {folder}",
        description=info.description,
        splits={name: tuple(shard.path for shard in shards) for name, shards in info.splits.items()},
        control_hz=float(hz) if hz else None,
        action_names=tuple(info.metadata.get("action_names", ())),
    )


def _lerobot(folder: Path) -> Layout:
    path = folder / "meta" / "info.json"
    try:
        info: Mapping[str, Any] = json.loads(path.read_text())
        version, fps, features = info["codebase_version"], float(info["fps"]), info["features"]
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise errors.DataError(f"{path}: not readable as a LeRobot info.json", found=repr(error)) from error
    files = tuple(sorted(p for name in ("data", "videos") for p in (folder / name).rglob("*") if p.is_file()))
    names = features.get("action", {}).get("names")
    return Layout(
        title=f"{folder.resolve().name}, LeRobot {version}, robot {info.get('robot_type') or 'unknown'}, in {folder}",
        description="" if len(info.get("splits") or ()) < 2 else "Its splits share files.",
        splits=dict.fromkeys(info.get("splits") or ("train",), files),
        control_hz=fps if fps > 0 else None,
        action_names=tuple(names) if isinstance(names, list) and all(isinstance(n, str) for n in names) else (),
    )
