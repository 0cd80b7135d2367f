"""PaliGemma (arXiv 2407.07726): SigLIP and one Gemma that reads pictures and a prompt, then writes.

    prefix [ images, prompt ]      sees itself, both ways (Gemma 3, `nets/gemma3.py`: only pictures do)
    suffix          [ target ]     sees the prefix, itself and earlier words

As a language model it scores and generates text (`token_logits`, `generate`). As a `Backbone` it lends its own layers
to the suffix, so that action decoders run on one transformer; pi0-FAST (arXiv 2501.09747) does both in one.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vla_jax.core import errors
from vla_jax.core.types import Observation
from vla_jax.nets.attention import block_mask
from vla_jax.nets.gemma import GEMMA_2B, GEMMA_TINY, GemmaBlock, GemmaConfig
from vla_jax.nets.language import PUBLISHED, SMALL, VisionLanguage, VisionLanguageConfig
from vla_jax.nets.linear import RMSNorm
from vla_jax.nets.mixture import Cache, Stream, make_cache, run_layers
from vla_jax.nets.reading import arrange
from vla_jax.nets.stack import stack
from vla_jax.nets.state_text import StateText


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaliGemmaConfig(VisionLanguageConfig):
    language: GemmaConfig

    @property
    def feature_dim(self) -> int:
        return self.language.width


def paligemma(cameras: tuple[str, ...] = ("image",), prompt_length: int = 128, **changes) -> PaliGemmaConfig:
    """The published shapes at 224 pixels: SigLIP So400m/14 and Gemma 2B, 2.9B parameters."""
    shapes = PUBLISHED | dict(cameras=cameras, prompt_length=prompt_length, language=GEMMA_2B)
    return PaliGemmaConfig(**shapes | changes)


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
    shapes = SMALL | dict(cameras=cameras, vocab_size=vocab_size, prompt_length=prompt_length, language=GEMMA_TINY)
    return PaliGemmaConfig(**shapes | changes)


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
        tokens, mask, block = arrange(self.see_and_read(observation), self.config.reading)
        seen = block_mask(jnp.broadcast_to(block[None], mask.shape), mask)
        outputs = run_layers([self.layers], [Stream(tokens, jnp.cumsum(mask, axis=1) - 1)], seen, **self.runs)
        return make_cache(outputs, mask, mask, mask.sum(1), self.norm)

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
