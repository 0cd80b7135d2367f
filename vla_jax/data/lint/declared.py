"""What the row of an embodiment says, as lint settings, and where the set contradicts it."""

from vla_jax.data import embodiments
from vla_jax.data.embodiments import Embodiment, Vector
from vla_jax.data.formats.episodes import EpisodeDataset
from vla_jax.data.lint.report import Notes
from vla_jax.data.lint.settings import Declared, LintConfig


def config_of(row: Embodiment, action_horizon: int = 16) -> LintConfig:
    """The features of the row under their full names. A commanded velocity is looked at as a movement."""
    opens = None
    if row.gripper.kind == "absolute" and None not in (row.gripper.open, row.gripper.closed):
        opens = row.gripper.open > row.gripper.closed
    declared = Declared(
        state_dim=row.state_dim,
        action_dim=row.action_dim,
        action_kind={"delta": "delta", "velocity": "delta", "absolute": "absolute"}.get(row.action_kind),
        control_hz=row.control_hz,
        cameras=tuple(f"observation/{key}" for key in row.images.values()),
        gripper_action_dim=_place(row.action, "gripper"),
        larger_action_opens=opens,
        rotation_state_dims=_places(row.state, "axis_angle") or None,
    )
    return LintConfig(
        state_names=tuple(f"observation/{vector.key}" for vector in row.state),
        action_names=tuple(vector.key for vector in row.action),
        instruction_name=row.instruction,
        action_horizon=action_horizon,
        declared=declared,
    )


def check(dataset: EpisodeDataset, row: Embodiment, notes: Notes) -> None:
    """Everything that the row says of features and gripper commands and the files do not."""
    for mismatch in embodiments.mismatches(dataset, row):
        notes.error(
            "embodiment",
            f"row {row.name!r}, {mismatch.field}: expected {mismatch.expected}, found {mismatch.found}",
            "choose the row of this set, or correct it in embodiments.toml",
        )


def _place(vectors: tuple[Vector, ...], part: str) -> int | None:
    """The place of a part's one entry in the joined vectors; None where it has none or several."""
    places = _places(vectors, part)
    return places[0] if len(places) == 1 else None


def _places(vectors: tuple[Vector, ...], part: str) -> tuple[int, ...]:
    """The places of all entries of a part."""
    places, start = [], 0
    for vector in vectors:
        places += [start + dim for dim in vector.dims(part)]
        start += vector.dim
    return tuple(places)
