"""Losses of discrete tokens."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def per_token_log_prob(logits: Float[Array, "*b n v"], tokens: Int[Array, "*b n"]) -> Float[Array, "*b n"]:
    """Natural log probability of each token under the softmax of its logits, in float32."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]


def cross_entropy(
    logits: Float[Array, "*b n v"], tokens: Int[Array, "*b n"], token_mask: Bool[Array, "*b n"]
) -> Float[Array, "*b"]:
    """Negative log probability in nats, one mean per example over the tokens where `token_mask` is True.

    The other tokens get no gradient, and an example without any costs 0.
    """
    nats = -jnp.where(token_mask, per_token_log_prob(logits, tokens), 0.0)
    return nats.sum(-1) / jnp.maximum(token_mask.sum(-1), 1)
