"""What a checkpoint was made for, compared with what it is about to meet: an environment, a dataset, a robot.

A network takes any numbers of the right shape, so a swapped camera, another order of joints or another control rate
shows only as a policy that fails. Each difference is refused by name, with what overrides it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vla_jax.core import errors
from vla_jax.data.normalization import NormalizationConfig
from vla_jax.envs.base import EnvSpec
from vla_jax.training.recipe import Recipe, from_plain


@dataclasses.dataclass(frozen=True)
class Contract:
    """One side; None is unknown and is not compared."""

    place: str  # who says so, for the error
    cameras: Mapping[str, tuple[int, int] | None]  # name -> (height, width) in pixels
    state_dim: int | None = None
    state_names: tuple[str, ...] | None = None
    action_dim: int | None = None  # of the robot, without padding
    action_names: tuple[str, ...] | None = None
    control_hz: float | None = None
    normalization: NormalizationConfig | None = None


@dataclasses.dataclass(frozen=True)
class Difference:
    field: str
    policy: str
    other: str
    override: str


ACCEPTABLE: dict[str, str] = {
    "state_names": "the numbers mean the same under other names",
    "action_names": "the numbers mean the same under other names",
    "control_hz": "it may act at another rate than it was trained at",
    "normalization": "the new data are normalized as the recipe says, not as the checkpoint was",
}  # differences that a network can run with, and what accepting one says


def of_recipe(recipe: Recipe, action_dim: int | None = None) -> Contract:
    """What a recipe's policy takes and gives. `action_dim` is the robot's: its decoder's may be padded."""
    backbone = recipe.policy.backbone
    cameras = {name: tuple(backbone.image_size) for name in backbone.cameras}
    return Contract(
        f"recipe {recipe.name}",
        cameras,
        state_dim=backbone.state_dim,
        action_dim=action_dim,
        normalization=recipe.data.normalization,
    )


def of_checkpoint(path: Any, metadata: Mapping[str, Any]) -> Contract:
    """What the metadata beside the weights says (`checkpoints.read_metadata`). Older ones name no state dims."""
    recipe = from_plain(Recipe, metadata["recipe"], f"{path}: recipe")
    names, state = tuple(metadata["action"]["names"]), metadata.get("state")
    return dataclasses.replace(
        of_recipe(recipe, len(names) or None),
        place=f"{path} (recipe {recipe.name})",
        action_names=names or None,
        state_names=tuple(state["names"]) if state else None,
        control_hz=metadata["action"]["control_hz"],
    )


def of_environment(spec: EnvSpec) -> Contract:
    return Contract(
        spec.name,
        {name: tuple(size) for name, size in spec.cameras.items()},
        state_dim=spec.state_dim,
        state_names=tuple(spec.state_names),
        action_dim=spec.action_dim,
        action_names=tuple(spec.action_names),
        control_hz=spec.control_hz,
    )


def compare(policy: Contract, other: Contract) -> tuple[Difference, ...]:
    """Every way in which `other` is not what `policy` was made for, in the order of the fields.

    Cameras that `other` has beyond the policy's do not matter, nor does a picture that is a whole multiple of the
    policy's: it is averaged down.
    """
    found = [*_cameras(policy, other)]
    for field in ("state_dim", "state_names", "action_dim", "action_names", "control_hz", "normalization"):
        ours, theirs = getattr(policy, field), getattr(other, field)
        if ours is None or theirs is None or ours == theirs:
            continue
        if field.endswith("_names") and len(ours) != len(theirs):
            continue  # the number of dims is a difference of its own
        override = f"accept {field!r}: {ACCEPTABLE[field]}" if field in ACCEPTABLE else _RETRAIN
        found.append(Difference(field, *_shown(field, ours, theirs), override))
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
    left = [each for each in compare(policy, other) if each.field not in accept]
    if not left:
        return
    rows = [("", policy.place, other.place, "override"), *map(dataclasses.astuple, left)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  " + "  ".join([*(text.ljust(w) for text, w in zip(row, widths, strict=False)), row[3]]) for row in rows]
    raise raises(
        "\n".join([f"{policy.place} does not fit {other.place}", *lines]),
        fix="use it where it was trained for, train it on data of this one, or override what is only a name or a rate",
    )


_RETRAIN = "none: fine-tune it (start_from) on data of this one"
_SHOW = "none: show it these cameras, under these names"


def _cameras(policy: Contract, other: Contract) -> list[Difference]:
    missing = [name for name in policy.cameras if name not in other.cameras]
    found = []
    if missing:
        found.append(Difference("cameras", ", ".join(policy.cameras), ", ".join(other.cameras) or "none", _SHOW))
    for name, wanted in policy.cameras.items():
        size = other.cameras.get(name)
        if wanted and size and not _shrinks(size, wanted):
            whole = f"none: pictures of {wanted[0]}x{wanted[1]}, or a whole multiple"
            found.append(Difference(f"size of {name}", f"{wanted[0]}x{wanted[1]}", f"{size[0]}x{size[1]}", whole))
    return found


def _shrinks(size: tuple[int, int], wanted: tuple[int, int]) -> bool:
    """Whether a picture is averaged down to what the policy wants (see `trained.Edges`)."""
    factor = max(1, size[0] // wanted[0])
    return tuple(size) == (wanted[0] * factor, wanted[1] * factor)


def _shown(field: str, ours: Any, theirs: Any) -> tuple[str, str]:
    """Both sides, of long lists only what differs."""
    if field.endswith("_names"):
        pairs = [(i, a, b) for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
        return ", ".join(f"{i}: {a}" for i, a, _ in pairs), ", ".join(f"{i}: {b}" for i, _, b in pairs)
    if field == "normalization":
        names = [f.name for f in dataclasses.fields(ours) if getattr(ours, f.name) != getattr(theirs, f.name)]
        return tuple(", ".join(f"{name}={getattr(side, name)}" for name in names) for side in (ours, theirs))
    return str(ours), str(theirs)
