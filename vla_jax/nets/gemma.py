"""Gemma's layer (arXiv 2403.08295), cut where experts share their attention, with pi0.5's adaptive norms.

x -- norm -- q k v --> attention, outside --> out -- (norm) -- + -- norm -- GeGLU -- (norm) -- + -->
'-------------------------------------------------------------'  '----------------------------'

Gemma 3's layers (`nets/gemma3.py`) have the norms in brackets, norms on q k, and windows in most layers. Qwen's
(`nets/qwen_text.py`) have biases or norms on q k v, SwiGLU and other rotary positions.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vla_jax.core import errors
from vla_jax.nets.attention import Rotary, Rotation, turn
from vla_jax.nets.linear import Dense, HeadsIn, HeadsOut, RMSNorm, rms_standardize

_ACTIVATIONS = {"gelu": functools.partial(jax.nn.gelu, approximate=True), "silu": jax.nn.silu}


@dataclasses.dataclass(frozen=True)
class LocalLayers:
    """Layers that see a window, with rotary positions of their own (arXiv 2503.19786, section 2).

    Every `period`-th layer is none of them: it sees all that the mask allows.
    """

    window: int  # positions that a query sees at most, its own included; what is behind it is not counted
    period: int = 6
    rotary: Rotary = Rotary()

    def __post_init__(self):
        if self.window < 1 or self.period < 2 or self.rotary.sections:
            raise errors.ConfigError(
                "LocalLayers", expected="window >= 1, period >= 2, rotary positions of one axis", found=self
            )

    def is_global(self, layer: Int[Array, ""]) -> Bool[Array, ""]:
        return (layer + 1) % self.period == 0

    def sees(self, layer: Int[Array, ""], queries: Int[Array, "b n"], keys: Int[Array, "b m"]) -> Bool[Array, "b n m"]:
        """Which positions are near enough for a layer."""
        return self.is_global(layer) | (queries[:, :, None] - keys[:, None, :] < self.window)


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
    """One expert. Experts of a mixture share `depth`, `num_heads`, `num_kv_heads`, `head_dim`, `rotary` and `local`."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    activation: Literal["gelu", "silu"] = "gelu"  # of the MLP's gate
    qkv_bias: bool = False  # on queries, keys and values
    qk_norm: bool = False  # RMS norm of every query and key before they turn
    post_norm: bool = False  # RMS norm of what attention and MLP add
    rotary: Rotary = Rotary()
    local: LocalLayers | None = None  # None: every layer sees everything

    def __post_init__(self):
        if self.activation not in _ACTIVATIONS:
            raise errors.ConfigError("GemmaConfig.activation", expected="gelu or silu", found=repr(self.activation))
        if self.num_heads % self.num_kv_heads or self.head_dim % 2:
            raise errors.ConfigError(
                "GemmaConfig",
                expected="num_heads a multiple of num_kv_heads and an even head_dim",
                found=f"num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}, head_dim={self.head_dim}",
            )


GEMMA_2B = GemmaConfig(width=2048, depth=18, mlp_dim=16384, num_heads=8, num_kv_heads=1, head_dim=256)
GEMMA_300M = GemmaConfig(width=1024, depth=18, mlp_dim=4096, num_heads=8, num_kv_heads=1, head_dim=256)
GEMMA_TINY = GemmaConfig(width=128, depth=3, mlp_dim=384, num_heads=4, num_kv_heads=1, head_dim=32)

Gate = Float[Array, "b 1 d"] | None  # multiplies a residual branch; None is 1


class Norm(nnx.Module):
    """RMS norm; the adaptive one takes scale, shift and residual gate from a condition instead of a learned scale.

    Its kernel starts at zero, gate included, so that an untrained conditioned layer passes tokens through unchanged.
    """

    def __init__(self, width: int, rngs: nnx.Rngs, *, adaptive: bool):
        zeros = jax.nn.initializers.zeros
        self.modulation = Dense(width, 3 * width, rngs, axes=("embed", None), kernel_init=zeros) if adaptive else None
        self.plain = None if adaptive else RMSNorm(width, axes=("embed",))

    def __call__(
        self, x: Float[Array, "b n d"], condition: Float[Array, "b d"] | None
    ) -> tuple[Float[Array, "b n d"], Gate]:
        if self.modulation is None:
            if condition is not None:
                raise errors.ConfigError(
                    "suffix of the transformer",
                    expected="no condition",
                    found="a condition",
                    fix="set adaptive_norm=True, or time_conditioning='concat'",
                )
            return self.plain(x), None
        y = rms_standardize(x.astype(jnp.float32))
        if condition is None:
            return y.astype(x.dtype), None
        modulation = self.modulation(condition.astype(jnp.float32))[:, None]
        scale, shift, gate = jnp.split(modulation, 3, axis=-1)
        return (y * (1 + scale) + shift).astype(x.dtype), gate.astype(x.dtype)


class GemmaBlock(nnx.Module):
    """One layer of one expert; the caller attends between `project` and `finish`."""

    def __init__(self, config: GemmaConfig, rngs: nnx.Rngs, *, adaptive_norm: bool = False):
        c, bias = config, config.qkv_bias
        self.rotary, self.local, self.activation, self.head_dim = c.rotary, c.local, c.activation, c.head_dim
        self.attention_norm = Norm(c.width, rngs, adaptive=adaptive_norm)
        self.query = HeadsIn(c.width, c.num_heads, c.head_dim, rngs, use_bias=bias)
        self.key = HeadsIn(c.width, c.num_kv_heads, c.head_dim, rngs, use_bias=bias)
        self.value = HeadsIn(c.width, c.num_kv_heads, c.head_dim, rngs, use_bias=bias)
        self.query_norm = RMSNorm(c.head_dim, axes=("head_dim",)) if c.qk_norm else None
        self.key_norm = RMSNorm(c.head_dim, axes=("head_dim",)) if c.qk_norm else None
        self.attention_out = HeadsOut(c.num_heads, c.head_dim, c.width, rngs)
        self.attention_post_norm = RMSNorm(c.width, axes=("embed",)) if c.post_norm else None
        self.mlp_norm = Norm(c.width, rngs, adaptive=adaptive_norm)
        self.gate = Dense(c.width, c.mlp_dim, rngs, axes=("embed", "mlp"), use_bias=False)
        self.up = Dense(c.width, c.mlp_dim, rngs, axes=("embed", "mlp"), use_bias=False)
        self.down = Dense(c.mlp_dim, c.width, rngs, axes=("mlp", "embed"), use_bias=False)
        self.mlp_post_norm = RMSNorm(c.width, axes=("embed",)) if c.post_norm else None

    def rotations(self, positions: Int[Array, "b n *axes"]) -> tuple[Rotation, ...]:
        """What `project` turns by, the same for all layers: of global ones, and of local ones where there are any."""
        kinds = [self.rotary] if self.local is None else [self.rotary, self.local.rotary]
        return tuple(Rotation.by(kind.angles(positions, self.head_dim)) for kind in kinds)

    def project(self, x: Float[Array, "b n d"], rotations: tuple[Rotation, ...], layer: Int[Array, ""], condition=None):
        """Rotated queries and keys, values, and the gate that `finish` wants back; `layer` counts from 0."""
        y, gate = self.attention_norm(x, condition)
        query, key = self.query(y), self.key(y)
        if self.query_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        rotation = self._of_layer(rotations, layer)
        return turn(query, rotation), turn(key, rotation), self.value(y), gate

    def finish(self, x: Float[Array, "b n d"], attended: Float[Array, "b n h k"], gate: Gate, condition=None):
        """Both residual branches, given what the queries gathered."""
        x = _add(x, self.attention_out(attended), self.attention_post_norm, gate)
        y, gate = self.mlp_norm(x, condition)
        branch = self.down(_ACTIVATIONS[self.activation](self.gate(y)) * self.up(y))
        return _add(x, branch, self.mlp_post_norm, gate)

    def _of_layer(self, rotations: tuple[Rotation, ...], layer: Int[Array, ""]) -> Rotation:
        if self.local is None:
            return rotations[0]
        is_global = self.local.is_global(layer)
        return jax.tree.map(lambda far, near: jnp.where(is_global, far, near), *rotations)


def _add(
    x: Float[Array, "b n d"], branch: Float[Array, "b n d"], norm: RMSNorm | None, gate: Gate
) -> Float[Array, "b n d"]:
    branch = branch if norm is None else norm(branch)
    return x + (branch if gate is None else branch * gate)
