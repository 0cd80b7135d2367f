"""Flow matching on arrays, time 0 noise and time 1 data, and the masked error that it shares with diffusion."""

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

    Masks and weights as in `masked_squared_error`. Source: arXiv 2210.02747, eq. 23.
    """
    return masked_squared_error(velocity, actions - noise, action_mask, action_weights)


def masked_squared_error(
    predicted: Float[Array, "*b h a"],
    targets: Float[Array, "*b h a"],
    action_mask: Bool[Array, "*b h a"],
    action_weights: Float[Array, "a"] | None = None,
) -> Float[Array, "*b"]:
    """One mean per example over the entries where `action_mask` is True.

    `action_weights` are positive, one per action dim (None: all equal). The other entries get no gradient, and an
    example without any costs 0.
    """
    weight = action_mask.astype(predicted.dtype)
    if action_weights is not None:
        weight = weight * jnp.broadcast_to(action_weights, weight.shape)
    total = weight.sum((-2, -1))
    error = jnp.where(action_mask, predicted - targets, 0.0)
    return (weight * jnp.square(error)).sum((-2, -1)) / jnp.where(total > 0, total, 1)
