"""Flax NNX modules as pure functions of plain nested dicts.

    net, params = functional.init(lambda rngs: FlowPolicy(config, rngs), key)
    loss, metrics = jax.jit(lambda params, key, batch: net.bind(params).loss(key, batch))(params, key, batch)

No NNX object crosses a jit boundary: flattening one costs 4 to 9 times the dispatch of a dict.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from vla_jax.core import placement
from vla_jax.core.types import Params

M = TypeVar("M", bound=nnx.Module)
R = TypeVar("R")
Constructor = Callable[[nnx.Rngs], M]

_MOST_WRITTEN_OUT = 16  # members: the compiler's time grows with them


@dataclasses.dataclass(frozen=True)
class Net(Generic[M]):
    """The static half of a module: hashable, so it may be closed over or be a static argument of a jit."""

    graph: nnx.GraphDef

    def bind(self, params: Params) -> M:
        """The module with these parameters, for use inside the current trace only."""
        return nnx.merge(self.graph, _int_keys(params))


def init(constructor: Constructor[M], key: Key[Array, ""]) -> tuple[Net[M], Params]:
    """Build a module and take it apart into its static half and a plain dict of arrays.

    Raises TypeError when the module holds variables other than `nnx.Param`: randomness and statistics are arguments.
    """
    params = jax.jit(lambda key: _split(constructor, key)[1])(key)
    return describe(constructor)[0], params


def describe(constructor: Constructor[M]) -> tuple[Net[M], Params]:
    """As `init`, with `jax.ShapeDtypeStruct` leaves: nothing is allocated, whatever the size of the model."""
    graph = None

    def shapes(key):
        nonlocal graph
        graph, params = _split(constructor, key)
        return params

    params = jax.eval_shape(shapes, jax.random.key(0))
    return Net(graph), params


def init_ensemble(constructor: Constructor[M], key: Key[Array, ""], n: int) -> tuple[Net[M], Params]:
    """`n` independently initialized copies of one module, stacked along a new leading axis of every leaf."""
    params = jax.jit(jax.vmap(lambda key: _split(constructor, key)[1]))(jax.random.split(key, n))
    return describe(constructor)[0], params


def apply_ensemble(net: Net[M], params: Params, function: Callable[[M], R]) -> R:
    """`function(member)` for every member of an ensemble; results carry the ensemble axis first."""
    return each_member(lambda member: function(net.bind(member)), params)


def each_member(function: Callable[[Params], R], params: Params) -> R:
    """`function` of the parameters of every member, stacked: by one vmap, or written out for networks side by side."""
    size = jax.tree.leaves(params)[0].shape[0]
    if not placement.runs_side_by_side() or size > _MOST_WRITTEN_OUT:
        return jax.vmap(function)(params)
    leaves, structure = jax.tree.flatten(params)
    parts = [jax.lax.split(leaf, [1] * size) for leaf in leaves]  # its gradient is one concatenation
    each = [function(structure.unflatten([part[i].squeeze(0) for part in parts])) for i in range(size)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


def each_draw(function: Callable[..., R], *draws: Any) -> R:
    """`function` of every entry of the first axis, stacked, as by vmap; one entry alone is not made a batch of one.

    The products of a batch's gradients sum over its axis too, for which a CPU copies their factors into another layout.
    """
    if jax.tree.leaves(draws)[0].shape[0] > 1:
        return jax.vmap(function)(*draws)
    alone = function(*jax.tree.map(lambda leaf: leaf[0], draws))
    return jax.tree.map(lambda leaf: leaf[None], alone)


def logical_axes(constructor: Constructor[M]) -> dict[str, Any]:
    """For every parameter its logical axis names, as `nets` wrote them into `nnx.Param(..., logical_axes=...)`.

    A parameter without names gets None per dim; stacked layers get "layers" in front.
    """
    found: dict[str, Any] = {}

    def collect(key):
        state = nnx.state(constructor(nnx.Rngs(key)), nnx.Param)
        for path, variable in nnx.to_flat_state(state):
            names = variable.get_metadata().get("logical_axes")
            found["/".join(map(str, path))] = (names, jnp.ndim(variable.get_value()))
        return jnp.zeros(())

    jax.eval_shape(collect, jax.random.key(0))
    tree: dict[str, Any] = {}
    for path, (names, ndim) in found.items():
        names = (None,) * ndim if names is None else ("layers",) * (ndim - len(names)) + tuple(names)
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = names
    return tree


def ema(average: Params, params: Params, decay: float | Array) -> Params:
    """Exponential moving average of every leaf: `decay * average + (1 - decay) * params`."""
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, params)


def count(params: Params) -> int:
    """Number of scalars in a parameter tree, arrays or abstract."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _split(constructor: Constructor[M], key: Key[Array, ""]) -> tuple[nnx.GraphDef, Params]:
    graph, params, rest = nnx.split(constructor(nnx.Rngs(key)), nnx.Param, ...)
    if jax.tree.leaves(rest):
        raise TypeError(f"only nnx.Param may live in a module; found {nnx.to_flat_state(rest).paths}")
    return graph, _str_keys(nnx.to_pure_dict(params))


def _str_keys(tree):
    return {str(k): _str_keys(v) for k, v in tree.items()} if isinstance(tree, dict) else tree


def _int_keys(tree):
    if not isinstance(tree, dict):
        return tree
    return {int(k) if k.isdigit() else k: _int_keys(v) for k, v in tree.items()}
