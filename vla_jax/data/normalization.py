"""Statistics of states and actions, saved once beside the data or a checkpoint, and the affine maps they define.

Both modes are `(x - shift) / scale`: quantile maps the 1st and 99th percentiles to -1 and 1, z-score the mean to 0 and
one standard deviation to 1. The same statistics normalize at the data's edge and un-normalize at the policy's.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flax import struct
from jaxtyping import Array, Float

from vla_jax.core import errors

Mode = Literal["quantile", "z_score", "none"]
_SMALLEST_SCALE = 1e-6  # a dim that varies less is constant: it is shifted but not stretched


@dataclasses.dataclass(frozen=True)
class FieldStatistics:
    """Per dim, in physical units; exact over all frames. Tuples, so that it can be compared, hashed and stored."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    count: int  # frames

    def __post_init__(self):
        lengths = {len(value) for value in dataclasses.astuple(self)[:-1]}
        if len(lengths) != 1:
            raise errors.DataError("statistics", expected="one value per dim in every row", found=f"{sorted(lengths)}")

    @property
    def dim(self) -> int:
        return len(self.mean)

    @classmethod
    def of(cls, values: Float[np.ndarray, "frames d"]) -> "FieldStatistics":
        if len(values) == 0 or not np.isfinite(values).all():
            raise errors.DataError(
                "statistics", expected="frames of finite numbers", found=f"{len(values)} frames, NaN or infinity inside"
            )
        values = np.asarray(values, np.float64)
        q01, q99 = np.quantile(values, (0.01, 0.99), axis=0)
        rows = (values.mean(0), values.std(0), q01, q99, values.min(0), values.max(0))
        return cls(*(tuple(row.tolist()) for row in rows), count=len(values))


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What a dataset's numbers look like; part of every checkpoint."""

    state: FieldStatistics
    actions: FieldStatistics

    @classmethod
    def identity(cls, state_dim: int, action_dim: int) -> "Statistics":
        """Those that change nothing, whatever the mode: where there is no data to compute them from."""

        def unit(dim: int) -> FieldStatistics:
            low, high = (-1.0,) * dim, (1.0,) * dim
            return FieldStatistics((0.0,) * dim, high, low, high, low, high, count=0)

        return cls(unit(state_dim), unit(action_dim))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str, place: str = "statistics") -> "Statistics":
        try:
            stored = json.loads(text)
            return cls(_field(stored["state"]), _field(stored["actions"]))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise errors.DataError(
                f"{place}: not normalization statistics",
                expected="state and actions, each with mean, std, q01, q99, min, max, count",
                found=repr(error),
                fix="compute them again with `vla-jax data stats`",
            ) from error

    def save(self, path: str | Path) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.incomplete")
        partial.write_text(self.to_json())
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | Path) -> "Statistics":
        path = Path(path)
        if not path.is_file():
            raise errors.DataError(
                f"{path}: no normalization statistics",
                expected="the statistics the policy was (or will be) trained with",
                found="no such file",
                fix="compute them with `vla-jax data stats`, or copy them from the checkpoint",
            )
        return cls.from_json(path.read_text(), str(path))


@dataclasses.dataclass(frozen=True)
class NormalizationConfig:
    """How statistics become a normalizer."""

    mode: Mode = "quantile"
    raw_state_dims: tuple[int, ...] = ()  # left as they are, for example a gripper that is 0 or 1
    raw_action_dims: tuple[int, ...] = ()
    hidden_state_dims: tuple[int, ...] = ()  # 0 for the policy, always. What tells how the robot moves just now tells
    # what the demonstrator did just before, and imitation then copies that instead of looking (arXiv 1905.11979)

    def __post_init__(self):
        if self.mode not in ("quantile", "z_score", "none"):
            raise errors.ConfigError("mode", expected="quantile, z_score or none", found=repr(self.mode))


class Normalizer(struct.PyTreeNode):
    """Affine maps of states and actions; the same code serves numpy arrays and traced ones.

    Arrays may carry any leading dims. Actions wider than the robot's (padded to the model's `action_dim`) lose their
    padding in `unnormalize_actions`.
    """

    state_shift: Float[Array, "s"]
    state_scale: Float[Array, "s"]
    action_shift: Float[Array, "a"]
    action_scale: Float[Array, "a"]
    config: NormalizationConfig = struct.field(pytree_node=False)

    @classmethod
    def create(cls, statistics: Statistics, config: NormalizationConfig | None = None) -> "Normalizer":
        """The maps of `statistics`; without a config, quantiles of every dim."""
        config = config or NormalizationConfig()
        state_shift, state_scale = _affine(statistics.state, config.mode, config.raw_state_dims, "raw_state_dims")
        _check_dims(statistics.state, config.hidden_state_dims, "hidden_state_dims")
        state_scale[list(config.hidden_state_dims)] = np.inf
        return cls(
            state_shift,
            state_scale,
            *_affine(statistics.actions, config.mode, config.raw_action_dims, "raw_action_dims"),
            config=config,
        )

    @property
    def state_dim(self) -> int:
        return self.state_shift.shape[-1]

    @property
    def robot_action_dim(self) -> int:
        return self.action_shift.shape[-1]

    def normalize_state(self, state: Float[Array, "*b s"]) -> Float[Array, "*b s"]:
        return (state - _lift(self.state_shift, state)) / _lift(self.state_scale, state)

    def normalize_actions(self, actions: Float[Array, "*b a"]) -> Float[Array, "*b a"]:
        return (actions - _lift(self.action_shift, actions)) / _lift(self.action_scale, actions)

    def unnormalize_actions(self, actions: Float[Array, "*b action_dim"]) -> Float[Array, "*b a"]:
        actions = actions[..., : self.robot_action_dim]
        return actions * _lift(self.action_scale, actions) + _lift(self.action_shift, actions)


def _affine(field: FieldStatistics, mode: Mode, raw_dims: tuple[int, ...], name: str) -> tuple[np.ndarray, np.ndarray]:
    _check_dims(field, raw_dims, name)
    if mode == "quantile":
        low, high = np.array(field.q01), np.array(field.q99)
        shift, scale = (low + high) / 2, (high - low) / 2
    elif mode == "z_score":
        shift, scale = np.array(field.mean), np.array(field.std)
    else:
        shift, scale = np.zeros(field.dim), np.ones(field.dim)
    scale = np.where(scale < _SMALLEST_SCALE, 1.0, scale)
    raw = np.isin(np.arange(field.dim), raw_dims)
    return np.where(raw, 0.0, shift).astype(np.float32), np.where(raw, 1.0, scale).astype(np.float32)


def _check_dims(field: FieldStatistics, dims: tuple[int, ...], name: str) -> None:
    if any(not 0 <= dim < field.dim for dim in dims):
        raise errors.ConfigError(name, expected=f"dims below {field.dim}", found=dims)


def _lift(row: Array, like: Array) -> Array:
    """`row` with the rank of `like`: rank promotion is an error in this house."""
    if row.shape[-1] != like.shape[-1]:
        raise errors.DataError(
            "normalization", expected=f"{row.shape[-1]} dims, as in the statistics", found=f"{like.shape[-1]}"
        )
    return row.reshape((1,) * (like.ndim - 1) + row.shape)


def _field(stored: dict[str, Any]) -> FieldStatistics:
    return FieldStatistics(**{k: v if k == "count" else tuple(map(float, v)) for k, v in stored.items()})
