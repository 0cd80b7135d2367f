"""Where every array lives: one mesh of three axes, one table of rules, the same for params, moments and averages.

    data    the batch is split, parameters are copied
    fsdp    the batch is split, and every large parameter too; it is gathered where it is used
    tensor  the work on one example is split (heads, hidden units, vocabulary)

A parameter with logical axis names (`core.functional.logical_axes`) follows `LOGICAL_RULES`. Whatever the names leave
over, and every parameter without names, is split over `fsdp` along its largest divisible dim, when it is worth it.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vla_jax.core import errors, placement

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = placement.BATCH_AXES

TILE = 128  # lanes of a TPU's registers and of its memory layout

LOGICAL_RULES: dict[str, str | None] = {
    "vocab": "tensor",
    "mlp": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "qkv": "tensor",
    "embed": "fsdp",
    "head_dim": None,
    "layers": None,
    "ensemble": None,
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices each axis has; -1 (one axis at most) takes all that are left.

    Without a -1 the first `data * fsdp * tensor` devices are used, so `MeshConfig(data=1)` is one device of a machine
    that has eight.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    fsdp_min_size: int = 2**16  # elements; smaller leaves are copied: gathering them costs more than they take

    def __post_init__(self):
        sizes = self.sizes
        if any(size == 0 or size < -1 for size in sizes) or sizes.count(-1) > 1:
            raise errors.ConfigError(
                "mesh axes", expected="positive sizes, at most one -1", found=dict(zip(AXES, sizes, strict=True))
            )

    @property
    def sizes(self) -> tuple[int, int, int]:
        return (self.data, self.fsdp, self.tensor)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of axes data, fsdp, tensor over `devices` (default: all of every process).

    Raises ConfigError when the sizes do not divide or exceed the devices there are.
    """
    devices = jax.devices() if devices is None else list(devices)
    fixed = math.prod(size for size in config.sizes if size != -1)
    sizes = tuple(len(devices) // fixed if size == -1 else size for size in config.sizes)
    used = math.prod(sizes)
    leaves_some_out = used != len(devices) and (-1 in config.sizes or jax.process_count() > 1)
    if used > len(devices) or used == 0 or leaves_some_out:
        raise errors.ConfigError(
            "the mesh does not fit the devices",
            expected=f"{len(devices)} devices ({devices[0].device_kind})",
            found=dict(zip(AXES, config.sizes, strict=True)),
            fix="choose sizes whose product is the number of devices, or leave data=-1 and let the others divide it",
        )
    try:
        return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:used])
    except NotImplementedError as error:  # on a TPU, where an axis has to lie along whole dims of the slice
        raise errors.ConfigError(
            "the mesh does not lie on the slice", found=error, fix="make every axis a product of dims of the slice"
        ) from error


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading dim over data and fsdp, everything else whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """Start the transfer of a batch to its devices; arrays that are there already stay.

    Every leaf has the batch as its leading dim. With several processes each brings its own rows, in process order.
    Raises ConfigError when the batch does not divide over the mesh.
    """
    sharding = batch_sharding(mesh)
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * jax.local_device_count() // jax.device_count()
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    for path, leaf in leaves:
        rows = leaf.shape[0] if np.ndim(leaf) else 0
        if not _is_placed(leaf, sharding) and (rows == 0 or rows % max(parts, 1)):
            raise errors.ConfigError(
                f"batch leaf {path_name(path)!r} cannot be split over the mesh",
                expected=f"a leading batch dim divisible by data * fsdp = {parts} per process",
                found=f"shape {np.shape(leaf)}",
                fix="change the batch size, or use fewer devices on data and fsdp, for example MeshConfig(data=1)",
            )
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(
        lambda leaf: (
            leaf if _is_placed(leaf, sharding) else jax.make_array_from_process_local_data(sharding, np.asarray(leaf))
        ),
        batch,
    )


def param_shardings(
    params: Any, mesh: Mesh, logical_axes: Mapping[str, Any] | None = None, *, fsdp_min_size: int = 2**16
) -> Any:
    """A sharding for every leaf of `params`, arrays or abstract; also for a whole learner state.

    `logical_axes` is the nested dict of `core.functional.logical_axes`. A leaf takes the names of the longest entry its
    path ends with, so `opt_state/0/mu/head/kernel` and `ema_params/head/kernel` follow `head/kernel`; an ensemble's
    extra leading dim stays whole. Raises ConfigError for a name that `LOGICAL_RULES` does not have.
    """
    names = _flat_names(logical_axes or {})

    def one(path, leaf):
        spec = _partition(leaf.shape, _names_for(path_name(path), len(leaf.shape), names), mesh, fsdp_min_size)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(one, params)


def shard_state(state: Any, shardings: Any) -> Any:
    """Place a learner state, for example one warm-started on the host, as `param_shardings(state, ...)` says.

    An array that stands at two places (params and their average) is copied: donated buffers may not alias.
    """
    seen = set()

    def place(leaf, where):
        placed = jax.device_put(leaf, where)
        if id(leaf) in seen:
            return jnp.copy(placed)
        seen.add(id(leaf))
        return placed

    return jax.tree.map(place, state, shardings)


def report(state: Any, shardings: Any) -> str:
    """One line per leaf: path, shape, dtype, split and MiB on each device; the last line is their sum."""
    rows, total = [], 0.0
    pairs = zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(shardings), strict=True)
    for (path, leaf), sharding in pairs:
        itemsize = 8 if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.dtype(leaf.dtype).itemsize
        mib = math.prod(sharding.shard_shape(leaf.shape)) * itemsize / 2**20
        total += mib
        split = ", ".join(str(axis or "-") for axis in sharding.spec) or "copied"
        rows.append((path_name(path), f"{leaf.dtype}{list(leaf.shape)}", split, f"{mib:.3f}"))
    rows.append(("total", "", "MiB per device", f"{total:.3f}"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def path_name(path: tuple) -> str:
    """A key path of `jax.tree_util` as `a/b/0`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _partition(shape: tuple[int, ...], names: Sequence[str | None], mesh: Mesh, fsdp_min_size: int) -> PartitionSpec:
    spec: list[str | None] = [None] * len(shape)
    for dim, name in enumerate(names):
        axis = LOGICAL_RULES[name] if name is not None else None
        # "embed" on both dims of a square kernel: the first takes the axis, a mesh axis splits one dim only.
        if axis is not None and mesh.shape[axis] > 1 and axis not in spec and shape[dim] % mesh.shape[axis] == 0:
            spec[dim] = axis
    if "fsdp" in spec:
        _widen(spec, shape, names, mesh.shape["fsdp"])
    small = math.prod(shape) < fsdp_min_size
    if small:
        spec = [None if axis == "fsdp" else axis for axis in spec]
    elif mesh.shape["fsdp"] > 1 and "fsdp" not in spec:
        free = [dim for dim in range(len(shape)) if spec[dim] is None and shape[dim] % mesh.shape["fsdp"] == 0]
        if free:
            spec[max(free, key=lambda dim: shape[dim])] = "fsdp"
    while spec and spec[-1] is None:
        spec.pop()
    return PartitionSpec(*spec)


def _widen(spec: list[str | None], shape: tuple[int, ...], names: Sequence[str | None], parts: int) -> None:
    """Move fsdp to the widest dim when its own would be cut into pieces narrower than a tile.

    Measured by planning the 3B recipe: kernels cut into 32 columns are gathered by summing padded copies, which moves
    twice the bytes and hides behind nothing. A vocabulary stays whole: a lookup in a cut one gathers the table.
    """
    taken = spec.index("fsdp")
    if shape[taken] // parts >= TILE:
        return
    free = [
        dim
        for dim in range(len(shape))
        if spec[dim] is None and names[dim] not in ("vocab", "layers", "ensemble") and shape[dim] % parts == 0
    ]
    widest = max(free, key=lambda dim: shape[dim], default=taken)
    if shape[widest] > shape[taken]:
        spec[taken], spec[widest] = None, "fsdp"


def _flat_names(logical_axes: Mapping[str, Any]) -> dict[str, tuple[str | None, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(logical_axes, is_leaf=lambda node: isinstance(node, tuple))
    flat = {path_name(path): names for path, names in leaves}
    for path, names in flat.items():
        for name in names:
            if name is not None and name not in LOGICAL_RULES:
                raise errors.ConfigError(
                    f"parameter {path!r} has an unknown logical axis {name!r}",
                    fix=f"{errors.closest(name, LOGICAL_RULES)}; new names go into training/sharding.py LOGICAL_RULES",
                )
    return flat


def _names_for(path: str, ndim: int, names: Mapping[str, tuple[str | None, ...]]) -> tuple[str | None, ...]:
    """The logical names of the longest suffix of `path` that has some, with None for an ensemble's leading dim."""
    parts = path.split("/")
    for start in range(len(parts)):
        found = names.get("/".join(parts[start:]))
        if found is not None and 0 <= ndim - len(found) <= 1:
            return (None,) * (ndim - len(found)) + tuple(found)
    return (None,) * ndim


def _is_placed(leaf: Any, sharding: NamedSharding) -> bool:
    return isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
