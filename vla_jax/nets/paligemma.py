"""PaliGemma (arXiv 2407.07726): SigLIP and one Gemma that reads pictures and a prompt, then writes.

    prefix [ images, prompt ]      sees itself, both ways
    suffix          [ target ]     sees the prefix, itself and earlier words

As a language model it scores and generates text (`token_logits`, `generate`). As a `Backbone` it lends its own layers
to the suffix, so that action decoders run on one transformer; pi0-FAST (arXiv 2501.09747) does both in one.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vla_jax.core import errors
from vla_jax.core.types import Observation
from vla_jax.nets.attention import Implementation, block_mask
from vla_jax.nets.gemma import GEMMA_2B, GemmaBlock, GemmaConfig
from vla_jax.nets.language import VisionLanguage
from vla_jax.nets.linear import RMSNorm, rms_standardize
from vla_jax.nets.mixture import Cache, Stream, last_real, masked_mean, run_layers
from vla_jax.nets.siglip import SO400M_14, SiglipConfig
from vla_jax.nets.stack import Remat, stack
from vla_jax.nets.state_text import StateText


@dataclasses.dataclass(frozen=True)
class PaliGemmaConfig:
    cameras: tuple[str, ...]  # names in `Observation.images`, in token order
    vocab_size: int
    prompt_length: int
    vision: SiglipConfig
    language: GemmaConfig
    state_dim: int = 0  # of the robot; a model of text and images has none
    state_text: StateText | None = None  # how the state is written behind the prompt; None leaves it out
    camera_embedding: bool = False  # a learned vector per camera, which small networks miss more than large ones
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; parameters stay float32
    unroll: bool = False  # write layers out: faster for a few small ones on CPU
    remat: Remat = False  # recompute activations in the gradient: all, or those a named policy does not keep
    attention: Implementation = "fold"

    def __post_init__(self):
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise errors.ConfigError("PaliGemmaConfig.cameras", expected="distinct names", found=self.cameras)
        if min(self.vocab_size, self.prompt_length) < 1 or self.state_dim < (self.state_text is not None):
            raise errors.ConfigError(
                "PaliGemmaConfig",
                expected="positive sizes; a state_dim of 1 or more with state_text",
                found=f"vocab_size={self.vocab_size}, prompt_length={self.prompt_length}, state_dim={self.state_dim}",
            )

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return (self.vision.image_size, self.vision.image_size)

    @property
    def feature_dim(self) -> int:
        return self.language.width


def paligemma(cameras: tuple[str, ...] = ("image",), prompt_length: int = 128, **changes) -> PaliGemmaConfig:
    """The published shapes at 224 pixels: SigLIP So400m/14 and Gemma 2B, 2.9B parameters."""
    config = PaliGemmaConfig(
        cameras=cameras,
        vocab_size=257152,
        prompt_length=prompt_length,
        vision=SO400M_14,
        language=GEMMA_2B,
        compute_dtype="bfloat16",
        remat=True,
    )
    return dataclasses.replace(config, **changes)


def pi0_fast(
    cameras: tuple[str, ...],
    state_dim: int = 32,
    prompt_length: int = 180,
    state_text: StateText | None = None,
    **changes,
) -> PaliGemmaConfig:
    """pi0-FAST's published shapes: PaliGemma's, with no parameter of its own. Without `state_text` the prompt holds the
    state already."""
    return paligemma(cameras, prompt_length, **dict(state_dim=state_dim, state_text=state_text) | changes)


def tiny_paligemma(
    cameras: tuple[str, ...] = ("image",), vocab_size: int = 257, prompt_length: int = 48, **changes
) -> PaliGemmaConfig:
    """Under 1M parameters for 64x64 images, the same code."""
    config = PaliGemmaConfig(
        cameras=cameras,
        vocab_size=vocab_size,
        prompt_length=prompt_length,
        vision=SiglipConfig(128, depth=1, mlp_dim=256, num_heads=2, patch_size=16, image_size=64, stem="merge"),
        language=GemmaConfig(128, depth=3, mlp_dim=384, num_heads=4, num_kv_heads=1, head_dim=32),
        camera_embedding=True,
        unroll=True,
    )
    return dataclasses.replace(config, **changes)


class PaliGemma(VisionLanguage):
    """A `Backbone` that also writes text; its prefix is a `Cache`."""

    def __init__(self, config: PaliGemmaConfig, rngs: nnx.Rngs):
        super().__init__(config, config.language.width, rngs)
        self.suffix_width = config.language.width
        self.layers = stack(lambda rngs: GemmaBlock(config.language, rngs), config.language.depth, rngs)
        self.norm = RMSNorm(config.language.width, axes=("embed",))

    @property
    def text_layers(self) -> nnx.Module:
        return self.layers

    @property
    def text_norm(self) -> RMSNorm:
        return self.norm

    def prefix(self, observation: Observation) -> Cache:
        parts, masks = self.see_and_read(observation)
        tokens, mask = jnp.concatenate(parts, axis=1), jnp.concatenate(masks, axis=1)
        seen = block_mask(jnp.zeros(mask.shape, jnp.int32), mask)
        outputs = run_layers([self.layers], [Stream(tokens, jnp.cumsum(mask, axis=1) - 1)], seen, **self.runs)
        pooled = rms_standardize(masked_mean(outputs.last_inputs[0].astype(jnp.float32), mask))
        last = self.norm(last_real(outputs.tokens[0], mask))
        return Cache(outputs.keys, outputs.values, mask, mask.sum(1), pooled, last)

    def suffix(
        self,
        prefix: Cache,
        tokens: Float[Array, "b n d"],
        *,
        condition: Float[Array, "b d"] | None = None,
        causal: bool = False,
    ) -> Float[Array, "b n d"]:
        """Decode suffix tokens with the layers that read the prefix. Raises ConfigError for a `condition`."""
        if condition is not None:
            raise errors.ConfigError("suffix of PaliGemma", expected="no condition", found="a condition")
        return self.continue_text(prefix, tokens.astype(self.config.compute_dtype), causal)

    def features(self, prefix: Cache) -> Float[Array, "b f"]:
        return prefix.features
