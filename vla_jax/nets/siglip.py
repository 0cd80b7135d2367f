"""SigLIP's vision transformer (arXiv 2303.15343): patches, learned positions, pre-norm encoder, one token per patch.

The stem may be convolutional, which makes small transformers train in far fewer steps (arXiv 2106.14881).
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from vla_jax.core import errors
from vla_jax.nets.attention import Implementation, Segment, attend
from vla_jax.nets.linear import Conv, Dense, HeadsIn, HeadsOut, LayerNorm
from vla_jax.nets.stack import scan_layers, stack


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    patch_size: int  # pixels; one token per patch
    image_size: int  # pixels, square
    stem: Literal["patch", "conv"] = "patch"
    stem_channels: int = 32  # of the convolutional stem's first layer

    def __post_init__(self):
        if self.width % self.num_heads or self.image_size % self.patch_size:
            raise errors.ConfigError(
                "SiglipConfig",
                expected="width a multiple of num_heads, image_size of patch_size",
                found=f"{self.width}, {self.num_heads}; {self.image_size}, {self.patch_size}",
            )
        if self.stem == "conv" and (self.patch_size < 4 or self.patch_size & (self.patch_size - 1)):
            raise errors.ConfigError(
                "SiglipConfig.patch_size", expected="a power of 2, at least 4, for stem='conv'", found=self.patch_size
            )
        if self.stem not in ("patch", "conv"):
            raise errors.ConfigError("SiglipConfig.stem", expected="patch or conv", found=self.stem)

    @property
    def num_tokens(self) -> int:
        return (self.image_size // self.patch_size) ** 2


SO400M_14 = SiglipConfig(width=1152, depth=27, mlp_dim=4304, num_heads=16, patch_size=14, image_size=224)


class Siglip(nnx.Module):
    """Images to tokens. `unroll`, `remat` and `attention` say how the layers run, not what they compute."""

    def __init__(
        self,
        config: SiglipConfig,
        rngs: nnx.Rngs,
        *,
        unroll: bool = False,
        remat: bool = False,
        attention: Implementation = "fold",
    ):
        self.config, self.unroll, self.remat, self.attention = config, unroll, remat, attention
        self.stem = PatchStem(config, rngs) if config.stem == "patch" else ConvStem(config, rngs)
        positions = jax.random.normal(rngs.params(), (config.num_tokens, config.width)) * config.width**-0.5
        self.positions = nnx.Param(positions, logical_axes=(None, "embed"))
        self.layers = stack(lambda rngs: EncoderBlock(config, rngs), config.depth, rngs)
        self.norm = LayerNorm(config.width, axes=("embed",))

    def __call__(self, images: UInt8[Array, "b height width 3"], dtype: jnp.dtype) -> Float[Array, "b n d"]:
        x = self.stem((images.astype(jnp.float32) / 127.5 - 1).astype(dtype))
        x = x + self.positions[...].astype(dtype)[None]

        def step(x, layers, _):
            return layers[0](x, self.attention), None

        x, _ = scan_layers(step, x, [self.layers], unroll=self.unroll, remat=self.remat)
        return self.norm(x)


class PatchStem(nnx.Module):
    """Each patch by itself through one linear layer, written as a matrix product."""

    def __init__(self, config: SiglipConfig, rngs: nnx.Rngs):
        self.patch_size = config.patch_size
        self.project = Dense(config.patch_size**2 * 3, config.width, rngs, axes=(None, "embed"))

    def __call__(self, x: Float[Array, "b height width 3"]) -> Float[Array, "b n d"]:
        b, height, width, channels = x.shape
        p = self.patch_size
        x = x.reshape(b, height // p, p, width // p, p, channels).transpose(0, 1, 3, 2, 4, 5)
        return self.project(x.reshape(b, -1, p * p * channels))


class ConvStem(nnx.Module):
    """Stride 4, one plain layer, then stride-2 layers of doubling channels down to the patch grid."""

    def __init__(self, config: SiglipConfig, rngs: nnx.Rngs):
        c = config.stem_channels
        halvings = (config.patch_size // 4).bit_length() - 1
        self.first = Conv((6, 6), 3, c, rngs, stride=4)
        self.plain = Conv((3, 3), c, c, rngs)
        self.down = nnx.List([Conv((3, 3), c << i, c << (i + 1), rngs, stride=2) for i in range(halvings)])
        self.project = Dense(c << halvings, config.width, rngs, axes=(None, "embed"))

    def __call__(self, x: Float[Array, "b height width 3"]) -> Float[Array, "b n d"]:
        x = jax.nn.relu(self.plain(jax.nn.relu(self.first(x))))
        for layer in self.down:
            x = jax.nn.relu(layer(x))
        return self.project(x.reshape(x.shape[0], -1, x.shape[-1]))


class EncoderBlock(nnx.Module):
    """Pre-norm attention and MLP, biases everywhere, GELU in its tanh form."""

    def __init__(self, config: SiglipConfig, rngs: nnx.Rngs):
        width, heads = config.width, config.num_heads
        self.attention_norm = LayerNorm(width, axes=("embed",))
        self.query = HeadsIn(width, heads, width // heads, rngs, use_bias=True)
        self.key = HeadsIn(width, heads, width // heads, rngs, use_bias=True)
        self.value = HeadsIn(width, heads, width // heads, rngs, use_bias=True)
        self.attention_out = HeadsOut(heads, width // heads, width, rngs, use_bias=True)
        self.mlp_norm = LayerNorm(width, axes=("embed",))
        self.up = Dense(width, config.mlp_dim, rngs, axes=("embed", "mlp"))
        self.down = Dense(config.mlp_dim, width, rngs, axes=("mlp", "embed"))

    def __call__(self, x: Float[Array, "b n d"], attention: Implementation) -> Float[Array, "b n d"]:
        y = self.attention_norm(x)
        sees_all = jnp.ones((x.shape[0], x.shape[1], x.shape[1]), bool)
        segment = Segment(self.key(y), self.value(y), sees_all)
        x = x + self.attention_out(attend(self.query(y), [segment], attention))
        return x + self.down(jax.nn.gelu(self.up(self.mlp_norm(x)), approximate=True))
