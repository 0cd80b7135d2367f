"""Sampling from a velocity field that is pulled towards actions that are already decided (real-time chunking).

While a robot runs a chunk, the next one is sampled. Its first steps overlap the old chunk: what will have been run by
the time the new chunk arrives is frozen, what follows is a soft wish. Sampling is inpainting: at every step the field's
guess of the final chunk is compared with those actions, and the difference, pulled back through the field, corrects
the velocity (arXiv 2506.07339, eqs. 2 to 5).

    old chunk   . . . a a a a a a          . run before the new observation
    new chunk         f f s s s s n n n    f frozen, weight 1; s weight falls to 0; n free, weight 0

Letters: h action horizon, a action dim.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vla_jax.core import errors
from vla_jax.samplers.flow import EulerOptions, EulerTrace, VelocityFn, euler


@dataclasses.dataclass(frozen=True)
class GuidanceOptions:
    """`num_steps` Euler steps; `max_weight` bounds the guidance, whose ideal weight is infinite at time 0.

    A weight of `num_steps` is the limit: one step then removes the whole difference where the field does not react to
    it, and a larger weight would overshoot.
    """

    num_steps: int = 10
    max_weight: float = 5.0  # the paper's beta

    def __post_init__(self):
        if self.num_steps < 1 or not 0 <= self.max_weight <= self.num_steps:
            raise errors.ConfigError(
                "GuidanceOptions",
                expected="num_steps >= 1 and max_weight from 0 to num_steps",
                found=f"num_steps={self.num_steps}, max_weight={self.max_weight}",
            )


def prefix_weights(horizon: int, frozen: Int[Array, ""] | int, overlap: Int[Array, ""] | int) -> Float[Array, "h"]:
    """How much each step of the new chunk is held to the old one: 1 for the first `frozen` steps, then falling
    exponentially, 0 from step `overlap` on, where the old chunk ends (arXiv 2506.07339, eq. 5).

    `frozen` of 0 keeps only the soft part; `overlap` of 0 holds nothing.
    """
    steps = jnp.arange(horizon, dtype=jnp.float32)
    left = (overlap - steps) / jnp.maximum(overlap - frozen + 1, 1)
    soft = left * jnp.expm1(left) / jnp.expm1(1.0)
    return jnp.where(steps < overlap, jnp.where(steps < frozen, 1.0, soft), 0.0)


def guidance_weight(time: Float[Array, ""], max_weight: float) -> Float[Array, ""]:
    """`min(max_weight, (1 - time) / (time * r**2))` with `r**2 = (1 - time)**2 / (time**2 + (1 - time)**2)`, which is
    the variance of the final value when data and noise have variance 1 (arXiv 2506.07339, eqs. 2 and 4)."""
    ideal = (time**2 + (1 - time) ** 2) / jnp.maximum(time * (1 - time), 1e-12)
    return jnp.minimum(max_weight, ideal)


def guided_euler(
    key: Key[Array, ""],
    model_fn: VelocityFn,
    x_init: Float[Array, "..."],
    target: Float[Array, "..."],
    weights: Float[Array, "..."],
    options: GuidanceOptions,
) -> tuple[Float[Array, "..."], EulerTrace]:
    """`euler` with a field that is pulled towards `target` where `weights` (in [0, 1], both of the shape of `x_init`)
    are positive. What stands in `target` under a weight of 0 changes nothing; with all weights 0 this is `euler`, to
    the last bit.
    """
    plain_options = EulerOptions(options.num_steps)
    held = jnp.where(weights > 0, target, 0.0)

    def guided(x, time):
        def final(x):
            velocity = model_fn(x, time).astype(x.dtype)
            return x + (1 - time) * velocity, velocity

        guess, pull_back, velocity = jax.vjp(final, x, has_aux=True)
        (correction,) = pull_back(weights * (held - guess))
        return velocity + guidance_weight(time, options.max_weight).astype(x.dtype) * correction

    # A branch of its own: the compiler rounds a field otherwise when its derivative is asked for too.
    return jax.lax.cond(
        jnp.any(weights > 0),
        lambda: euler(key, guided, x_init, plain_options),
        lambda: euler(key, model_fn, x_init, plain_options),
    )
