"""Matrix-product operations of a traced function, before any compiler: what utilization is measured against."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core as jax_core


def count(function: Callable, *arguments: Any) -> float:
    """Operations (2 per multiply-add) in the products and convolutions of one call; nothing is computed.

    A scan counts its length, a conditional its dearest branch, a `while` of unknown length once, a Pallas kernel its
    body at every point of its grid.
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def kernels(function: Callable, *arguments: Any) -> dict[str, float]:
    """Operations of one call of every Pallas kernel inside, by its name: a compiled program shows only the name."""
    found: dict[str, float] = {}
    waiting = [jax.make_jaxpr(function)(*arguments).jaxpr]
    while waiting:
        for equation in waiting.pop().eqns:
            if equation.primitive.name == "pallas_call":
                name = equation.params["name"]
                found[name] = max(found.get(name, 0.0), _of_equation(equation))
            else:
                waiting += _inner(equation.params)
    return found


def _of_jaxpr(jaxpr: Any) -> float:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        return 2.0 * math.prod(out) * math.prod(left[dim] for dim in contracted)
    if name == "conv_general_dilated":
        kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
        out_features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * math.prod(out) * math.prod(kernel) / out_features
    if name == "cond":
        return max(_of_jaxpr(branch.jaxpr) for branch in params["branches"])
    times = 1.0
    if name == "scan":
        times = params["length"]
    elif name == "pallas_call":
        times = math.prod(size for size in params["grid_mapping"].grid if isinstance(size, int))
    elif name == "shard_map":
        times = math.prod(params["mesh"].shape.values())  # the body is one device's
    return times * sum(map(_of_jaxpr, _inner(params)))


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """Jaxprs among the parameters of an equation."""
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, jax_core.ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, jax_core.Jaxpr):
                yield each
