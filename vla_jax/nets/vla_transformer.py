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
from vla_jax.nets.attention import Implementation
from vla_jax.nets.gemma import GEMMA_2B, GEMMA_300M, GemmaConfig
from vla_jax.nets.language import VisionLanguage
from vla_jax.nets.linear import Dense, RMSNorm
from vla_jax.nets.mixture import Cache, Mixture
from vla_jax.nets.siglip import SO400M_14, SiglipConfig
from vla_jax.nets.stack import Remat
from vla_jax.nets.state_text import StateText


@dataclasses.dataclass(frozen=True)
class VlaTransformerConfig:
    cameras: tuple[str, ...]  # names in `Observation.images`, in token order
    state_dim: int
    vocab_size: int
    prompt_length: int
    vision: SiglipConfig
    prefix_expert: GemmaConfig
    suffix_expert: GemmaConfig
    state_token: Literal["prefix", "suffix", "text"] = "prefix"  # whose weights read the state; pi0: suffix
    state_text: StateText | None = None  # with "text" (pi0.5): how it is written; None: the prompt has it already
    with_text: bool = False  # whether the prefix expert also writes words (`token_logits`, `generate`)
    adaptive_norm: bool = False  # whether the suffix expert's norms take a condition (pi0.5)
    camera_embedding: bool = False  # a learned vector per camera, which small networks miss more than large ones
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; parameters stay float32
    unroll: bool = False  # write layers out: faster for a few small ones on CPU
    remat: Remat = False  # recompute activations in the gradient: all, or those a named policy does not keep
    attention: Implementation = "fold"

    def __post_init__(self):
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise errors.ConfigError("VlaTransformerConfig.cameras", expected="distinct names", found=self.cameras)
        if min(self.state_dim, self.vocab_size, self.prompt_length) < 1:
            raise errors.ConfigError("VlaTransformerConfig", expected="positive sizes", found=self)
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
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return (self.vision.image_size, self.vision.image_size)

    @property
    def feature_dim(self) -> int:
        return self.prefix_expert.width


def tiny(
    cameras: tuple[str, ...], state_dim: int, vocab_size: int, prompt_length: int, **changes
) -> VlaTransformerConfig:
    """About 1M parameters for 64x64 images: merging stem, 16 tokens per camera, one key-value head."""
    config = VlaTransformerConfig(
        cameras=cameras,
        state_dim=state_dim,
        vocab_size=vocab_size,
        prompt_length=prompt_length,
        vision=SiglipConfig(128, depth=1, mlp_dim=256, num_heads=2, patch_size=16, image_size=64, stem="merge"),
        prefix_expert=GemmaConfig(128, depth=3, mlp_dim=384, num_heads=4, num_kv_heads=1, head_dim=32),
        suffix_expert=GemmaConfig(96, depth=3, mlp_dim=256, num_heads=4, num_kv_heads=1, head_dim=32),
        camera_embedding=True,
        unroll=True,
    )
    return dataclasses.replace(config, **changes)


def pi0(cameras: tuple[str, ...], state_dim: int = 32, prompt_length: int = 48, **changes) -> VlaTransformerConfig:
    """The published shapes: 3.2B parameters with the action expert; PaliGemma's vocabulary."""
    config = VlaTransformerConfig(
        cameras=cameras,
        state_dim=state_dim,
        vocab_size=257152,
        prompt_length=prompt_length,
        vision=SO400M_14,
        prefix_expert=GEMMA_2B,
        suffix_expert=GEMMA_300M,
        state_token="suffix",
        compute_dtype="bfloat16",
        remat=True,
    )
    return dataclasses.replace(config, **changes)


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
        tokens, masks = self.see_and_read(observation)
        state = None
        if self.state_in is not None:
            state = self.state_in(observation.state.astype(self.config.compute_dtype))[:, None]
        if self.config.state_token == "prefix":
            tokens, masks = [*tokens, state], [*masks, jnp.ones(state.shape[:2], bool)]
            state = None
        return self.mixture.prefix(jnp.concatenate(tokens, axis=1), jnp.concatenate(masks, axis=1), state)

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
