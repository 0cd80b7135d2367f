"""Gradients of a large batch a part at a time: the same update, with the activations of one part in memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vla_jax.core.types import Demonstrations, Metrics, Params

Loss = Callable[[Params, Key[Array, ""], Demonstrations], tuple[Float[Array, ""], Metrics]]


def gradients(
    loss: Loss, params: Params, key: Key[Array, ""], batch: Demonstrations, microbatches: int
) -> tuple[Params, Metrics]:
    """Gradients and metrics of `loss`, a mean by `batch.weight`, over `microbatches` equal parts one after another.

    Every part takes every `microbatches`-th row, so that rows split over devices stay where they are, and draws with a
    key of its own: with one part the draws are those of `key` itself. Gradients are summed in the parameters' dtype.
    The batch has to divide.
    """
    if microbatches == 1:
        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, key, batch)
        return grads, metrics

    def split(leaf: Array) -> Array:
        return jnp.moveaxis(leaf.reshape(-1, microbatches, *leaf.shape[1:]), 1, 0)

    def part(total: Any, inputs: Any) -> tuple[Any, None]:
        index, rows = inputs
        share = rows.weight.sum() / jnp.maximum(batch.weight.sum(), 1e-6)
        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, jax.random.fold_in(key, index), rows)
        return jax.tree.map(lambda old, new: old + (share * new).astype(old.dtype), total, (grads, metrics)), None

    parts = (jnp.arange(microbatches), jax.tree.map(split, batch))
    first = jax.tree.map(lambda leaf: leaf[0], parts[1])
    metrics = jax.eval_shape(lambda: loss(params, key, first)[1])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (params, metrics))
    return jax.lax.scan(part, zeros, parts)[0]
