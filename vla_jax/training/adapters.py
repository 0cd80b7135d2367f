"""Low-rank adapters (LoRA, arXiv 2106.09685) as pure functions of parameter dicts.

    kernel + scale * a @ b        a [inputs, rank] random, b [rank, outputs] zero: at first nothing changes

A kernel with more than two dims counts as one matrix: stacked layers get factors of their own (`a [layers, inputs,
rank]`), heads and head dims are one side, as in PEFT. Unlike openpi, whose factors are separate for every head, and
whose feed-forward ones have no scale: merge its adapters before importing.

Networks know nothing of adapters: `adapt` puts an `Adapted` leaf where a kernel was, and a layer that reads its kernel
(`kernel[...]`) gets the sum. Inside a scan that is one layer's at a time, so neither the sum nor its gradient ever
exists for the whole network.
"""

import dataclasses
import fnmatch
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Key

from vla_jax.core import errors
from vla_jax.core.types import Params
from vla_jax.training.checkpoints import flatten, nest
from vla_jax.training.interop import safetensors
from vla_jax.training.interop.sources import TensorInfo
from vla_jax.training.kernels import KernelDims


@dataclasses.dataclass(frozen=True)
class Lora:
    """Adapters on every kernel whose path matches a shell pattern, for example `backbone/mixture/*kernel`.

    openpi's values: rank 16 and alpha 16 for the Gemma 2B, 32 and 32 for the action expert.
    """

    pattern: str
    rank: int = 16
    alpha: float = 16.0
    rank_stabilized: bool = False  # scale alpha / sqrt(rank) (arXiv 2312.03732) instead of alpha / rank

    def __post_init__(self):
        if self.rank < 1 or self.alpha <= 0:
            raise errors.ConfigError("Lora", expected="rank of at least 1, alpha above 0", found=self)

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


class Site(NamedTuple):
    """One kernel and what is added to it."""

    dims: KernelDims
    rank: int
    scale: float


Sites = Mapping[str, Site]  # by the kernel's path


class Adapted(struct.PyTreeNode):
    """A leaf of a parameter tree that reads as kernel plus adapter, in float32. The base may be a lazy leaf itself."""

    base: Any  # an array, or a leaf that `[...]` turns into one
    a: Float[Array, "*layers i r"]
    b: Float[Array, "*layers r o"]
    scale: float = struct.field(pytree_node=False)

    def __getitem__(self, index: Any) -> Array:
        base = self.base[...]
        return (base + self.scale * (self.a @ self.b).reshape(base.shape))[index]


def sites(kernels: Mapping[str, KernelDims], loras: Sequence[Lora], paths: Sequence[str]) -> dict[str, Site]:
    """Where the adapters go: a kernel belongs to the first `Lora` that it matches.

    `kernels` are those of `training.kernels.find`, `paths` all parameters. Raises ConfigError for a pattern that
    matches no parameter, or one that is no kernel, or only kernels that earlier ones took.
    """
    found: dict[str, Site] = {}
    for lora in loras:
        matched = fnmatch.filter(paths, lora.pattern)
        others = [path for path in matched if path not in kernels]
        if others:
            raise errors.ConfigError(
                f"Lora pattern {lora.pattern!r} matches {others[0]!r}",
                expected="kernels alone: adapters are products of two matrices",
                fix='end the pattern with "kernel", and list in `train` what shall be trained whole',
            )
        new = [path for path in matched if path not in found]
        if not new:
            raise errors.ConfigError(
                f"Lora pattern {lora.pattern!r} matches " + ("only kernels of earlier ones" if matched else "nothing"),
                fix=errors.closest(lora.pattern, kernels),
            )
        for path in new:
            found[path] = Site(kernels[path], lora.rank, lora.scale)
    return found


def init(key: Key[Array, ""], sites: Sites) -> Params:
    """Fresh adapters: nested dicts with the factors `a` and `b` where the kernel has its array, float32.

    `a` is normal with variance 1 / inputs, `b` is zero. Source: arXiv 2106.09685, section 4.1.
    """
    leaves = {}
    for site_key, (path, site) in zip(jax.random.split(key, len(sites)), sorted(sites.items()), strict=True):
        stacked, dims = site.dims.stacked, site.dims
        leaves[f"{path}/a"] = jax.random.normal(site_key, (*stacked, dims.inputs, site.rank)) * dims.inputs**-0.5
        leaves[f"{path}/b"] = jnp.zeros((*stacked, site.rank, dims.outputs))
    return nest(leaves)


def logical_axes(path: str, site: Site, names: Sequence[str | None]) -> dict[str, tuple[str | None, ...]]:
    """Names of the dims of both factors, given those of the kernel at `path`; of a side with several the first's."""
    stacked, outputs = tuple(names[: site.dims.num_stacked]), len(names) - site.dims.num_outputs
    return {
        f"{path}/a": (*stacked, names[site.dims.num_stacked], None),
        f"{path}/b": (*stacked, None, names[outputs]),
    }


def adapt(params: Params, adapters: Params, sites: Sites) -> Params:
    """The parameters with `Adapted` leaves, to be bound inside a trace: gradients flow to the adapters."""
    leaves, factors = whole_leaves(params), flatten(adapters)
    for path, site in sites.items():
        leaves[path] = Adapted(leaves[path], factors[f"{path}/a"], factors[f"{path}/b"], site.scale)
    return nest(leaves)


def merge(params: Params, adapters: Params, sites: Sites) -> Params:
    """The parameters with the adapters added for good: plain arrays of the kernels' own dtypes."""
    leaves = whole_leaves(adapt(params, adapters, sites))
    for path in sites:
        base = leaves[path].base
        leaves[path] = leaves[path][...].astype(base.dtype if isinstance(base, jax.Array) else jnp.float32)
    return nest(leaves)


def save(folder: str | Path, adapters: Params, sites: Sites) -> None:
    """Adapters alone as `model.safetensors` in a folder: the factors by their paths, and `<kernel>/scale`."""
    tensors = {name: np.asarray(leaf) for name, leaf in flatten(adapters).items()}
    tensors |= {f"{kernel}/scale": np.full(1, site.scale, np.float32) for kernel, site in sites.items()}
    infos = {name: TensorInfo(array.shape, array.dtype) for name, array in tensors.items()}
    safetensors.write(folder, infos, tensors.__getitem__)


def load(folder: str | Path, sites: Sites) -> Params:
    """Adapters of `save`, for the same sites. Raises CheckpointError when factors are missing, left over or of another
    shape, or their scale is another."""
    source = safetensors.Safetensors(folder)
    stored = {name: info.shape for name, info in source.tensors.items()}
    fresh = jax.eval_shape(lambda: init(jax.random.key(0), sites))
    expected = {name: leaf.shape for name, leaf in flatten(fresh).items()}
    expected |= {f"{kernel}/scale": (1,) for kernel in sites}
    different = sorted(name for name in stored.keys() | expected.keys() if stored.get(name) != expected.get(name))
    if different:
        name = different[0]
        raise errors.CheckpointError(
            f"{folder}: other adapters than asked for, {len(different)} tensors differ, the first {name!r}",
            expected=expected.get(name, "no such tensor"),
            found=stored.get(name, "no such tensor"),
            fix="use the patterns and ranks that the adapters were trained with",
        )
    for kernel, site in sites.items():
        scale = float(source.read(f"{kernel}/scale")[0])
        if not math.isclose(scale, site.scale, rel_tol=1e-6):
            raise errors.CheckpointError(
                f"{folder}: adapters of {kernel!r} have another scale", expected=site.scale, found=scale
            )
    return nest({name: jnp.asarray(source.read(name)) for name in expected if not name.endswith("/scale")})


def whole_leaves(params: Params) -> dict[str, Any]:
    """As `flatten`, with lazy leaves whole."""
    return {
        "/".join(str(entry.key) for entry in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda node: not isinstance(node, dict))
    }
