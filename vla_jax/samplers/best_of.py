"""One of several candidates by their scores: how a value function improves a policy without training it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def best_of(candidates: Float[Array, "b n h a"], scores: Float[Array, "b n"]) -> Float[Array, "b h a"]:
    """The candidate with the highest score, per example; the first one where scores are equal."""
    return _take(candidates, scores.argmax(axis=1))


def softmax_of(
    key: Key[Array, ""], candidates: Float[Array, "b n h a"], scores: Float[Array, "b n"], sharpness: float
) -> tuple[Float[Array, "b h a"], Float[Array, "b"]]:
    """A candidate drawn from `softmax(sharpness * scores)`, per example, and minus the log probability that it had."""
    log_probs = jax.nn.log_softmax(sharpness * scores)
    drawn = jax.random.categorical(key, log_probs)
    return _take(candidates, drawn), -jnp.take_along_axis(log_probs, drawn[:, None], axis=1)[:, 0]


def _take(candidates: Float[Array, "b n h a"], index: Int[Array, "b"]) -> Float[Array, "b h a"]:
    return jnp.take_along_axis(candidates, index[:, None, None, None], axis=1)[:, 0]
