"""Impedance control with a bounded error, so that no command can press harder than it should.

A position servo is a spring and a damper: `force = stiffness * (target - position) - damping * velocity`. Keeping the
target within `limit` of where the robot is, in every physics step and not only where the policy decides, bounds the
force of the spring by `stiffness * limit`, and with it that of a contact. Source: SERL (arXiv 2401.16013), its
impedance controller.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def bounded_target(
    position: Float[Array, "*b j"], target: Float[Array, "*b j"], limit: Float[Array, "*b j"]
) -> Float[Array, "*b j"]:
    """The target, or where it is further away than `limit` per axis, the point on the way that is not."""
    return position + jnp.clip(target - position, -limit, limit)


def force(
    position: Float[Array, "*b j"],
    velocity: Float[Array, "*b j"],
    target: Float[Array, "*b j"],
    stiffness: Float[Array, "*b j"],
    damping: Float[Array, "*b j"],
    limit: Float[Array, "*b j"],
) -> Float[Array, "*b j"]:
    """What such a servo exerts: newtons for slides in metres, newton metres for hinges in radians."""
    return stiffness * (bounded_target(position, target, limit) - position) - damping * velocity


def contact_force_bound(stiffness: float, damping: float, limit: float, control_hz: float) -> float:
    """The most that a blocked robot presses with, in newtons: `k limit + 2 d limit f`.

    The second term is that of its speed, at most `2 limit` per control step. Source: SERL, the same.
    """
    return stiffness * limit + 2 * damping * limit * control_hz
