"""Dense, convolution and norms whose parameters carry logical axis names, so that one table can shard them all.

Parameters are float32. Layers compute in the dtype of their input; norms do their statistics in float32.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Axes = tuple[str | None, ...]
Initializer = Callable[..., Array]


def fan_in(scale: float = 1.0) -> Initializer:
    """Normal of standard deviation `scale / sqrt(fan_in)`."""
    return jax.nn.initializers.variance_scaling(scale**2, "fan_in", "normal")


class Dense(nnx.Module):
    """`x @ kernel + bias`. `axes` names the kernel's two dims; the bias has the second."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rngs: nnx.Rngs,
        *,
        axes: Axes = (None, None),
        use_bias: bool = True,
        kernel_init: Initializer | None = None,
    ):
        kernel_init = kernel_init or fan_in()
        kernel = kernel_init(rngs.params(), (in_features, out_features), jnp.float32)
        self.kernel = nnx.Param(kernel, logical_axes=axes)
        self.bias = nnx.Param(jnp.zeros(out_features), logical_axes=axes[1:]) if use_bias else None

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        y = x @ self.kernel[...].astype(x.dtype)
        return y if self.bias is None else y + expand(self.bias[...].astype(x.dtype), y.ndim)


class HeadsIn(nnx.Module):
    """Tokens to heads, `bnd,dhk->bnhk`; the kernel keeps its three dims so that heads can be sharded."""

    def __init__(self, width: int, num_heads: int, head_dim: int, rngs: nnx.Rngs, *, use_bias: bool = False):
        kernel = fan_in()(rngs.params(), (width, num_heads * head_dim), jnp.float32)
        axes = ("embed", "heads", "head_dim")
        self.kernel = nnx.Param(kernel.reshape(width, num_heads, head_dim), logical_axes=axes)
        self.bias = nnx.Param(jnp.zeros((num_heads, head_dim)), logical_axes=axes[1:]) if use_bias else None

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n h k"]:
        y = jnp.einsum("bnd,dhk->bnhk", x, self.kernel[...].astype(x.dtype))
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)[None, None]


class HeadsOut(nnx.Module):
    """Heads back to tokens, `bnhk,hkd->bnd`."""

    def __init__(self, num_heads: int, head_dim: int, width: int, rngs: nnx.Rngs, *, use_bias: bool = False):
        kernel = fan_in()(rngs.params(), (num_heads * head_dim, width), jnp.float32)
        axes = ("heads", "head_dim", "embed")
        self.kernel = nnx.Param(kernel.reshape(num_heads, head_dim, width), logical_axes=axes)
        self.bias = nnx.Param(jnp.zeros(width), logical_axes=axes[2:]) if use_bias else None

    def __call__(self, x: Float[Array, "b n h k"]) -> Float[Array, "b n d"]:
        y = jnp.einsum("bnhk,hkd->bnd", x, self.kernel[...].astype(x.dtype))
        return y if self.bias is None else y + expand(self.bias[...].astype(x.dtype), y.ndim)


class Conv(nnx.Module):
    """A convolution of one or two spatial dims, padding "SAME", channels last."""

    def __init__(self, window: Sequence[int], in_features: int, out_features: int, rngs: nnx.Rngs, *, stride: int = 1):
        shape = (*window, in_features, out_features)
        self.kernel = nnx.Param(fan_in()(rngs.params(), shape, jnp.float32), logical_axes=(None,) * len(shape))
        self.bias = nnx.Param(jnp.zeros(out_features), logical_axes=(None,))
        self.stride = stride

    def __call__(self, x: Float[Array, "b *space i"]) -> Float[Array, "b *smaller o"]:
        layout = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC")}[x.ndim - 2]
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel[...].astype(x.dtype),
            window_strides=(self.stride,) * (x.ndim - 2),
            padding="SAME",
            dimension_numbers=layout,
        )
        return y + expand(self.bias[...].astype(x.dtype), y.ndim)


class LayerNorm(nnx.Module):
    """Zero mean and unit variance over the last axis, then a learned scale and bias."""

    def __init__(self, features: int, *, axes: Axes = (None,), epsilon: float = 1e-6):
        self.scale = nnx.Param(jnp.ones(features), logical_axes=axes)
        self.bias = nnx.Param(jnp.zeros(features), logical_axes=axes)
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        y = standardize(x.astype(jnp.float32), self.epsilon)
        return (y * expand(self.scale[...], y.ndim) + expand(self.bias[...], y.ndim)).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Gemma's norm: `x / rms(x) * (1 + scale)`, the scale starting at 0. Source: arXiv 1910.07467, eq. 4."""

    def __init__(self, features: int, *, axes: Axes = (None,), epsilon: float = 1e-6):
        self.scale = nnx.Param(jnp.zeros(features), logical_axes=axes)
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        y = rms_standardize(x.astype(jnp.float32), self.epsilon)
        return (y * (1 + expand(self.scale[...], y.ndim))).astype(x.dtype)


def standardize(x: Float[Array, "*b d"], epsilon: float = 1e-6) -> Float[Array, "*b d"]:
    """Zero mean and unit variance over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)


def rms_standardize(x: Float[Array, "*b d"], epsilon: float = 1e-6) -> Float[Array, "*b d"]:
    """Unit mean square over the last axis."""
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon)


def expand(vector: Float[Array, "d"], ndim: int) -> Float[Array, "*ones d"]:
    """A vector against the last axis of `ndim` dims, said aloud because silent rank promotion is an error here."""
    return vector.reshape((1,) * (ndim - 1) + (-1,))


def sincos(
    time: Float[Array, "*b"], features: int, *, min_period: float = 4e-3, max_period: float = 4.0
) -> Float[Array, "*b d"]:
    """Sines and cosines of a scalar in [0, 1] at periods in geometric progression. The defaults are pi0's."""
    periods = min_period * (max_period / min_period) ** jnp.linspace(0.0, 1.0, features // 2)
    angles = time[..., None] * expand(2 * math.pi / periods, time.ndim + 1)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
