"""Qwen2.5-VL (arXiv 2502.13923) and Qwen3-VL (arXiv 2511.21631), as language models and under an action expert.

    prefix [ opening, <start> picture <end>, ..., prompt, (state) ]               every token sees the earlier ones
    suffix                                       [ (state), target or actions ]   sees the prefix, and itself as asked

As a language model it scores and generates text with the layers that read the prefix, and decoders of actions may use
those too, as `nets/paligemma.py` has it. With an `action_expert` the suffix has weights of its own beside them, as in
pi0 (`nets/mixture.py`); the words stay.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vla_jax.core import errors
from vla_jax.core.types import Observation
from vla_jax.nets import qwen_text
from vla_jax.nets.attention import block_mask
from vla_jax.nets.gemma import GemmaBlock, GemmaConfig
from vla_jax.nets.language import Language, VisionLanguageConfig
from vla_jax.nets.linear import Dense, RMSNorm
from vla_jax.nets.mixture import Cache, Mixture, Stream, make_cache, next_position, run_layers
from vla_jax.nets.qwen_text import QWEN2_5_3B, QWEN2_5_7B, QWEN3_2B, QWEN3_4B
from vla_jax.nets.qwen_vision import QWEN2_5_VISION, QWEN3_VISION, QwenVision, QwenVisionConfig
from vla_jax.nets.reading import Part, Picture, Reading, arrange
from vla_jax.nets.stack import stack

READING = Reading(causal=True, causal_pictures=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QwenVLConfig(VisionLanguageConfig):
    vision: QwenVisionConfig
    language: GemmaConfig
    reading: Reading = READING
    tied_words: bool = True  # whether the output layer is the embedding
    action_expert: GemmaConfig | None = None  # of the suffix; None: the layers that read the prefix
    # Which weights read the state with an action expert; pi0: suffix. "text": `state_text` or the prompt says it.
    state_token: Literal["suffix", "text"] = "text"
    adaptive_norm: bool = False  # whether the action expert's norms take a condition (pi0.5)

    def __post_init__(self):
        super().__post_init__()
        if self.vision.out_width != self.language.width or len(self.vision.deepstack_layers) > self.language.depth:
            raise errors.ConfigError(
                "QwenVLConfig",
                expected=f"vision.out_width={self.language.width}, at most {self.language.depth} deepstack_layers",
                found=f"vision.out_width={self.vision.out_width}, {len(self.vision.deepstack_layers)} layers",
                fix="dataclasses.replace(vision, out_width=language.width)",
            )
        if self.action_expert is None and (self.state_token != "text" or self.adaptive_norm):
            raise errors.ConfigError(
                "QwenVLConfig",
                expected="an action_expert with state_token='suffix' or adaptive_norm",
                found=f"state_token={self.state_token!r}, adaptive_norm={self.adaptive_norm}",
            )
        if self.state_token == "suffix" and (self.state_text is not None or self.adaptive_norm or self.state_dim < 1):
            raise errors.ConfigError(
                "QwenVLConfig with state_token='suffix'",
                expected="a state_dim, no state_text and no adaptive_norm, which would keep its keys from being cached",
                found=f"state_dim={self.state_dim}, adaptive_norm={self.adaptive_norm}",
            )

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.vision.image_size

    @property
    def feature_dim(self) -> int:
        return self.language.width


def qwen2_5_vl_3b(cameras: tuple[str, ...] = ("image",), prompt_length: int = 128, **changes) -> QwenVLConfig:
    """The published shapes, 3.75B parameters; pictures of 224 x 224 pixels unless `image_size` says otherwise."""
    return _published(QWEN2_5_VISION, QWEN2_5_3B, 151936, cameras, prompt_length, changes)


def qwen2_5_vl_7b(cameras: tuple[str, ...] = ("image",), prompt_length: int = 128, **changes) -> QwenVLConfig:
    """8.29B parameters."""
    return _published(QWEN2_5_VISION, QWEN2_5_7B, 152064, cameras, prompt_length, dict(tied_words=False) | changes)


def qwen3_vl_2b(cameras: tuple[str, ...] = ("image",), prompt_length: int = 128, **changes) -> QwenVLConfig:
    """2.13B parameters; pictures of 224 x 224 pixels unless `image_size` says otherwise."""
    return _published(QWEN3_VISION, QWEN3_2B, 151936, cameras, prompt_length, changes)


def qwen3_vl_4b(cameras: tuple[str, ...] = ("image",), prompt_length: int = 128, **changes) -> QwenVLConfig:
    """4.44B parameters."""
    return _published(QWEN3_VISION, QWEN3_4B, 151936, cameras, prompt_length, changes)


def tiny_qwen_vl(
    like: QwenVLConfig, cameras: tuple[str, ...] = ("image",), vocab_size: int = 257, prompt_length: int = 48, **changes
) -> QwenVLConfig:
    """About 1M parameters for 64x64 images, the same code: patches of 8 pixels, windows of 2x2 tokens."""
    depth = 3
    vision = dataclasses.replace(
        like.vision,
        image_size=(64, 64),
        width=64,
        depth=depth,
        mlp_dim=128,
        num_heads=2,
        patch_size=8,
        out_width=128,
        window_size=32 if like.vision.window_size else 0,
        full_layers=(depth - 1,) if like.vision.full_layers else (),
        position_grid=8 if like.vision.position_grid else 0,
        deepstack_layers=(0, 1) if like.vision.deepstack_layers else (),
    )
    shapes = dict(cameras=cameras, vocab_size=vocab_size, prompt_length=prompt_length, tied_words=like.tied_words)
    small = dict(vision=vision, language=qwen_text.tiny(like.language), camera_embedding=True, unroll=True)
    return QwenVLConfig(**shapes | small | changes)


def with_action_expert(config: QwenVLConfig, state_dim: int, **changes) -> QwenVLConfig:
    """A pi0 on Qwen: an expert of half the language model's width and a quarter of its MLP's, which reads the state."""
    c = config.language
    expert = dataclasses.replace(c, width=c.width // 2, mlp_dim=c.mlp_dim // 4)
    fields = dict(state_dim=state_dim, action_expert=expert, state_token="suffix")
    return dataclasses.replace(config, **fields | changes)


class QwenVL(Language):
    """A `Backbone` that also writes text; its prefix is a `Cache`."""

    def __init__(self, config: QwenVLConfig, rngs: nnx.Rngs):
        width = config.language.width
        super().__init__(config, width)
        self.vision = QwenVision(config.vision, rngs, **self.runs)
        if config.camera_embedding:
            per_camera = 0.02 * jax.random.normal(rngs.params(), (len(config.cameras), width))
            self.camera_embedding = nnx.Param(per_camera, logical_axes=(None, "embed"))
        table = 0.02 * jax.random.normal(rngs.params(), (config.vocab_size, width))
        self.embedding = nnx.Param(table, logical_axes=("vocab", "embed"))
        if not config.tied_words:
            self.words_out = Dense(width, config.vocab_size, rngs, axes=("embed", "vocab"), use_bias=False)
        expert = config.action_expert
        self.suffix_width = width if expert is None else expert.width
        if config.state_token == "suffix":
            self.state_in = Dense(config.state_dim, self.suffix_width, rngs, axes=(None, "embed"))
        if expert is None:
            self.mixture = None
            self.layers = stack(lambda rngs: GemmaBlock(config.language, rngs), config.language.depth, rngs)
            self.norm = RMSNorm(width, axes=("embed",))
        else:
            own = dict(adaptive_norm=config.adaptive_norm, with_text=True)
            self.mixture = Mixture(config.language, expert, rngs, **own, **self.runs)

    @property
    def text_layers(self) -> nnx.Module:
        return self.layers if self.mixture is None else self.mixture.prefix_layers

    @property
    def text_norm(self) -> RMSNorm:
        return self.norm if self.mixture is None else self.mixture.prefix_norm

    def embed(self, tokens: Int[Array, "b n"]) -> Float[Array, "b n d"]:
        return self.embedding[...][tokens].astype(self.config.compute_dtype)

    def logits(self, x: Float[Array, "b n d"]) -> Float[Array, "b n v"]:
        if self.config.tied_words:
            return super().logits(x)
        return self.words_out(x).astype(jnp.float32)

    def prefix(self, observation: Observation) -> Cache:
        parts = self.see_and_read(observation)
        tokens, mask, block = arrange(parts, self.config.reading)
        positions = qwen_text.positions(parts, self.config.vision.token_grid)
        added = _added(parts, len(self.config.vision.deepstack_layers))
        if self.mixture is not None:
            state = None
            if self.config.state_token == "suffix":
                state = self.state_in(observation.state.astype(self.config.compute_dtype))[:, None]
            return self.mixture.prefix(tokens, mask, state, positions=positions, added=added, block=block)
        seen = block_mask(jnp.broadcast_to(block[None], mask.shape), mask)
        outputs = run_layers([self.layers], [Stream(tokens, positions, added=added)], seen, **self.runs)
        return make_cache(outputs, mask, mask, next_position(positions, mask), self.norm)

    def suffix(
        self,
        prefix: Cache,
        tokens: Float[Array, "b n d"],
        *,
        condition: Float[Array, "b d"] | None = None,
        causal: bool = False,
    ) -> Float[Array, "b n d"]:
        """Raises ConfigError for a `condition` without adaptive norms."""
        tokens = tokens.astype(self.config.compute_dtype)
        if self.mixture is not None:
            return self.mixture.suffix(prefix, tokens, condition, causal)
        if condition is not None:
            raise errors.ConfigError("suffix of QwenVL", expected="no condition", found="a condition")
        return self.continue_text(prefix, tokens, causal)

    def features(self, prefix: Cache) -> Float[Array, "b f"]:
        return prefix.features

    def _pictures(self, observation: Observation) -> list[Picture]:
        cameras, dtype = self.config.cameras, jnp.dtype(self.config.compute_dtype)
        # One pass for all cameras; an example's stay neighbours, so that a batch that is split over devices stays put.
        images = jnp.stack([observation.images[name] for name in cameras], axis=1)
        tokens, added = self.vision(images.reshape(-1, *images.shape[2:]), dtype)
        tokens = tokens.reshape(*images.shape[:2], *tokens.shape[1:])
        if self.config.camera_embedding:
            tokens = tokens + self.camera_embedding[...].astype(dtype)[None, :, None]
        if added is None:
            return [Picture(tokens[:, i]) for i in range(len(cameras))]
        added = added.reshape(added.shape[0], *images.shape[:2], *added.shape[2:])
        return [Picture(tokens[:, i], added[:, :, i]) for i in range(len(cameras))]


def _added(parts: Sequence[Part], num_layers: int) -> Float[Array, "k b n d"] | None:
    """What DeepStack adds to all tokens behind each of the first layers: nothing to words."""
    if not num_layers:
        return None
    words = [jnp.zeros((num_layers, *part.tokens.shape), part.tokens.dtype) for part in parts]
    return jnp.concatenate([w if part.added is None else part.added for w, part in zip(words, parts, strict=True)], 2)


def _published(
    vision: QwenVisionConfig,
    language: GemmaConfig,
    vocab_size: int,
    cameras: tuple[str, ...],
    prompt_length: int,
    changes: dict,
) -> QwenVLConfig:
    changes = dict(changes)
    size = changes.pop("image_size", vision.image_size)
    fields = dict(
        cameras=cameras,
        prompt_length=prompt_length,
        vocab_size=vocab_size,
        vision=dataclasses.replace(vision, image_size=size, out_width=language.width),
        language=language,
        reading=dataclasses.replace(READING, before_image=(151652,), after_image=(151653,)),  # <|vision_start|>, ...end
        compute_dtype="bfloat16",
        remat=True,
    )
    return QwenVLConfig(**fields | changes)
