"""What the dims of a parameter mean: which are layers, inputs and outputs. Read from its logical axis names.

("layers", "embed", "heads", "head_dim")   layers | embed -> heads * head_dim
("layers", "heads", "head_dim", "embed")   layers | heads * head_dim -> embed
(None, None)                               dim 0 -> dim 1
"""

import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from vla_jax.core import errors
from vla_jax.core.types import Params
from vla_jax.training.sharding import path_name

STACKED = ("layers", "ensemble", "experts")  # leading dims along which whole kernels are stacked
HEADS = ("heads", "kv_heads", "qkv", "head_dim")  # neighbours that together are one side of a matrix


class KernelDims(NamedTuple):
    """A kernel as a stack of matrices; the dims of `shape` in this order."""

    shape: tuple[int, ...]
    num_stacked: int
    num_outputs: int

    @property
    def stacked(self) -> tuple[int, ...]:
        return self.shape[: self.num_stacked]

    @property
    def inputs(self) -> int:
        """Rows of each matrix."""
        return math.prod(self.shape[self.num_stacked : len(self.shape) - self.num_outputs])

    @property
    def outputs(self) -> int:
        """Columns of each matrix."""
        return math.prod(self.shape[len(self.shape) - self.num_outputs :])

    @property
    def input_axes(self) -> tuple[int, ...]:
        return tuple(range(self.num_stacked, len(self.shape) - self.num_outputs))


def kernel_dims(shape: Sequence[int], names: Sequence[str | None]) -> KernelDims | None:
    """None for what is no matrix: norms, biases, scalars. Of a convolution all dims but the last are inputs."""
    num_stacked = next((i for i, name in enumerate(names) if name not in STACKED), len(names))
    sides: list[int] = []  # dims of each side
    previous = None
    for name in names[num_stacked:]:
        if name in HEADS and previous in HEADS:
            sides[-1] += 1
        else:
            sides.append(1)
        previous = name
    return KernelDims(tuple(shape), num_stacked, sides[-1]) if len(sides) >= 2 else None


def find(params: Params, logical_axes: Mapping[str, Any]) -> dict[str, KernelDims]:
    """Every kernel of a parameter tree, arrays or abstract, by its path: the leaves named so (embeddings are tables).

    `logical_axes` as of `core.functional`.
    """
    names = jax.tree_util.tree_leaves_with_path(logical_axes, is_leaf=lambda node: isinstance(node, tuple))
    by_path = {path_name(path): axes for path, axes in names}
    found = {
        path_name(path): kernel_dims(leaf.shape, by_path[path_name(path)])
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if path_name(path).endswith("kernel")
    }
    return {path: dims for path, dims in found.items() if dims is not None}


def matching(paths: Sequence[str], patterns: Sequence[str], what: str) -> set[str]:
    """The paths that match one of the shell patterns; `*` crosses slashes. Raises ConfigError for a pattern that
    matches none, naming the closest path."""
    chosen = set()
    for pattern in patterns:
        matched = fnmatch.filter(paths, pattern) if paths else []
        if not matched:
            raise errors.ConfigError(f"{what} pattern {pattern!r} matches nothing", fix=errors.closest(pattern, paths))
        chosen.update(matched)
    return chosen
