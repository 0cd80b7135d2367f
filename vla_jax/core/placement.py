"""Where a step that is being traced will run, and where its activations live: examples over the batch axes of the mesh,
the rest is free.

Without such a hint the compiler lets the split of a parameter decide: it splits features, copies the whole batch to
every device and sums partial products, which costs a reduction of every activation instead of a gather of the weights.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import PartitionSpec

BATCH_AXES = ("data", "fsdp")  # of the mesh; examples are split over them


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


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """What is traced inside is planned for other machines: nothing is chosen because it pays on a CPU."""
    token = _elsewhere.set(True)
    try:
        yield
    finally:
        _elsewhere.reset(token)


def on_one_cpu() -> bool:
    """Whether what is being traced runs on a single CPU device: of the mesh in context, else of the default backend."""
    if _elsewhere.get():
        return False
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.abstract_device is None:
        return jax.default_backend() == "cpu"
    return mesh.size == 1 and mesh.abstract_device.platform == "cpu"
