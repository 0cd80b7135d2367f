"""What lint is told about a set, and where it draws its lines."""

import dataclasses
from typing import Literal

from vla_jax.core import errors


@dataclasses.dataclass(frozen=True)
class Declared:
    """What the user, a recipe or the row of the embodiment says; None: nothing, and nothing is compared."""

    state_dim: int | None = None
    action_dim: int | None = None
    action_kind: Literal["delta", "absolute"] | None = None  # of all action dims but the gripper's
    control_hz: float | None = None
    cameras: tuple[str, ...] | None = None  # features that must be there; None: those of the set are looked at
    gripper_action_dim: int | None = None
    gripper_state_dim: int | None = None  # its finger distance or opening
    larger_action_opens: bool | None = None  # the gripper
    larger_state_is_open: bool = True
    rotation_state_dims: tuple[int, int, int] | None = None  # a rotation vector: axis times angle, radians


@dataclasses.dataclass(frozen=True)
class LintConfig:
    """Names are those of features: `observation/state`, `action`."""

    state_names: tuple[str, ...] = ("observation/state",)  # joined in this order; none: nothing is said about them
    action_names: tuple[str, ...] = ("action",)
    instruction_name: str | None = "language_instruction"
    action_horizon: int = 16  # steps per chunk of the policy to come
    declared: Declared = Declared()
    max_frames: int = 500_000  # whose numbers are related to each other, in whole episodes spread over the set
    picture_episodes: int = 12  # whose pictures are looked at
    picture_frames: int = 24  # of each of them, one after the other

    def __post_init__(self):
        if not self.action_names:
            raise errors.ConfigError("LintConfig.action_names", expected="at least one", found="none")
        for name in ("action_horizon", "max_frames", "picture_episodes"):
            if getattr(self, name) < 1:
                raise errors.ConfigError(f"LintConfig.{name}", expected="at least 1", found=getattr(self, name))
        if self.picture_frames < 2:
            raise errors.ConfigError("LintConfig.picture_frames", expected="at least 2", found=self.picture_frames)
