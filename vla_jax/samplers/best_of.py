"""The best of several candidates by their scores: how a value function improves a policy without training it."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def best_of(candidates: Float[Array, "b n h a"], scores: Float[Array, "b n"]) -> Float[Array, "b h a"]:
    """The candidate with the highest score, per example; the first one where scores are equal."""
    best = scores.argmax(axis=1)
    return jnp.take_along_axis(candidates, best[:, None, None, None], axis=1)[:, 0]
