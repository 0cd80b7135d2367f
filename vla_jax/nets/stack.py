"""Layers stacked along a leading axis of their parameters, and the one scan that runs through them."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from vla_jax.core import errors, placement

M = TypeVar("M", bound=nnx.Module)
# What a layer keeps for its gradient: everything, its input only, or its input and the matrix products named.
Remat = bool | Literal["dots_saveable", "dots_with_no_batch_dims_saveable"]
REMAT_POLICIES = ("dots_saveable", "dots_with_no_batch_dims_saveable")  # of jax.checkpoint_policies


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
    remat: Remat = False,
) -> tuple[Any, Any]:
    """`lax.scan` of `step(carry, layers, x) -> (carry, y)`, where `layers` holds one layer of every stack.

    `unroll` writes the layers out as a Python loop: faster for a few small layers, slower to compile for many. (A scan,
    even an unrolled one, stacks every layer's residuals for the gradient.) `remat` keeps only each layer's input and
    computes the rest again in the gradient; named policies keep some matrix products: "dots_saveable" all of them,
    "dots_with_no_batch_dims_saveable" those with parameters, not attention's. Raises ConfigError for other names.
    """
    graphs, states = zip(*(nnx.split(module) for module in stacks), strict=True)

    def body(carry, inputs):
        layer_states, x = inputs
        layers = [nnx.merge(graph, state) for graph, state in zip(graphs, layer_states, strict=True)]
        return step(placement.over_batch(carry), layers, x)

    if remat:
        # A scan is a barrier to common-subexpression elimination already, so checkpoint's own would only cost.
        body = jax.checkpoint(body, prevent_cse=unroll, policy=_policy(remat))
    if not unroll:
        return jax.lax.scan(body, carry, (states, xs))
    ys = []
    for inputs in _apart((states, xs)):
        carry, y = body(carry, inputs)
        ys.append(y)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *ys)


def _apart(stacked: Any) -> list[Any]:
    """One tree per layer. The gradient of a split is one concatenation; that of an index per layer is a sum of as many
    padded arrays, longer to compile and to run."""
    leaves, structure = jax.tree.flatten(stacked)
    depth = leaves[0].shape[0]
    layers = [[jnp.squeeze(part, 0) for part in jnp.split(leaf, depth)] for leaf in leaves]
    return [jax.tree.unflatten(structure, layer) for layer in zip(*layers, strict=True)]


def _policy(remat: Remat) -> Callable[..., bool] | None:
    if remat is True:
        return None
    if remat not in REMAT_POLICIES:
        raise errors.ConfigError(
            f"remat policy {remat!r}",
            expected="True, False or a name",
            fix=errors.closest(str(remat), REMAT_POLICIES),
        )
    return getattr(jax.checkpoint_policies, remat)
