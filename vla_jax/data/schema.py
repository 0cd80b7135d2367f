"""Which features of a dataset become which parts of an Observation and its action chunk."""

import dataclasses
from collections.abc import Mapping

from vla_jax.core import errors
from vla_jax.data.formats.features import FeatureSpec


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """One split of one RLDS dataset, as a policy wants to see it."""

    path: str  # the version folder, the one that holds dataset_info.json
    action_horizon: int  # steps per chunk
    cameras: tuple[tuple[str, str], ...]  # (our name, name under observation/): (("front", "image"), ...)
    split: str = "train"
    state_keys: tuple[str, ...] = ("state",)  # under observation/, joined in this order
    action_key: str = "action"
    instruction_key: str = "language_instruction"
    displacement_dims: tuple[int, ...] = ()  # action dims that are movements: 0 past the end of an episode
    history: int = 1  # frames per observation; above 1, images and state get a time axis after the batch
    action_dim: int | None = None  # zero-padded to this width, masked; None: the robot's own
    downscale: int = 1  # blocks of this many pixels a side are averaged into one

    def __post_init__(self):
        for name in ("action_horizon", "history", "downscale"):
            if getattr(self, name) < 1:
                raise errors.ConfigError(f"DatasetConfig.{name}", expected="at least 1", found=getattr(self, name))
        ours = [name for name, _ in self.cameras]
        if len(set(ours)) != len(ours):
            raise errors.ConfigError("DatasetConfig.cameras", expected="each of our names once", found=ours)
        if not self.state_keys:
            raise errors.ConfigError("DatasetConfig.state_keys", expected="at least one", found="none")

    @property
    def state_names(self) -> tuple[str, ...]:
        return tuple(f"observation/{key}" for key in self.state_keys)

    def camera_name(self, camera: str) -> str:
        """The feature behind one of our camera names."""
        return f"observation/{dict(self.cameras)[camera]}"

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Everything the loader reads, and all that is indexed for it."""
        images = tuple(f"observation/{key}" for _, key in self.cameras)
        return (*images, *self.state_names, self.action_key, self.instruction_key)


def check(config: DatasetConfig, specs: Mapping[str, FeatureSpec], place: str) -> None:
    """Raise DataError unless the dataset has every feature the config asks for, of the right kind."""
    wanted = (
        *((name, "image", f"cameras={config.cameras!r}") for name in map(config.camera_name, dict(config.cameras))),
        *((name, "tensor", f"state_keys={config.state_keys!r}") for name in config.state_names),
        (config.action_key, "tensor", f"action_key={config.action_key!r}"),
        (config.instruction_key, "text", f"instruction_key={config.instruction_key!r}"),
    )
    for name, kind, asked_by in wanted:
        if name not in specs:
            raise errors.DataError(
                f'{place}: no key "steps/{name}"',
                expected=f"{kind}, asked for by {asked_by}",
                found=_listing(specs, kind),
                fix=errors.closest(name, [n for n, s in specs.items() if s.kind == kind and s.is_step]),
            )
        if specs[name].kind != kind or not specs[name].is_step:
            raise errors.DataError(
                f'{place}: "steps/{name}" is of another kind',
                expected=f"{kind}, asked for by {asked_by}",
                found=str(specs[name]),
                fix=errors.closest(name, [n for n, s in specs.items() if s.kind == kind and s.is_step]),
            )
        if kind == "tensor" and len(specs[name].shape) > 1:
            raise errors.DataError(
                f'{place}: "steps/{name}" is no vector', expected="one axis per step", found=str(specs[name])
            )


def _listing(specs: Mapping[str, FeatureSpec], kind: str) -> str:
    names = sorted(f"steps/{name}" for name, spec in specs.items() if spec.is_step and spec.kind == kind)
    return ", ".join(names) or f"no {kind} at all"
