"""Qwen2.5-VL (arXiv 2502.13923) and Qwen3-VL (arXiv 2511.21631), as language models and under an action expert.

    prefix [ opening, <start> picture <end>, ..., prompt, (state) ]               every token sees the earlier ones
    suffix                                       [ (state), target or actions ]   sees the prefix, and itself as asked

As a language model it scores and generates text with the layers that read the prefix, and decoders of actions may use
those too, as `nets/paligemma.py` has it. With an `action_expert` the suffix has weights of its own beside them, as in
pi0 (`nets/mixture.py`); the words stay.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vla_jax.core import errors
from vla_jax.core.types import Observation
from vla_jax.nets import qwen_text
from vla_jax.nets.attention import block_mask
from vla_jax.nets.gemma import GemmaBlock, GemmaConfig
from vla_jax.nets.language import Language, VisionLanguageConfig
from vla_jax.nets.linear import Dense, RMSNorm
from vla_jax.nets.mixture import Cache, Mixture, Stream, make_cache, next_position, run_layers
from vla_jax.nets.qwen_text import QWEN2_5_3B, QWEN2_5_7B, QWEN3_2B, QWEN3_4B, Part
from vla_jax.nets.qwen_vision import QWEN2_5_VISION, QWEN3_VISION, QwenVision, QwenVisionConfig, Seen
from vla_jax.nets.stack import stack


@dataclasses.dataclass(frozen=True, kw_only=True)
class QwenVLConfig(VisionLanguageConfig):
    vision: QwenVisionConfig
    language: GemmaConfig
    tied_words: bool = True  # whether the output layer is the embedding
    opening: tuple[int, ...] = ()  # token ids ahead of the first picture: system prompt, start of the user's turn
    before_image: tuple[int, ...] = ()  # token ids around each picture
    after_image: tuple[int, ...] = ()
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
        ids = (*self.opening, *self.before_image, *self.after_image)
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise errors.ConfigError("QwenVLConfig", expected=f"token ids below {self.vocab_size}", found=ids)

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
        parts, added = self.see_and_read(observation)
        tokens, mask = (jnp.concatenate([part[i] for part in parts], axis=1) for i in range(2))
        positions = qwen_text.positions(parts)
        if self.mixture is not None:
            state = None
            if self.config.state_token == "suffix":
                state = self.state_in(observation.state.astype(self.config.compute_dtype))[:, None]
            return self.mixture.prefix(tokens, mask, state, positions=positions, added=added, causal=True)
        order = jnp.broadcast_to(jnp.arange(mask.shape[1])[None], mask.shape)
        stream = Stream(tokens, positions, added=added)
        outputs = run_layers([self.layers], [stream], block_mask(order, mask), **self.runs)
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

    def see_and_read(self, observation: Observation) -> tuple[list[Part], Float[Array, "k b n d"] | None]:
        """The prefix in parts, and what DeepStack adds to its tokens behind each of the first k layers."""
        self._check(observation)
        batch = observation.prompt.shape[0]
        everywhere = jnp.ones(batch, bool)
        parts, seen = [self._fixed(self.config.opening, everywhere)], self._see(observation)
        added = []
        for name, picture in zip(self.config.cameras, seen, strict=True):
            present = observation.image_mask[name]
            mask = jnp.repeat(present[:, None], picture.tokens.shape[1], axis=1)
            parts.append(self._fixed(self.config.before_image, present))
            parts.append(Part(picture.tokens, mask, self.config.vision.token_grid))
            parts.append(self._fixed(self.config.after_image, present))
            added.append((len(parts) - 2, picture.added))
        prompt, prompt_mask = self.words(observation)
        parts.append(Part(self.embed(prompt), prompt_mask))
        if seen[0].added is None:
            return parts, None
        k = seen[0].added.shape[0]
        by_part = [jnp.zeros((k, *part.tokens.shape), part.tokens.dtype) for part in parts]
        for index, features in added:
            by_part[index] = features
        return parts, jnp.concatenate(by_part, axis=2)

    def _fixed(self, ids: tuple[int, ...], present: Bool[Array, "b"]) -> Part:
        """The same words in every example that has them."""
        tokens = jnp.broadcast_to(jnp.asarray(ids, jnp.int32)[None], (present.shape[0], len(ids)))
        return Part(self.embed(tokens), jnp.repeat(present[:, None], len(ids), axis=1))

    def _see(self, observation: Observation) -> list[Seen]:
        """One entry per camera."""
        cameras, dtype = self.config.cameras, jnp.dtype(self.config.compute_dtype)
        # One pass for all cameras; an example's stay neighbours, so that a batch that is split over devices stays put.
        images = jnp.stack([observation.images[name] for name in cameras], axis=1)
        tokens, added = self.vision(images.reshape(-1, *images.shape[2:]), dtype)
        tokens = tokens.reshape(*images.shape[:2], *tokens.shape[1:])
        if self.config.camera_embedding:
            tokens = tokens + self.camera_embedding[...].astype(dtype)[None, :, None]
        if added is not None:
            added = added.reshape(added.shape[0], *images.shape[:2], *added.shape[2:])
        return [Seen(tokens[:, i], None if added is None else added[:, :, i]) for i in range(len(cameras))]

    def _check(self, observation: Observation) -> None:
        size = self.config.vision.image_size
        for name in self.config.cameras:
            found = observation.images[name].shape[-3:-1] if name in observation.images else "no such camera"
            if found != size:
                raise errors.ConfigError(
                    f"camera {name!r} of the observation",
                    expected=f"images of {size[0]}x{size[1]}",
                    found=f"{found}; cameras: {', '.join(observation.images)}",
                    fix="name the cameras of the data in cameras, and resize them to vision.image_size",
                )


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
        before_image=(151652,),  # <|vision_start|>
        after_image=(151653,),
        compute_dtype="bfloat16",
        remat=True,
    )
    return QwenVLConfig(**fields | changes)
