"""Where a step that is being traced will run, and where its activations live: examples over the batch axes of the mesh,
the rest is free.

Without such a hint the compiler lets the split of a parameter decide: it splits features, copies the whole batch to
every device and sums partial products, which costs a reduction of every activation instead of a gather of the weights.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import PartitionSpec

from vla_jax.core import runtime

BATCH_AXES = ("data", "fsdp")  # of the mesh; examples are split over them
_LARGEST_SMALL = 2**17  # entries of a matrix: two cores gain with 256 x 256 and lose with 512 x 512


def over_batch(tree: Any) -> Any:
    """Arrays `[b ...]` with their examples split over the mesh that is being traced for; without a mesh, as they are.

    An array whose first dim the axes do not divide is left alone.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in BATCH_AXES if mesh.shape.get(axis, 1) > 1)
    parts = 1
    for axis in axes:
        parts *= mesh.shape[axis]
    if parts == 1:
        return tree

    def one(x):
        if x.ndim == 0 or x.shape[0] % parts:
            return x
        rest = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
        return jax.lax.with_sharding_constraint(x, PartitionSpec(axes, *rest))

    return jax.tree.map(one, tree)


_elsewhere = contextvars.ContextVar("traced for machines that are not here", default=False)
_side_by_side = contextvars.ContextVar("networks run side by side", default=False)


@contextlib.contextmanager
def _within(variable: contextvars.ContextVar[bool], value: bool) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def elsewhere() -> contextlib.AbstractContextManager[None]:
    """What is traced inside is planned for other machines: nothing is chosen because it pays on a CPU."""
    return _within(_elsewhere, True)


def on_one_cpu() -> bool:
    """Whether what is being traced runs on a single CPU device: of the mesh in context, else of the default backend."""
    if _elsewhere.get():
        return False
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.abstract_device is None:
        return jax.default_backend() == "cpu"
    return mesh.size == 1 and mesh.abstract_device.platform == "cpu"


def pays_side_by_side(params: Any) -> bool:
    """Whether the cores of a CPU should share networks of these (possibly abstract) arrays by taking one each.

    Splitting every operation over all cores costs more than it saves where matrices are small.
    """
    small = all(leaf.ndim < 4 and math.prod(leaf.shape[-2:]) <= _LARGEST_SMALL for leaf in jax.tree.leaves(params))
    return small and on_one_cpu() and runtime.num_cores() > 1


def side_by_side(wanted: bool = True) -> contextlib.AbstractContextManager[None]:
    """What is traced inside writes ensembles out, for a program compiled with `kernel_options(side_by_side=True)`."""
    return _within(_side_by_side, wanted)


def runs_side_by_side() -> bool:
    """Whether what is being traced is inside of `side_by_side`."""
    return _side_by_side.get()
