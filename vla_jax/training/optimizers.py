"""Optimizers as plain configs; `build()` makes the optax transformation that a learner is given."""

import dataclasses
import fnmatch
from typing import Any

import jax
import optax

from vla_jax.core import errors
from vla_jax.core.types import Params
from vla_jax.training.sharding import path_name

NO_DECAY = ("*bias", "*scale", "*norm*")  # by name too: layers that are stacked give their biases a second dim


@dataclasses.dataclass(frozen=True)
class AdamW:
    """AdamW (arXiv 1711.05101) with warm-up, cosine decay, clipping, accumulation and freezing.

    Steps of the schedule are optimizer updates: with `accumulate_steps=k`, one per k batches, whose mean gradient is
    clipped and applied, as one batch k times as large would be. Patterns are shell patterns on the whole parameter
    path, for example `backbone/vision/*`; `*` crosses slashes. Frozen parameters have no moments.
    """

    peak_lr: float = 3e-4
    warmup_steps: int = 0  # linear from 0
    decay_steps: int | None = None  # updates from 0 until end_lr, warm-up included; None: constant after the warm-up
    end_lr: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 1e-4
    no_decay: tuple[str, ...] = NO_DECAY  # these, and every leaf of less than two dims, do not decay
    clip_norm: float | None = 1.0  # of the global gradient of what is trained
    accumulate_steps: int = 1
    freeze: tuple[str, ...] = ()

    def __post_init__(self):
        _check_schedule(self)
        if self.weight_decay < 0:
            raise errors.ConfigError("AdamW.weight_decay", expected="at least 0", found=self.weight_decay)

    def schedule(self) -> optax.Schedule:
        """Learning rate by optimizer update."""
        return _schedule(self)

    def build(self) -> optax.GradientTransformation:
        """The transformation; `init` raises ConfigError when a freeze pattern matches no parameter."""
        update = optax.adamw(
            self.schedule(),
            b1=self.b1,
            b2=self.b2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            mask=lambda params: decayed(params, self.no_decay),
        )
        return _finish(self, update)


@dataclasses.dataclass(frozen=True)
class Adam:
    """Adam (arXiv 1412.6980), for critics and small networks. Fields as in `AdamW`."""

    peak_lr: float = 3e-4
    warmup_steps: int = 0
    decay_steps: int | None = None
    end_lr: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float | None = None
    accumulate_steps: int = 1
    freeze: tuple[str, ...] = ()

    def __post_init__(self):
        _check_schedule(self)

    def schedule(self) -> optax.Schedule:
        """Learning rate by optimizer update."""
        return _schedule(self)

    def build(self) -> optax.GradientTransformation:
        """The transformation; `init` raises ConfigError when a freeze pattern matches no parameter."""
        return _finish(self, optax.adam(self.schedule(), b1=self.b1, b2=self.b2, eps=self.eps))


def decayed(params: Params, no_decay: tuple[str, ...] = NO_DECAY) -> Any:
    """True for every leaf that weight decay applies to."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim >= 2 and not _matches(path_name(path), no_decay), params
    )


def frozen(params: Params, patterns: tuple[str, ...]) -> Any:
    """True for every leaf whose path matches one of `patterns`. Raises ConfigError when a pattern matches none."""
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
            raise errors.ConfigError(
                f"freeze pattern {pattern!r} matches no parameter", fix=errors.closest(pattern, paths)
            )
    return jax.tree_util.tree_map_with_path(lambda path, _: _matches(path_name(path), patterns), params)


def _check_schedule(config: AdamW | Adam) -> None:
    name = type(config).__name__
    if config.peak_lr <= 0 or not 0 <= config.end_lr <= config.peak_lr:
        raise errors.ConfigError(
            f"{name} learning rates",
            expected="0 <= end_lr <= peak_lr, peak_lr > 0",
            found=f"peak_lr={config.peak_lr}, end_lr={config.end_lr}",
        )
    if config.warmup_steps < 0 or (config.decay_steps is not None and config.decay_steps <= config.warmup_steps):
        raise errors.ConfigError(
            f"{name} schedule",
            expected="0 <= warmup_steps < decay_steps (which counts the warm-up too)",
            found=f"warmup_steps={config.warmup_steps}, decay_steps={config.decay_steps}",
        )
    if config.decay_steps is None and config.end_lr > 0:
        raise errors.ConfigError(
            f"{name}.end_lr is never reached", found=f"end_lr={config.end_lr}", fix="give decay_steps"
        )
    if config.accumulate_steps < 1 or (config.clip_norm is not None and config.clip_norm <= 0):
        raise errors.ConfigError(
            name,
            expected="accumulate_steps >= 1 and clip_norm > 0 or None",
            found=f"accumulate_steps={config.accumulate_steps}, clip_norm={config.clip_norm}",
        )


def _schedule(config: AdamW | Adam) -> optax.Schedule:
    if config.decay_steps is not None:
        return optax.warmup_cosine_decay_schedule(
            0.0 if config.warmup_steps else config.peak_lr,
            config.peak_lr,
            config.warmup_steps,
            config.decay_steps,
            config.end_lr,
        )
    if config.warmup_steps:
        return optax.linear_schedule(0.0, config.peak_lr, config.warmup_steps)
    return optax.constant_schedule(config.peak_lr)


def _finish(config: AdamW | Adam, update: optax.GradientTransformation) -> optax.GradientTransformation:
    if config.clip_norm is not None:
        update = optax.chain(optax.clip_by_global_norm(config.clip_norm), update)
    if config.accumulate_steps > 1:
        update = optax.MultiSteps(update, config.accumulate_steps).gradient_transformation()
    if not config.freeze:
        return update
    # Clipping and accumulation are inside, so that frozen leaves neither count in the norm nor keep a sum.
    return optax.partition(
        {"train": update, "freeze": optax.set_to_zero()},
        lambda params: jax.tree.map(lambda yes: "freeze" if yes else "train", frozen(params, config.freeze)),
    )


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
