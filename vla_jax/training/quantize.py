"""Weights as 8-bit integers with one scale per output channel, for inference and for frozen parameters.

    kernel [inputs, outputs]  ->  values int8 [inputs, outputs] * scales float32 [1, outputs], max |column| / 127

Symmetric, rounded to nearest: no entry is off by more than half a scale. A quantized kernel is a lazy leaf: a layer
that reads it (`kernel[...]`) gets float32 again, inside the jit and, in a scan, one layer at a time. The products
themselves are those of the network's `compute_dtype`: what shrinks is the memory, and what has to be read from it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int8

from vla_jax.core.types import Params
from vla_jax.training.checkpoints import flatten, nest
from vla_jax.training.kernels import KernelDims, matching


class Quantized(struct.PyTreeNode):
    """A leaf of a parameter tree that reads as `values * scales`, float32."""

    values: Int8[Array, "..."]
    scales: Float[Array, "..."]  # 1 along the inputs

    def __getitem__(self, index: Any) -> Array:
        return (self.values.astype(jnp.float32) * self.scales)[index]


def quantize_kernel(kernel: Float[Array, "..."], dims: KernelDims) -> Quantized:
    """Int8 values and the scales of each output channel, of each layer where layers are stacked."""
    kernel = kernel.astype(jnp.float32)
    largest = jnp.abs(kernel).max(axis=dims.input_axes, keepdims=True)
    scales = jnp.where(largest > 0, largest, 127.0) / 127.0
    return Quantized(jnp.round(kernel / scales).astype(jnp.int8), scales)


def quantize(
    params: Params,
    kernels: Mapping[str, KernelDims],
    patterns: Sequence[str] = ("*kernel",),
    *,
    others: Literal["float32", "bfloat16"] = "float32",
) -> Params:
    """The parameters with `Quantized` leaves in place of the kernels that match a shell pattern.

    `kernels` are those of `training.kernels.find`; embeddings, norms and biases become `others`. The result is bound
    like any parameters: `net.bind(quantized)`. Raises ConfigError for a pattern that matches no kernel.
    """
    chosen = matching(sorted(kernels), patterns, "int8")
    leaves = flatten(params)
    return nest(
        {
            path: quantize_kernel(leaf, kernels[path]) if path in chosen else leaf.astype(others)
            for path, leaf in leaves.items()
        }
    )


def num_bytes(params: Any) -> int:
    """Of all arrays in a tree, concrete or abstract."""
    return sum(leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(params))
