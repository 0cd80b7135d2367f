"""Layers stacked along a leading axis of their parameters, and the one scan that runs through them."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

M = TypeVar("M", bound=nnx.Module)


def stack(constructor: Callable[[nnx.Rngs], M], depth: int, rngs: nnx.Rngs) -> M:
    """`depth` independently initialized layers as one module whose parameters have a leading axis `layers`."""
    graph = None

    def one_layer(key):
        nonlocal graph
        graph, state = nnx.split(constructor(nnx.Rngs(key)))
        return state

    states = jax.vmap(one_layer)(jax.random.split(rngs.params(), depth))
    return nnx.merge(graph, states)


def scan_layers(
    step: Callable[[Any, list[nnx.Module], Any], tuple[Any, Any]],
    carry: Any,
    stacks: Sequence[nnx.Module],
    xs: Any = None,
    *,
    unroll: bool = False,
    remat: bool = False,
) -> tuple[Any, Any]:
    """`lax.scan` of `step(carry, layers, x) -> (carry, y)`, where `layers` holds one layer of every stack.

    `unroll` writes the layers out as a Python loop: faster for a few small layers, slower to compile for many. (A scan,
    even an unrolled one, stacks every layer's residuals for the gradient.) `remat` keeps only each layer's input.
    """
    graphs, states = zip(*(nnx.split(module) for module in stacks), strict=True)

    def body(carry, inputs):
        layer_states, x = inputs
        layers = [nnx.merge(graph, state) for graph, state in zip(graphs, layer_states, strict=True)]
        return step(carry, layers, x)

    # A scan is a barrier to common-subexpression elimination already, so the extra one of checkpoint would only cost.
    body = jax.checkpoint(body, prevent_cse=unroll) if remat else body
    if not unroll:
        return jax.lax.scan(body, carry, (states, xs))
    depth = jax.tree.leaves(states)[0].shape[0]
    ys = []
    for i in range(depth):
        carry, y = body(carry, jax.tree.map(lambda leaf, i=i: leaf[i], (states, xs)))
        ys.append(y)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *ys)
