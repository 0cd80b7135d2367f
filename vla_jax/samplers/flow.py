"""Deterministic sampling from a velocity field: time 0 is noise, time 1 is data."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Key

from vla_jax.core import errors

VelocityFn = Callable[[Float[Array, "..."], Float[Array, ""]], Float[Array, "..."]]


@dataclasses.dataclass(frozen=True)
class EulerOptions:
    """`num_steps` equal steps from `start_time` to 1. A positive start continues a chunk that is partly denoised."""

    num_steps: int = 10
    start_time: float = 0.0  # in [0, 1)

    def __post_init__(self):
        if self.num_steps < 1 or not 0 <= self.start_time < 1:
            raise errors.ConfigError(
                "EulerOptions",
                expected="num_steps >= 1 and 0 <= start_time < 1",
                found=f"num_steps={self.num_steps}, start_time={self.start_time}",
            )


class EulerTrace(struct.PyTreeNode):
    """What the model was asked, step by step; XLA drops it when the caller does."""

    time: Float[Array, "steps"]
    x: Float[Array, "steps ..."]  # the point before each step
    velocity: Float[Array, "steps ..."]


def euler(
    key: Key[Array, ""], model_fn: VelocityFn, x_init: Float[Array, "..."], options: EulerOptions
) -> tuple[Float[Array, "..."], EulerTrace]:
    """Integrate `dx/dtime = model_fn(x, time)` from `x_init` to time 1 in one scan.

    `x_init` has any shape and `time` is a scalar, so every example of a batch takes the same steps. The field is
    deterministic, so `key` is not used; it is here because all samplers are called alike.
    """
    del key
    step_size = (1 - options.start_time) / options.num_steps
    times = options.start_time + step_size * jnp.arange(options.num_steps, dtype=jnp.float32)

    def step(x, time):
        velocity = model_fn(x, time).astype(x.dtype)
        return x + step_size * velocity, (x, velocity)

    x, (points, velocities) = jax.lax.scan(step, x_init, times)
    return x, EulerTrace(times, points, velocities)
