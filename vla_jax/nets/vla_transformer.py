"""The pi0 family of vision-language-action transformers (arXiv 2410.24164, 2504.16054) as a `Backbone`.

    images -- SigLIP -- dense --+
    prompt -- embedding --------+-- prefix expert --> keys, values of every layer
    state --- dense ------------+                          |
    (or words behind the prompt)  suffix tokens -- suffix expert --> decoded tokens

The same code runs from `tiny` (1M parameters, CPU) to `pi0` and `pi05` (SigLIP So400m/14, Gemma 2B, 300M expert).
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vla_jax.core import errors
from vla_jax.core.types import Observation
from vla_jax.nets.gemma import GEMMA_2B, GEMMA_300M, GEMMA_TINY, GemmaConfig
from vla_jax.nets.language import PUBLISHED, SMALL, VisionLanguage, VisionLanguageConfig
from vla_jax.nets.linear import Dense, RMSNorm
from vla_jax.nets.mixture import Cache, Mixture
from vla_jax.nets.reading import Part, arrange
from vla_jax.nets.state_text import StateText


@dataclasses.dataclass(frozen=True, kw_only=True)
class VlaTransformerConfig(VisionLanguageConfig):
    prefix_expert: GemmaConfig
    suffix_expert: GemmaConfig
    # Whose weights read the state; pi0: suffix. "text" (pi0.5): `state_text` writes it, or None: the prompt has it.
    state_token: Literal["prefix", "suffix", "text"] = "prefix"
    with_text: bool = False  # whether the prefix expert also writes words (`token_logits`, `generate`)
    adaptive_norm: bool = False  # whether the suffix expert's norms take a condition (pi0.5)

    def __post_init__(self):
        super().__post_init__()
        if self.state_dim < 1:
            raise errors.ConfigError("VlaTransformerConfig.state_dim", expected="1 or more", found=self.state_dim)
        if self.state_text is not None and self.state_token != "text":
            raise errors.ConfigError(
                "VlaTransformerConfig", expected="state_token='text' with state_text", found=repr(self.state_token)
            )
        if self.state_token == "suffix" and self.adaptive_norm:
            raise errors.ConfigError(
                "VlaTransformerConfig",
                expected="state_token='prefix' with adaptive_norm",
                found="state_token='suffix': its norms would depend on the flow time, and its keys could not be cached",
            )

    @property
    def feature_dim(self) -> int:
        return self.prefix_expert.width


def tiny(
    cameras: tuple[str, ...], state_dim: int, vocab_size: int, prompt_length: int, **changes
) -> VlaTransformerConfig:
    """About 1M parameters for 64x64 images: merging stem, 16 tokens per camera, one key-value head."""
    shapes = dict(cameras=cameras, state_dim=state_dim, vocab_size=vocab_size, prompt_length=prompt_length)
    experts = dict(prefix_expert=GEMMA_TINY, suffix_expert=dataclasses.replace(GEMMA_TINY, width=96, mlp_dim=256))
    return VlaTransformerConfig(**SMALL | shapes | experts | changes)


def pi0(cameras: tuple[str, ...], state_dim: int = 32, prompt_length: int = 48, **changes) -> VlaTransformerConfig:
    """The published shapes: 3.2B parameters with the action expert; PaliGemma's vocabulary."""
    shapes = dict(cameras=cameras, state_dim=state_dim, prompt_length=prompt_length, state_token="suffix")
    experts = dict(prefix_expert=GEMMA_2B, suffix_expert=GEMMA_300M)
    return VlaTransformerConfig(**PUBLISHED | shapes | experts | changes)


def pi05(
    cameras: tuple[str, ...],
    state_dim: int = 32,
    prompt_length: int = 200,
    state_text: StateText | None = None,
    **changes,
) -> VlaTransformerConfig:
    """pi0.5's published shapes: pi0's, with adaptive norms in the action expert and the state as words."""
    text = dict(state_token="text", state_text=state_text, adaptive_norm=True)
    return pi0(cameras, state_dim, prompt_length, **text | changes)


class VlaTransformer(VisionLanguage):
    """The `Backbone` of this file; its prefix is a `Cache`."""

    def __init__(self, config: VlaTransformerConfig, rngs: nnx.Rngs):
        width = config.prefix_expert.width
        super().__init__(config, width, rngs)
        self.suffix_width = config.suffix_expert.width
        state_width = width if config.state_token == "prefix" else self.suffix_width
        as_text = config.state_token == "text"
        self.state_in = None if as_text else Dense(config.state_dim, state_width, rngs, axes=(None, "embed"))
        self.mixture = Mixture(
            config.prefix_expert,
            config.suffix_expert,
            rngs,
            adaptive_norm=config.adaptive_norm,
            with_text=config.with_text,
            **self.runs,
        )

    @property
    def text_layers(self) -> nnx.Module:
        return self.mixture.prefix_layers

    @property
    def text_norm(self) -> RMSNorm:
        if self.mixture.prefix_norm is None:
            raise errors.ConfigError(
                "VlaTransformer writes no words", expected="with_text=True", found="with_text=False"
            )
        return self.mixture.prefix_norm

    def prefix(self, observation: Observation) -> Cache:
        parts, state = self.see_and_read(observation), None
        if self.state_in is not None:
            state = self.state_in(observation.state.astype(self.config.compute_dtype))[:, None]
        if self.config.state_token == "prefix":
            parts, state = [*parts, Part(state, jnp.ones(state.shape[:2], bool))], None
        tokens, mask, block = arrange(parts, self.config.reading)
        return self.mixture.prefix(tokens, mask, state, block=block)

    def suffix(
        self,
        prefix: Cache,
        tokens: Float[Array, "b n d"],
        *,
        condition: Float[Array, "b d"] | None = None,
        causal: bool = False,
    ) -> Float[Array, "b n d"]:
        return self.mixture.suffix(prefix, tokens.astype(self.config.compute_dtype), condition, causal)

    def features(self, prefix: Cache) -> Float[Array, "b f"]:
        return prefix.features
