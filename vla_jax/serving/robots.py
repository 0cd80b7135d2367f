"""What a robot sends and runs, compared with what a policy server says of its policy (its metadata, see `served.py`).

    name = "kitchen arm"                       # TOML, or the same as JSON; only `cameras` has to be there
    control_hz = 20
    execution_horizon = 8
    state_dim = 8
    action_names = ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"]
    [cameras]                                  # keys of a request -> [height, width], or [] where sizes vary
    "observation/front" = [180, 320]

`vla-jax serve --robot` compares before it compiles, `PolicyClient(robot=...)` whenever it connects. No JAX in here.
"""

import dataclasses
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vla_jax.core import contract, errors
from vla_jax.core.contract import Contract, Size


@dataclasses.dataclass(frozen=True)
class Robot:
    """What is None is not known and not compared."""

    name: str
    cameras: Mapping[str, Size | None]  # key of a request -> (height, width) of its pictures
    state_keys: tuple[str, ...] = ("observation/state",)
    state_dim: int | None = None  # numbers under these keys together
    state_names: tuple[str, ...] | None = None
    action_dim: int | None = None
    action_names: tuple[str, ...] | None = None
    execution_horizon: int | None = None  # steps of a chunk that it runs: no policy's chunk may be shorter
    control_hz: float | None = None
    normalization: Mapping[str, Any] | None = None  # of the policy, as {"mode": "quantile"}, where it matters here

    def __post_init__(self):
        for kind in ("state", "action"):
            dim, names = getattr(self, f"{kind}_dim"), getattr(self, f"{kind}_names")
            if names is not None and dim not in (None, len(names)):
                raise errors.ConfigError(
                    f"robot {self.name}: {kind}_dim and {kind}_names",
                    expected="as many names as dims",
                    found=f"{dim} dims and {len(names)} names",
                )


# What openpi's own robot programs send (examples/libero/main.py, examples/droid/main.py; openpi commit 15a9616).
KNOWN: dict[str, Robot] = {
    "libero": Robot(
        "libero",
        {"observation/image": None, "observation/wrist_image": None},
        state_dim=8,
        state_names=(*("x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "finger_left", "finger_right"),),
        action_names=("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"),
        action_dim=7,
        execution_horizon=5,
        control_hz=20.0,
    ),
    "droid": Robot(
        "droid",
        {"observation/exterior_image_1_left": None, "observation/wrist_image_left": None},
        ("observation/joint_position", "observation/gripper_position"),
        state_dim=8,
        action_dim=8,
        execution_horizon=8,
        control_hz=15.0,
    ),
}


def load(name: str) -> Robot:
    """A known robot by its name, or the description in a .json or .toml file.

    Raises ConfigError, naming file and key, for a name that is neither and for a description that cannot be read.
    """
    if name in KNOWN:
        return KNOWN[name]
    path = Path(name)
    if path.suffix not in (".json", ".toml") or not path.is_file():
        raise errors.ConfigError(
            f"robot {name!r}", expected="a known robot, or a .json or .toml file", fix=errors.closest(name, KNOWN)
        )
    try:
        fields = json.loads(path.read_text()) if path.suffix == ".json" else tomllib.loads(path.read_text())
    except ValueError as error:
        raise errors.ConfigError(str(path), expected=f"a description in {path.suffix[1:]}", found=error) from error
    return from_fields(fields, str(path))


def from_fields(fields: Any, place: str) -> Robot:
    """A description as plain values. Raises ConfigError naming the key that is unknown, missing or of another type."""
    if not isinstance(fields, dict):
        raise errors.ConfigError(place, expected="a table of fields", found=type(fields).__name__)
    for key in fields:
        if key not in _READERS:
            raise errors.ConfigError(f"{place}: no field {key!r}", fix=errors.closest(key, _READERS))
    if "cameras" not in fields:
        raise errors.ConfigError(place, expected="cameras: key of a request -> [height, width]", found=sorted(fields))
    read: dict[str, Any] = {"name": Path(place).stem}
    for key, value in fields.items():
        expected, is_right, make = _READERS[key]
        if not is_right(value):
            raise errors.ConfigError(f"{place}: {key}", expected=expected, found=repr(value))
        read[key] = make(value)
    return Robot(**read)


def require_fit(
    metadata: Mapping[str, Any],
    robot: Robot,
    accept: Sequence[str] = (),
    *,
    raises: Callable[..., errors.VlaError] = errors.CheckpointError,
) -> None:
    """Raise `raises` with a table of all in which a server's policy does not fit the robot, but for what is accepted
    (names of `contract.ACCEPTABLE`). The keys are those of the layout that most of the robot's keys belong to."""
    contract.require(*sides(metadata, robot), accept, raises=raises)


def sides(metadata: Mapping[str, Any], robot: Robot) -> tuple[Contract, Contract]:
    """The policy by a server's metadata, in the keys of the robot's layout, and the robot. What the metadata do not
    say, as those of other servers, is not compared."""
    keys = {*robot.cameras, *robot.state_keys}
    layouts = metadata.get("layouts", {})
    fitting = {name: len(keys & {*layout["cameras"], *layout["state"]}) for name, layout in layouts.items()}
    chosen = max(fitting, key=fitting.get, default=None)  # ties: the first, as `RequestReader` takes it
    layout = layouts.get(chosen, {"cameras": {}, "state": [], "optional": []})
    size = None if metadata.get("resize") else metadata.get("image_size")
    policy = Contract(
        f"{metadata.get('policy', 'the policy')} (layout {chosen})" if layouts else "the policy",
        {
            key: tuple(size) if size else None
            for key in layout["cameras"]
            if key in robot.cameras or key not in layout["optional"]
        },
        state_dim=metadata.get("state_dim"),
        state_names=_names(metadata, "state"),
        action_dim=metadata.get("action_dim"),
        action_names=_names(metadata, "action"),
        action_horizon=metadata.get("action_horizon"),
        control_hz=metadata.get("control_hz"),
        normalization=_plain(metadata.get("normalization")),
    )
    other = Contract(
        f"robot {robot.name}",
        robot.cameras,
        state_dim=robot.state_dim or _count(robot.state_names),
        state_names=robot.state_names,
        action_dim=robot.action_dim or _count(robot.action_names),
        action_names=robot.action_names,
        action_horizon=robot.execution_horizon,
        control_hz=robot.control_hz,
        normalization=_plain(robot.normalization),
        scales_pictures=True,
    )
    return policy, other


def _names(metadata: Mapping[str, Any], kind: str) -> tuple[str, ...] | None:
    """Names of dims; None where there are none or they are only numbers, as of data that no simulator names."""
    names = tuple(metadata.get(f"{kind}_names") or ())
    return None if names == tuple(f"{kind}_{dim}" for dim in range(len(names))) else names


def _plain(fields: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return None if fields is None else {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}


def _count(names: tuple[str, ...] | None) -> int | None:
    return None if names is None else len(names)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) and item for item in value)


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) in (0, 2) and all(type(side) is int and side > 0 for side in value)


def _is_cameras(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(_is_size, value.values()))


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


_TEXTS = ("a list of texts", _is_texts, tuple)
_COUNT = ("a whole number above 0", _is_count, int)
_READERS: dict[str, tuple[str, Callable[[Any], bool], Callable[[Any], Any]]] = {
    "name": ("a text", lambda value: isinstance(value, str) and bool(value), str),
    "cameras": (
        "key of a request -> [height, width], or []",
        _is_cameras,
        lambda value: {key: tuple(size) or None for key, size in value.items()},
    ),
    "state_keys": _TEXTS,
    "state_dim": _COUNT,
    "state_names": _TEXTS,
    "action_dim": _COUNT,
    "action_names": _TEXTS,
    "execution_horizon": _COUNT,
    "control_hz": ("a number above 0", lambda value: type(value) in (int, float) and value > 0, float),
    "normalization": ("a table such as {mode = 'quantile'}", lambda value: isinstance(value, dict), dict),
}
