"""The table of common robot datasets, embodiments.toml, as typed rows; the file says what every field means.

row = embodiment("bridge_dataset")
row.control_hz, row.gripper.closed                  # 5.0, 0.0
mismatches(RldsDataset(folder), row)                # what in the files is not as the row says
"""

import dataclasses
import functools
import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any, Literal

import numpy as np

from vla_jax.core import errors
from vla_jax.data.formats.episodes import EpisodeDataset
from vla_jax.data.formats.features import FeatureSpec

UNKNOWN = "unknown"
ROLES = ("primary", "secondary", "wrist", "wrist_2")
PARTS = (
    *("position", "euler", "axis_angle", "quaternion", "pose_matrix", "joints", "joint_velocities", "joint_torques"),
    *("linear_velocity", "angular_velocity", "force", "gripper", "terminate", "planar", "yaw", "later", "flag"),
    "padding",
)
_WIDTHS = {"position": 3, "euler": 3, "axis_angle": 3, "quaternion": 4, "pose_matrix": 16, "planar": 2, "yaw": 1}
_FILE = "vla_jax/data/embodiments.toml"
_SLACK = 0.1  # of the way from open to closed that recorded gripper commands may lie outside

ActionKind = Literal["delta", "absolute", "velocity", "unknown"]
Frame = Literal["base", "world", "hand", "joint", "unknown"]
GripperKind = Literal["absolute", "delta", "none", "unknown"]
_CHOICES = {
    "action_kind": ("delta", "absolute", "velocity", UNKNOWN),
    "action_frame": ("base", "world", "hand", "joint", UNKNOWN),
    "gripper.kind": ("absolute", "delta", "none", UNKNOWN),
}


@dataclasses.dataclass(frozen=True)
class Vector:
    """One feature and what its entries are."""

    key: str
    parts: tuple[tuple[str, int], ...]  # (part, number of entries), in order

    @property
    def dim(self) -> int:
        return sum(width for _, width in self.parts)

    def dims(self, part: str) -> tuple[int, ...]:
        """The places of a part's entries within the vector."""
        names = [name for name, width in self.parts for _ in range(width)]
        return tuple(i for i, name in enumerate(names) if name == part)


@dataclasses.dataclass(frozen=True)
class Gripper:
    """How the action commands the gripper; None where no source says."""

    kind: GripperKind
    open: float | None = None
    closed: float | None = None


@dataclasses.dataclass(frozen=True)
class Embodiment:
    """One row. Names of features are relative as in a DatasetConfig: images and state under observation/."""

    name: str
    aliases: tuple[str, ...]
    robot: str
    control_hz: float
    images: Mapping[str, str]  # role -> feature
    state: tuple[Vector, ...]
    action: tuple[Vector, ...]
    action_kind: ActionKind
    action_frame: Frame
    gripper: Gripper
    instruction: str | None
    needs: str
    notes: str
    sources: tuple[str, ...]  # resolved: repository, commit and file, or page

    @property
    def state_dim(self) -> int:
        return sum(vector.dim for vector in self.state)

    @property
    def action_dim(self) -> int:
        return sum(vector.dim for vector in self.action)


@dataclasses.dataclass(frozen=True)
class Mismatch:
    """One way in which a dataset is not as its row says."""

    field: str  # of the row
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.field}: expected {self.expected}, found {self.found}"


@functools.cache
def embodiments() -> Mapping[str, Embodiment]:
    """Every row by its name, in the order of the file."""
    return parse(resources.files("vla_jax.data").joinpath("embodiments.toml").read_text())


def embodiment(name: str) -> Embodiment:
    """The row of a dataset by its name or an alias. Raises ConfigError for an unknown one."""
    known = {alias: row for row in embodiments().values() for alias in (row.name, *row.aliases)}
    if name not in known:
        raise errors.ConfigError(f"no embodiment {name!r} in {_FILE}", fix=errors.closest(name, known))
    return known[name]


def parse(text: str) -> dict[str, Embodiment]:
    """The rows of a table in the format of embodiments.toml. Raises ConfigError that names row and field."""
    table = tomllib.loads(text)
    sources = table.pop("sources", {})
    rows = {name: _row(name, fields, sources) for name, fields in table.items()}
    names = [alias for row in rows.values() for alias in (row.name, *row.aliases)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise errors.ConfigError(_FILE, expected="every name and alias once", found=", ".join(twice))
    return rows


def mismatches(dataset: EpisodeDataset, row: Embodiment) -> tuple[Mismatch, ...]:
    """What of the row the dataset contradicts: features that are missing, of another kind or width, and gripper
    commands outside the stated range. Empty when everything fits."""
    found = []
    for role, key in row.images.items():
        found += _compare(dataset.specs, f"images.{role}", f"observation/{key}", "image", None)
    for vector in row.state:
        found += _compare(dataset.specs, "state", f"observation/{vector.key}", "tensor", vector.dim)
    for vector in row.action:
        found += _compare(dataset.specs, "action", vector.key, "tensor", vector.dim)
    if row.instruction is not None:
        found += _compare(dataset.specs, "instruction", row.instruction, "text", None)
    return (*found, *_gripper_range(dataset, row))


def _compare(
    specs: Mapping[str, FeatureSpec], field: str, name: str, kind: str, dim: int | None
) -> tuple[Mismatch, ...]:
    expected = f'{kind} "steps/{name}"' + (f" of {dim} entries" if dim is not None else "")
    if name not in specs:
        return (Mismatch(field, expected, errors.closest(name, [n for n, s in specs.items() if s.is_step])),)
    spec = specs[name]
    width = int(np.prod(spec.shape, dtype=np.int64)) if kind == "tensor" and spec.kind == "tensor" else None
    return () if spec.kind == kind and width == dim else (Mismatch(field, expected, str(spec)),)


def _gripper_range(dataset: EpisodeDataset, row: Embodiment) -> tuple[Mismatch, ...]:
    gripper = row.gripper
    if gripper.open is None or gripper.closed is None:
        return ()
    low, high = sorted((gripper.open, gripper.closed))
    slack = _SLACK * (high - low)
    for vector in row.action:
        dims = vector.dims("gripper")
        if not dims or vector.key not in dataset.columns:
            continue
        column = np.asarray(dataset.columns[vector.key], np.float32).reshape(dataset.num_frames, -1)
        if column.shape[1] != vector.dim:
            continue  # said already
        least, most = float(column[:, dims].min()), float(column[:, dims].max())
        if least < low - slack or most > high + slack:
            return (Mismatch("gripper", f"commands from {low:g} to {high:g}", f"{least:g} to {most:g}"),)
    return ()


def _row(name: str, fields: Mapping[str, Any], sources: Mapping[str, str]) -> Embodiment:
    required = {
        *("robot", "control_hz", "images", "state", "action", "action_kind", "action_frame", "gripper"),
        *("instruction", "sources"),
    }
    allowed = required | {"aliases", "needs", "notes"}
    if not required <= fields.keys() <= allowed:
        raise errors.ConfigError(
            f"{_FILE}, [{name}]",
            expected=", ".join(sorted(required)),
            found=f"missing {sorted(required - fields.keys())}, unknown {sorted(fields.keys() - allowed)}",
        )
    gripper = _gripper(name, fields["gripper"])
    choices = {key: fields[key] for key in ("action_kind", "action_frame")} | {"gripper.kind": gripper.kind}
    for key, value in choices.items():
        _require(value in _CHOICES[key], name, key, f"one of {_CHOICES[key]}", value)
    _require(fields["control_hz"] > 0, name, "control_hz", "positive", fields["control_hz"])
    _require(fields["images"].keys() <= set(ROLES), name, "images", f"roles of {ROLES}", sorted(fields["images"]))
    _require(bool(fields["action"]), name, "action", "at least one feature", "none")
    unnamed = [key for key in fields["sources"] if key not in sources]
    _require(bool(fields["sources"]) and not unnamed, name, "sources", f"some of {sorted(sources)}", fields["sources"])
    return Embodiment(
        name=name,
        aliases=tuple(fields.get("aliases", ())),
        robot=fields["robot"],
        control_hz=float(fields["control_hz"]),
        images=dict(fields["images"]),
        state=tuple(_vector(name, "state", entry) for entry in fields["state"]),
        action=tuple(_vector(name, "action", entry) for entry in fields["action"]),
        action_kind=fields["action_kind"],
        action_frame=fields["action_frame"],
        gripper=gripper,
        instruction=None if fields["instruction"] == UNKNOWN else fields["instruction"],
        needs=fields.get("needs", ""),
        notes=fields.get("notes", ""),
        sources=tuple(sources[key] for key in fields["sources"]),
    )


def _vector(name: str, field: str, entry: Mapping[str, Any]) -> Vector:
    _require(entry.keys() == {"key", "parts"}, name, field, "key and parts", sorted(entry))
    parts = []
    for text in entry["parts"]:
        part, _, width = text.partition(" ")
        fits = part in PARTS and width.isdigit() and int(width) == _WIDTHS.get(part, int(width)) > 0
        _require(fits, name, field, '"<part> <entries>", such as "position 3"', repr(text))
        parts.append((part, int(width)))
    return Vector(entry["key"], tuple(parts))


def _gripper(name: str, fields: Mapping[str, Any]) -> Gripper:
    kind = fields.get("kind")
    expected = {"kind"} if kind == "none" else {"kind", "open", "closed"}
    _require(fields.keys() == expected, name, "gripper", f"{sorted(expected)}", sorted(fields))
    ends = [None if fields.get(end, UNKNOWN) == UNKNOWN else float(fields[end]) for end in ("open", "closed")]
    _require(ends[0] is None or ends[0] != ends[1], name, "gripper", "open and closed to differ", ends)
    return Gripper(kind, *ends)


def _require(fits: bool, name: str, field: str, expected: str, found: object) -> None:
    if not fits:
        raise errors.ConfigError(f"{_FILE}, [{name}] {field}", expected=expected, found=found)
