"""SigLIP's vision transformer (arXiv 2303.15343): patches, learned positions, pre-norm encoder, one token per patch.

Two departures make it learn from scratch in CPU minutes. The "merge" stem goes from small patches to large ones by
joining 2x2 neighbours, as Swin does (arXiv 2103.14030, section 3.1): matrix products only, which a CPU runs faster
than convolutions. And `mixed_tokens` reads the whole grid into a few tokens by one linear map, as MLP-Mixer mixes
places (arXiv 2105.01601): where a thing is need not be found by attention, which takes thousands of steps.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from vla_jax.core import errors
from vla_jax.nets.attention import Implementation, Segment, attend
from vla_jax.nets.linear import Dense, HeadsIn, HeadsOut, LayerNorm
from vla_jax.nets.stack import Remat, scan_layers, stack


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    patch_size: int  # pixels; one token per patch
    image_size: int  # pixels, square
    stem: Literal["patch", "merge"] = "patch"
    stem_channels: int = 32  # of the merging stem at patches of 4 pixels; twice as many at 8, and so on
    mixed_tokens: int | None = None  # tokens per image that each read the whole grid; None: one per patch

    def __post_init__(self):
        if self.width % self.num_heads or self.image_size % self.patch_size:
            raise errors.ConfigError(
                "SiglipConfig",
                expected="width a multiple of num_heads, image_size of patch_size",
                found=f"{self.width}, {self.num_heads}; {self.image_size}, {self.patch_size}",
            )
        if self.stem == "merge" and (self.patch_size < 4 or self.patch_size & (self.patch_size - 1)):
            raise errors.ConfigError(
                "SiglipConfig.patch_size", expected="a power of 2, at least 4, for stem='merge'", found=self.patch_size
            )
        if self.stem not in ("patch", "merge"):
            raise errors.ConfigError("SiglipConfig.stem", expected="patch or merge", found=self.stem)
        if self.mixed_tokens is not None and self.mixed_tokens < 1:
            raise errors.ConfigError(
                "SiglipConfig.mixed_tokens", expected="at least 1, or None", found=self.mixed_tokens
            )

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_tokens(self) -> int:
        """Per image."""
        return self.num_patches if self.mixed_tokens is None else self.mixed_tokens


SO400M_14 = SiglipConfig(width=1152, depth=27, mlp_dim=4304, num_heads=16, patch_size=14, image_size=224)
SIGLIP_TINY = SiglipConfig(128, depth=1, mlp_dim=256, num_heads=2, patch_size=16, image_size=64, stem="merge")


class Siglip(nnx.Module):
    """Images to tokens. `unroll`, `remat` and `attention` say how the layers run, not what they compute."""

    def __init__(
        self,
        config: SiglipConfig,
        rngs: nnx.Rngs,
        *,
        unroll: bool = False,
        remat: Remat = False,
        attention: Implementation = "fold",
    ):
        self.config, self.unroll, self.remat, self.attention = config, unroll, remat, attention
        self.stem = PatchStem(config, rngs) if config.stem == "patch" else MergeStem(config, rngs)
        self.to_tokens = self._to_tokens(rngs)
        positions = jax.random.normal(rngs.params(), (config.num_tokens, config.width)) * config.width**-0.5
        self.positions = nnx.Param(positions, logical_axes=(None, "embed"))
        self.layers = stack(lambda rngs: EncoderBlock(config, rngs), config.depth, rngs)
        self.norm = LayerNorm(config.width, axes=("embed",))

    def __call__(self, images: UInt8[Array, "b height width 3"], dtype: jnp.dtype) -> Float[Array, "b n d"]:
        x = self.stem((images.astype(jnp.float32) / 127.5 - 1).astype(dtype))
        if self.config.mixed_tokens is not None:
            x = x.reshape(x.shape[0], -1)
        if self.to_tokens is not None:
            x = self.to_tokens(x)
        x = x.reshape(x.shape[0], self.config.num_tokens, self.config.width)
        x = x + self.positions[...].astype(dtype)[None]

        def step(x, layers, _):
            return layers[0](x, self.attention), None

        x, _ = scan_layers(step, x, [self.layers], unroll=self.unroll, remat=self.remat)
        return self.norm(x)

    def _to_tokens(self, rngs: nnx.Rngs) -> Dense | None:
        """From the stem's channels to the width, or from all of them at once; a patch stem ends at the width itself."""
        config, channels = self.config, self.stem.out_channels
        if config.mixed_tokens is not None:
            return Dense(config.num_patches * channels, config.mixed_tokens * config.width, rngs, axes=(None, "embed"))
        return None if config.stem == "patch" else Dense(channels, config.width, rngs, axes=(None, "embed"))


class PatchStem(nnx.Module):
    """Each patch by itself through one linear layer."""

    def __init__(self, config: SiglipConfig, rngs: nnx.Rngs):
        self.patch_size = config.patch_size
        self.out_channels = config.width
        self.project = Dense(config.patch_size**2 * 3, config.width, rngs, axes=(None, "embed"))

    def __call__(self, x: Float[Array, "b height width 3"]) -> Float[Array, "b rows columns c"]:
        return self.project(join_neighbours(x, self.patch_size))


class MergeStem(nnx.Module):
    """Patches of 4 pixels, then 2x2 neighbours joined and their channels doubled down to the patch grid."""

    def __init__(self, config: SiglipConfig, rngs: nnx.Rngs):
        c = config.stem_channels
        merges = (config.patch_size // 4).bit_length() - 1
        self.out_channels = c << merges
        self.first = Dense(4 * 4 * 3, c, rngs)
        self.plain = Dense(c, c, rngs)
        self.merge = nnx.List([Dense(4 * c << i, c << (i + 1), rngs) for i in range(merges)])

    def __call__(self, x: Float[Array, "b height width 3"]) -> Float[Array, "b rows columns c"]:
        x = jax.nn.relu(self.plain(jax.nn.relu(self.first(join_neighbours(x, 4)))))
        for layer in self.merge:
            x = jax.nn.relu(layer(join_neighbours(x, 2)))
        return x


def join_neighbours(x: Float[Array, "b height width c"], size: int) -> Float[Array, "b rows columns d"]:
    """Squares of `size` neighbours a side laid end to end: `d = size**2 * c`, rows of a square first."""
    b, height, width, c = x.shape
    x = x.reshape(b, height // size, size, width // size, size, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, height // size, width // size, size * size * c)


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
