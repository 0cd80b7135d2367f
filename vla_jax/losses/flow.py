"""Flow matching on arrays: time 0 is noise, time 1 is data."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def interpolate(
    noise: Float[Array, "*b h a"], actions: Float[Array, "*b h a"], time: Float[Array, "*b"]
) -> Float[Array, "*b h a"]:
    """The straight path from noise to data: `(1 - time) * noise + time * actions`. Source: arXiv 2210.02747, eq. 22."""
    time = time[..., None, None]
    return (1 - time) * noise + time * actions


def flow_matching_loss(
    velocity: Float[Array, "*b h a"],
    noise: Float[Array, "*b h a"],
    actions: Float[Array, "*b h a"],
    action_mask: Bool[Array, "*b h a"],
    action_weights: Float[Array, "a"] | None = None,
) -> Float[Array, "*b"]:
    """Squared error to the velocity `actions - noise` of the straight path, one mean per example.

    The mean runs over the entries where `action_mask` is True, weighted by the positive `action_weights` of the action
    dims (None: all equal); the others get no gradient, and an example without any costs 0. Source: arXiv 2210.02747,
    eq. 23.
    """
    weight = action_mask.astype(velocity.dtype)
    if action_weights is not None:
        weight = weight * jnp.broadcast_to(action_weights, weight.shape)
    total = weight.sum((-2, -1))
    error = jnp.where(action_mask, velocity - (actions - noise), 0.0)
    return (weight * jnp.square(error)).sum((-2, -1)) / jnp.where(total > 0, total, 1)
