"""Sampling by removing noise level by level: DDPM and DDIM from a predicted noise, EDM from a predicted clean point.

Time runs as everywhere here: 0 is noise, 1 is data. The discrete levels `k = num_steps .. 1` of a variance-preserving
schedule are told to the model as `time = 1 - k / num_steps`; EDM tells it the noise's standard deviation.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, Key

from vla_jax.core import errors

ModelFn = Callable[[Float[Array, "..."], Float[Array, ""]], Float[Array, "..."]]


@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """`x_k = signal_k * x + sigma_k * noise` with `signal_k^2 + sigma_k^2 = 1`, for levels 1 to `num_steps`."""

    num_steps: int = 10
    kind: Literal["cosine", "vp"] = "cosine"  # arXiv 2102.09672, eq. 17; the discretized VP-SDE, beta from 0.1 to 10

    def __post_init__(self):
        if self.num_steps < 1:
            raise errors.ConfigError("NoiseSchedule.num_steps", expected="1 or more", found=self.num_steps)

    @property
    def signal(self) -> Float[np.ndarray, "levels"]:
        """The factor on the data at levels 0 (clean: 1) to `num_steps`."""
        n = self.num_steps
        if self.kind == "vp":
            k = np.arange(1, n + 1)
            alphas = np.exp(-0.1 / n - 0.5 * (10 - 0.1) * (2 * k - 1) / n**2)
        else:
            through = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * np.pi / 2) ** 2
            alphas = 1 - np.clip(1 - through[1:] / through[:-1], 0, 0.999)
        return np.sqrt(np.concatenate([[1.0], np.cumprod(alphas)])).astype(np.float32)

    @property
    def sigma(self) -> Float[np.ndarray, "levels"]:
        """The standard deviation of the noise at levels 0 (clean: 0) to `num_steps`."""
        return np.sqrt(1 - np.square(self.signal, dtype=np.float64)).astype(np.float32)

    def time(self, level: Int[Array, "..."]) -> Float[Array, "..."]:
        return 1 - level / self.num_steps


class LevelTrace(struct.PyTreeNode):
    x: Float[Array, "steps ..."]  # the point before each step


@dataclasses.dataclass(frozen=True)
class DDPMOptions:
    """Every level once, with noise of variance `beta_k` behind all but the last (arXiv 2006.11239, algorithm 2)."""

    schedule: NoiseSchedule = NoiseSchedule()
    clip: bool = False  # to [-1, 1] after every step


def ddpm(
    key: Key[Array, ""], noise_fn: ModelFn, x_init: Float[Array, "..."], options: DDPMOptions
) -> tuple[Float[Array, "..."], LevelTrace]:
    """From `x_init`, a standard Gaussian, to data in `num_steps` calls of `noise_fn(x, time)`."""
    schedule = options.schedule
    signal, sigma = jnp.asarray(schedule.signal), jnp.asarray(schedule.sigma)
    levels = jnp.arange(schedule.num_steps, 0, -1)

    def step(x, inputs):
        level, key = inputs
        alpha = jnp.square(signal[level] / signal[level - 1])
        noise = noise_fn(x, schedule.time(level)).astype(x.dtype)
        mean = (x - (1 - alpha) / sigma[level] * noise) / jnp.sqrt(alpha)
        drawn = jnp.sqrt(1 - alpha) * jax.random.normal(key, x.shape, x.dtype)
        moved = mean + jnp.where(level > 1, drawn, 0)
        return jnp.clip(moved, -1, 1) if options.clip else moved, x

    x, points = jax.lax.scan(step, x_init, (levels, jax.random.split(key, schedule.num_steps)))
    return x, LevelTrace(points)


@dataclasses.dataclass(frozen=True)
class DDIMOptions:
    """`num_steps` of the schedule's levels, evenly chosen, without fresh noise (arXiv 2010.02502, eq. 12)."""

    schedule: NoiseSchedule = NoiseSchedule()
    num_steps: int = 5
    clip: bool = False  # the predicted data to [-1, 1] in every step

    def __post_init__(self):
        if not 1 <= self.num_steps <= self.schedule.num_steps:
            raise errors.ConfigError(
                "DDIMOptions.num_steps", expected=f"1 to {self.schedule.num_steps} levels", found=self.num_steps
            )


def ddim(
    key: Key[Array, ""], noise_fn: ModelFn, x_init: Float[Array, "..."], options: DDIMOptions
) -> tuple[Float[Array, "..."], LevelTrace]:
    """Deterministic given `x_init`; `key` is not used, and here because all samplers are called alike."""
    del key
    schedule = options.schedule
    signal, sigma = jnp.asarray(schedule.signal), jnp.asarray(schedule.sigma)
    levels = np.linspace(schedule.num_steps, 0, options.num_steps + 1).round().astype(int)

    def step(x, inputs):
        level, following = inputs
        noise = noise_fn(x, schedule.time(level)).astype(x.dtype)
        data = (x - sigma[level] * noise) / signal[level]
        if options.clip:
            data = jnp.clip(data, -1, 1)
            noise = (x - signal[level] * data) / sigma[level]
        return signal[following] * data + sigma[following] * noise, x

    x, points = jax.lax.scan(step, x_init, (jnp.asarray(levels[:-1]), jnp.asarray(levels[1:])))
    return x, LevelTrace(points)


@dataclasses.dataclass(frozen=True)
class EDMOptions:
    """Heun steps over falling noise, with some put back before each (arXiv 2206.00364, algorithm 2 and eq. 5)."""

    num_steps: int = 18
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    churn: float = 0.0  # 0: deterministic
    churn_range: tuple[float, float] = (0.0, float("inf"))  # of noise levels where it is put back
    churn_noise: float = 1.0

    def __post_init__(self):
        if self.num_steps < 2 or not 0 < self.sigma_min < self.sigma_max:
            raise errors.ConfigError(
                "EDMOptions",
                expected="num_steps >= 2 and 0 < sigma_min < sigma_max",
                found=f"num_steps={self.num_steps}, sigma_min={self.sigma_min}, sigma_max={self.sigma_max}",
            )

    @property
    def sigmas(self) -> Float[np.ndarray, "sigmas"]:
        """From `sigma_max` to `sigma_min`, then 0."""
        steps = np.linspace(0, 1, self.num_steps)
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return np.append((high + steps * (low - high)) ** self.rho, 0).astype(np.float32)


def edm(
    key: Key[Array, ""], denoise_fn: ModelFn, x_init: Float[Array, "..."], options: EDMOptions
) -> tuple[Float[Array, "..."], LevelTrace]:
    """From `x_init`, Gaussian of deviation `sigma_max`, to data; `denoise_fn(x, sigma)` predicts the data."""
    sigmas = options.sigmas
    low, high = options.churn_range
    inside = (sigmas[:-1] >= low) & (sigmas[:-1] <= high)
    gammas = np.where(inside, min(options.churn / options.num_steps, 2**0.5 - 1), 0).astype(np.float32)

    def step(x, inputs):
        key, sigma, following, gamma = inputs
        raised = sigma * (1 + gamma)
        noise = options.churn_noise * jax.random.normal(key, x.shape, x.dtype)
        x_raised = x + sigma * jnp.sqrt(gamma * (2 + gamma)) * noise  # variance raised^2 - sigma^2
        slope = (x_raised - denoise_fn(x_raised, raised)) / raised
        euler = x_raised + (following - raised) * slope
        # The last level is 0, where the slope is not defined: there it stays an Euler step.
        safe = jnp.where(following > 0, following, 1)
        second = (euler - denoise_fn(euler, safe)) / safe
        heun = x_raised + (following - raised) * 0.5 * (slope + second)
        return jnp.where(following > 0, heun, euler), x

    keys = jax.random.split(key, options.num_steps)
    inputs = (keys, jnp.asarray(sigmas[:-1]), jnp.asarray(sigmas[1:]), jnp.asarray(gammas))
    x, points = jax.lax.scan(step, x_init, inputs)
    return x, LevelTrace(points)
