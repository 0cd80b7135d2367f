"""LayerNorm of small networks that take a core of a CPU each (`placement.side_by_side`).

There a fifth of an update goes into the sums of norms: XLA sums rows and columns in two passes over memory, and writes
squares down for it. Here blocks of a row are added onto each other first, which is vectorized and part of the kernel
that makes the entries, and columns are summed by a product. What is computed is flax's LayerNorm (arXiv 1607.06450).
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vla_jax.core import placement

_BLOCK = 32  # entries that rows are folded to; 16, 64 and 128 were no faster


def layer_norm(norm: nnx.LayerNorm, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """`norm(x)`, by sums that suit a core of a CPU where networks run side by side."""
    if not placement.runs_side_by_side():
        return norm(x)
    scale, bias = (jnp.expand_dims(param[...], tuple(range(x.ndim - 1))) for param in (norm.scale, norm.bias))
    return _layer_norm(x, scale, bias, norm.epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x, scale, bias, epsilon):
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x, scale, bias, epsilon):
    mean = _row_mean(x)
    variance = jnp.maximum(_row_mean(x * x) - mean * mean, 0)  # rounding can make it negative
    inverse = jax.lax.rsqrt(variance + epsilon)
    return (x - mean) * (inverse * scale) + bias, (x, mean, inverse, scale)


def _backward(epsilon, kept, slopes):
    x, mean, inverse, scale = kept
    normalized, inner = (x - mean) * inverse, slopes * scale
    of_x = inverse * (inner - _row_mean(inner) - normalized * _row_mean(inner * normalized))
    of_scale, of_bias = _column_sum(slopes * normalized), _column_sum(slopes)
    return of_x, of_scale.reshape(scale.shape), of_bias.reshape(scale.shape)


_layer_norm.defvjp(_forward, _backward)


def _row_mean(x: Float[Array, "*b d"]) -> Float[Array, "*b 1"]:
    width = x.shape[-1]
    if width % _BLOCK == 0:
        x = sum(x[..., start : start + _BLOCK] for start in range(0, width, _BLOCK))
    return x.sum(-1, keepdims=True) / width


def _column_sum(x: Float[Array, "*b d"]) -> Float[Array, "d"]:
    rows = x.reshape(-1, x.shape[-1])
    return jnp.ones(len(rows), x.dtype) @ rows
