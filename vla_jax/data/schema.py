"""Which features of a dataset become which parts of an Observation and its action chunk."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Literal

from vla_jax.core import errors
from vla_jax.data.action_kinds import ActionKind, RelativeDims
from vla_jax.data.formats.features import FeatureSpec
from vla_jax.data.pictures.resize import Fit, check_size
from vla_jax.data.samples import kept_frames
from vla_jax.data.samples.goals import GoalConfig
from vla_jax.data.samples.selection import SampleBy
from vla_jax.data.samples.splits import Subset


@dataclasses.dataclass(frozen=True)
class TransitionConfig:
    """How the steps of an episode become transitions for reinforcement learning.

    Only `terminal_key` ends a task. An episode that stops without it was cut off: its last frame is then the
    observation to bootstrap from, and no transition starts there.
    """

    reward_key: str = "reward"
    terminal_key: str = "is_terminal"  # at the last step: the task has ended
    last_step: Literal["acts", "shows"] = "acts"  # whether its action was run and its reward earned; RLDS says "shows"
    n_step: int = 1  # rewards summed into one; above 1 the action horizon must be 1
    discount: float = 0.99  # of that sum

    def __post_init__(self):
        if self.last_step not in ("acts", "shows"):
            raise errors.ConfigError("TransitionConfig.last_step", expected='"acts" or "shows"', found=self.last_step)
        if self.n_step < 1:
            raise errors.ConfigError("TransitionConfig.n_step", expected="at least 1", found=self.n_step)
        if not 0 < self.discount <= 1:
            raise errors.ConfigError("TransitionConfig.discount", expected="a value in (0, 1]", found=self.discount)


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """One split of one dataset, as a policy wants to see it.

    `cameras` pairs our names with those under observation/, one of which is drawn per sample where there are several:
    (("front", ("exterior_image_1_left", "exterior_image_2_left")), ("wrist", "wrist_image_left")). Such draws are
    functions of the seed and the sample's position in the stream.
    """

    path: str  # RLDS: the version folder, the one that holds dataset_info.json
    action_horizon: int  # steps per chunk
    cameras: tuple[tuple[str, str | tuple[str, ...]], ...]
    split: str = "train"
    state_keys: tuple[str, ...] = ("state",)  # under observation/, joined in this order
    action_key: str | tuple[str, ...] = "action"  # several are joined in this order
    instruction_key: str | tuple[str, ...] = "language_instruction"  # of several, a non-empty one is drawn per sample
    displacement_dims: tuple[int, ...] = ()  # recorded action dims that are movements: 0 past the end of an episode
    history: int = 1  # frames per observation; above 1, images and state get a time axis after the batch
    action_dim: int | None = None  # zero-padded to this width, masked; None: the robot's own
    downscale: int = 1  # blocks of this many pixels a side are averaged into one
    downscale_in_decoder: bool = False  # by the JPEG decoder (2, 4 or 8): quicker, not equal; see image_codec.decode
    resize: tuple[int, int, Fit] | None = None  # height, width, "pad", "crop" or "stretch"
    optional_cameras: tuple[str, ...] = ()  # of ours; where the set or a step lacks one, black and masked
    action_kind: ActionKind = "as recorded"  # "delta": targets from the state at the start; see action_kinds.py
    relative_dims: RelativeDims = ()  # (action dim, state dim) pairs that `action_kind` converts
    future_offset: int | None = None  # steps ahead of the observation that `Demonstrations.future` holds
    kept_frames: str | None = None  # a file of kept ranges by episode key, such as DROID's without idle frames
    episode_filter: tuple[str, str] | None = None  # a text feature of episodes, a regular expression found in it
    first_frames: int | None = None  # of every episode; None: all
    sample_by: SampleBy = "frame"  # "episode": every episode weighs the same, however long
    holdout: float = 0.0  # fraction of the episodes, by a stable hash of their keys, that `subset` "train" leaves out
    subset: Subset = "train"
    embodiment: str | None = None  # the robot's name, to balance mixtures by and to report by
    image_cache: str | None = None  # a folder that `vla-jax data cache` filled with pictures of their final size
    goals: GoalConfig | None = None  # hindsight goals
    transitions: TransitionConfig | None = None  # batches are Transitions, for reinforcement learning

    def __post_init__(self):
        for name in ("action_horizon", "history", "downscale", "future_offset", "first_frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise errors.ConfigError(f"DatasetConfig.{name}", expected="at least 1", found=value)
        self._check_cameras()
        for name in ("state_keys", "action_names", "instruction_names"):
            if not getattr(self, name):
                raise errors.ConfigError(f"DatasetConfig.{name}", expected="at least one", found="none")
        choices = {
            "action_kind": ("as recorded", "delta", "absolute"),
            "sample_by": ("frame", "episode"),
            "subset": ("train", "validation"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                expected = " or ".join(map(repr, known))
                raise errors.ConfigError(f"DatasetConfig.{name}", expected=expected, found=repr(getattr(self, name)))
        if not 0 <= self.holdout < 1:
            raise errors.ConfigError("DatasetConfig.holdout", expected="a fraction in [0, 1)", found=self.holdout)
        if self.subset == "validation" and self.holdout == 0:
            raise errors.ConfigError(
                "DatasetConfig.subset is validation, but nothing is held out",
                expected="holdout above 0, the same as in training",
                found=self.holdout,
            )
        self._check_pattern()
        if self.transitions is not None and self.transitions.n_step > 1 and self.action_horizon > 1:
            raise errors.ConfigError(
                "DatasetConfig.transitions.n_step",
                expected="1, because a chunk of action_horizon steps is a return of that many steps already",
                found=f"n_step {self.transitions.n_step}, action_horizon {self.action_horizon}",
            )
        if self.transitions is not None and self.future_offset is not None:
            raise errors.ConfigError(
                "DatasetConfig.future_offset",
                expected="none beside transitions, whose future is next_observation",
                found=self.future_offset,
            )

    def _check_cameras(self) -> None:
        ours = [name for name, _ in self.cameras]
        if len(set(ours)) != len(ours):
            raise errors.ConfigError("DatasetConfig.cameras", expected="each of our names once", found=ours)
        for name, theirs in self.cameras:
            if not theirs:
                raise errors.ConfigError(f"DatasetConfig.cameras, {name}", expected="a name", found=repr(theirs))
        for name in self.optional_cameras:
            if name not in ours:
                raise errors.ConfigError(
                    f"DatasetConfig.optional_cameras names {name!r}", fix=errors.closest(name, ours)
                )
        if self.resize is not None:
            check_size(self.resize, "DatasetConfig.resize")
            if self.downscale != 1:
                raise errors.ConfigError(
                    "DatasetConfig.resize and downscale both change the size",
                    expected="one of them",
                    found=f"resize={self.resize}, downscale={self.downscale}",
                )
        if self.downscale_in_decoder and self.downscale not in (2, 4, 8):
            raise errors.ConfigError(
                "DatasetConfig.downscale_in_decoder", expected="downscale of 2, 4 or 8", found=self.downscale
            )

    def _check_pattern(self) -> None:
        if self.episode_filter is None:
            return
        try:
            re.compile(self.episode_filter[1])
        except re.error as error:
            raise errors.ConfigError(
                "DatasetConfig.episode_filter", expected="a regular expression", found=f"{self.episode_filter}: {error}"
            ) from error

    @property
    def key(self) -> str:
        """What this dataset is called among others: the robot, the last two folders of its path, and the split."""
        folders = "/".join(self.path.rstrip("/").split("/")[-2:])
        return ":".join(part for part in (self.embodiment, folders, self.split) if part)

    @property
    def state_names(self) -> tuple[str, ...]:
        return tuple(f"observation/{key}" for key in self.state_keys)

    @property
    def action_names(self) -> tuple[str, ...]:
        return _tuple(self.action_key)

    @property
    def instruction_names(self) -> tuple[str, ...]:
        return _tuple(self.instruction_key)

    @property
    def camera_names(self) -> dict[str, tuple[str, ...]]:
        """The features behind our camera names, one or several to draw from."""
        return {ours: tuple(f"observation/{name}" for name in _tuple(theirs)) for ours, theirs in self.cameras}

    def present_cameras(self, specs: Mapping[str, FeatureSpec]) -> dict[str, tuple[str, ...]]:
        """`camera_names` without what the dataset lacks of optional cameras; such a one may have no name left."""
        return {
            ours: tuple(name for name in names if name in specs) if ours in self.optional_cameras else names
            for ours, names in self.camera_names.items()
        }

    def feature_names(self, specs: Mapping[str, FeatureSpec]) -> tuple[str, ...]:
        """Everything that is read of a dataset with these features, and all that is indexed for it."""
        cameras = [name for names in self.present_cameras(specs).values() for name in names]
        names = [*cameras, *self.state_names, *self.action_names, *self.instruction_names]
        if self.transitions is not None:
            names += [self.transitions.terminal_key] + ([] if self.goals else [self.transitions.reward_key])
        if self.episode_filter is not None:
            names.append(self.episode_filter[0])
        if self.holdout > 0 or self.kept_frames is not None:
            names += [name for name in kept_frames.KEY_FEATURES if name in specs]
        return tuple(dict.fromkeys(names))


def check(config: DatasetConfig, specs: Mapping[str, FeatureSpec], place: str) -> None:
    """Raise DataError unless the dataset has every feature the config asks for, of the right kind."""
    cameras = config.present_cameras(specs)
    wanted = [
        *((name, "image", f"cameras={config.cameras!r}", True) for names in cameras.values() for name in names),
        *((name, "tensor", f"state_keys={config.state_keys!r}", True) for name in config.state_names),
        *((name, "tensor", f"action_key={config.action_key!r}", True) for name in config.action_names),
        *((name, "text", f"instruction_key={config.instruction_key!r}", True) for name in config.instruction_names),
    ]
    if config.transitions is not None:
        keys = (config.transitions.terminal_key, *(() if config.goals else (config.transitions.reward_key,)))
        wanted += [(name, "tensor", "transitions", True) for name in keys]
    if config.episode_filter is not None:
        wanted.append((config.episode_filter[0], "text", f"episode_filter={config.episode_filter!r}", False))
    for name, kind, asked_by, is_step in wanted:
        _check_feature(specs, name, kind, is_step, asked_by, place)


def _check_feature(
    specs: Mapping[str, FeatureSpec], name: str, kind: str, is_step: bool, asked_by: str, place: str
) -> None:
    alike = [n for n, spec in specs.items() if spec.kind == kind and spec.is_step == is_step]
    whole = f"steps/{name}" if is_step else name
    if name not in specs:
        listed = ", ".join(sorted(f"steps/{n}" if is_step else n for n in alike))
        raise errors.DataError(
            f'{place}: no key "{whole}"',
            expected=f"{kind}, asked for by {asked_by}",
            found=listed or f"no {kind} at all",
            fix=errors.closest(name, alike),
        )
    if specs[name].kind != kind or specs[name].is_step != is_step:
        raise errors.DataError(
            f'{place}: "{whole}" is of another kind',
            expected=f"{kind}, asked for by {asked_by}",
            found=str(specs[name]),
            fix=errors.closest(name, alike),
        )
    if kind == "tensor" and len(specs[name].shape) > 1:
        raise errors.DataError(f'{place}: "{whole}" is no vector', expected="one axis per step", found=str(specs[name]))


def _tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)
