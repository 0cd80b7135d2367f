"""Two sides of a policy compared: what it was made for, and what it is about to meet.

A network takes any numbers of the right shape, so a swapped camera, another order of joints or another control rate
shows only as a policy that fails. Each difference is refused by name, with what overrides it.

No JAX in here: a robot compares itself with its server.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vla_jax.core import errors

Size = tuple[int, int]  # height and width, pixels


@dataclasses.dataclass(frozen=True)
class Contract:
    """One side; None is unknown and is not compared."""

    place: str  # who says so, for the error
    cameras: Mapping[str, Size | None]
    state_dim: int | None = None
    state_names: tuple[str, ...] | None = None
    action_dim: int | None = None  # of the robot, without padding
    action_names: tuple[str, ...] | None = None
    action_horizon: int | None = None  # of a policy: steps of a chunk; of the other side: those it runs of one
    control_hz: float | None = None
    normalization: Mapping[str, Any] | None = None  # fields of a NormalizationConfig; those both sides name count
    scales_pictures: bool = False  # whether pictures of any size are made the policy's, as a server does


@dataclasses.dataclass(frozen=True)
class Difference:
    field: str
    policy: str
    other: str
    override: str
    accepted_by: str | None = None  # the entry of ACCEPTABLE that lets it pass


_NAMES = "the numbers mean the same under other names"
ACCEPTABLE: dict[str, str] = {
    "state_names": _NAMES,
    "action_names": _NAMES,
    "control_hz": "it may act at another rate than it was trained at",
    "normalization": "the new data are normalized as the recipe says, not as the checkpoint was",
    "image_size": "a server scales pictures, which training did not do",
}  # differences that a network can run with, and what accepting one says


def compare(policy: Contract, other: Contract) -> tuple[Difference, ...]:
    """Every way in which `other` is not what `policy` was made for, in the order of the fields.

    Cameras that `other` has beyond the policy's do not matter, nor does a picture that is a whole multiple of the
    policy's: it is averaged down.
    """
    found = [*_cameras(policy, other)]
    for field in ("state_dim", "state_names", "action_dim", "action_names", "control_hz", "normalization"):
        ours, theirs = getattr(policy, field), getattr(other, field)
        if ours is None or theirs is None:
            continue
        if field == "normalization":
            shared = ours.keys() & theirs.keys()
            ours, theirs = ({name: side[name] for name in sorted(shared)} for side in (ours, theirs))
        if ours == theirs:
            continue
        if field.endswith("_names") and len(ours) != len(theirs):
            continue  # the number of dims is a difference of its own
        found.append(_difference(field, *_shown(field, ours, theirs), field))
    if None not in (policy.action_horizon, other.action_horizon) and policy.action_horizon < other.action_horizon:
        fix = f"none: run at most {policy.action_horizon} steps of a chunk"
        found.append(Difference("action_horizon", str(policy.action_horizon), str(other.action_horizon), fix))
    return tuple(found)


def require(
    policy: Contract,
    other: Contract,
    accept: Sequence[str] = (),
    *,
    raises: Callable[..., errors.VlaError] = errors.CheckpointError,
) -> None:
    """Raise `raises` with a table of every difference that is not accepted.

    Raises ConfigError for an entry of `accept` that is not in `ACCEPTABLE`.
    """
    for name in accept:
        if name not in ACCEPTABLE:
            raise errors.ConfigError(f"cannot accept {name!r}", fix=errors.closest(name, ACCEPTABLE))
    left = [each for each in compare(policy, other) if each.accepted_by is None or each.accepted_by not in accept]
    if not left:
        return
    cells = [(each.field, each.policy, each.other, each.override) for each in left]
    rows = [("", policy.place, other.place, "override"), *cells]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  " + "  ".join([*(text.ljust(w) for text, w in zip(row, widths, strict=False)), row[3]]) for row in rows]
    names = dict.fromkeys(each.accepted_by for each in left if each.accepted_by)
    accepting = f", or override what is only a name or a rate: --accept {' '.join(names)}" if names else ""
    raise raises(
        "\n".join([f"{policy.place} does not fit {other.place}", *lines]),
        fix=f"use it where it was trained for, train it on data of this one{accepting}",
    )


_RETRAIN = "none: fine-tune it (start_from) on data of this one"
_SHOW = "none: show it these cameras, under these names"


def _difference(field: str, ours: str, theirs: str, name: str) -> Difference:
    if name not in ACCEPTABLE:
        return Difference(field, ours, theirs, _RETRAIN)
    return Difference(field, ours, theirs, f"accept {name!r}: {ACCEPTABLE[name]}", name)


def _cameras(policy: Contract, other: Contract) -> list[Difference]:
    missing = [name for name in policy.cameras if name not in other.cameras]
    found = []
    if missing:
        found.append(Difference("cameras", ", ".join(policy.cameras), ", ".join(other.cameras) or "none", _SHOW))
    for name, wanted in policy.cameras.items():
        size = other.cameras.get(name)
        if not wanted or not size or _shrinks(size, wanted):
            continue
        texts = (f"size of {name}", f"{wanted[0]}x{wanted[1]}", f"{size[0]}x{size[1]}")
        whole = f"none: pictures of {texts[1]}, or a whole multiple"
        found.append(_difference(*texts, "image_size") if other.scales_pictures else Difference(*texts, whole))
    return found


def _shrinks(size: Size, wanted: Size) -> bool:
    """Whether a picture is averaged down to what the policy wants (see `trained.Edges`)."""
    factor = max(1, size[0] // wanted[0])
    return tuple(size) == (wanted[0] * factor, wanted[1] * factor)


def _shown(field: str, ours: Any, theirs: Any) -> tuple[str, str]:
    """Both sides, of long lists only what differs."""
    if field.endswith("_names"):
        pairs = [(i, a, b) for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
        return ", ".join(f"{i}: {a}" for i, a, _ in pairs), ", ".join(f"{i}: {b}" for i, _, b in pairs)
    if field == "normalization":
        names = [name for name in ours if ours[name] != theirs[name]]
        return tuple(", ".join(f"{name}={side[name]}" for name in names) for side in (ours, theirs))
    return str(ours), str(theirs)
