"""Pictures and words in, words out: what PaliGemma, Gemma 3 and the pi0 family have in common (arXiv 2407.07726).

    images -- SigLIP -- dense --+
    prompt -- embedding --------+-- layers, seen as `reading` says --> keys, values of every layer, last output
    state, as words ------------+                                         |
                                     target -- embedding -- layers, causal --> norm -- embedding, transposed --> logits

The prefix is encoded once; text is scored or generated against its keys and values by the same layers.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from vla_jax.core import errors
from vla_jax.core.types import Observation
from vla_jax.nets.attention import Implementation, Segment, block_mask
from vla_jax.nets.linear import Dense, RMSNorm
from vla_jax.nets.mixture import Cache, Stream, run_layers
from vla_jax.nets.reading import Part, Picture, Reading, average_squares
from vla_jax.nets.siglip import SIGLIP_TINY, SO400M_14, Siglip, SiglipConfig
from vla_jax.nets.stack import Remat
from vla_jax.nets.state_text import StateText


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How text is generated."""

    max_tokens: int
    end_token: int = 1  # PaliGemma's end of sequence
    temperature: float = 0.0  # 0 takes the likeliest token

    def __post_init__(self):
        if self.max_tokens < 1 or self.temperature < 0:
            raise errors.ConfigError("Decoding", expected="max_tokens >= 1 and temperature >= 0", found=self)


class Generated(NamedTuple):
    """Token ids; True up to the end token and with it, id 0 behind."""

    tokens: Int[Array, "b n"]
    mask: Bool[Array, "b n"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionLanguageConfig:
    """What every network of this base needs to know; each adds the shapes of its own layers."""

    cameras: tuple[str, ...]  # names in `Observation.images`, in token order
    vocab_size: int
    prompt_length: int
    vision: SiglipConfig | None  # None: a network of words only, without cameras
    reading: Reading = Reading()
    state_dim: int = 0  # of the robot; a model of text and images has none
    state_text: StateText | None = None  # how the state is written behind the prompt; None leaves it out
    camera_embedding: bool = False  # a learned vector per camera, which small networks miss more than large ones
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; parameters stay float32
    unroll: bool = False  # write layers out: faster for a few small ones on CPU
    remat: Remat = False  # recompute activations in the gradient: all, or those a named policy does not keep
    attention: Implementation = "fold"

    def __post_init__(self):
        place = type(self).__name__
        if len(set(self.cameras)) != len(self.cameras):
            raise errors.ConfigError(f"{place}.cameras", expected="distinct names", found=self.cameras)
        if bool(self.cameras) != (self.vision is not None):
            raise errors.ConfigError(
                place,
                expected="cameras with a vision tower, or neither",
                found=f"cameras={self.cameras}, vision={self.vision}",
            )
        if min(self.vocab_size, self.prompt_length) < 1 or self.state_dim < (self.state_text is not None):
            raise errors.ConfigError(
                place,
                expected="positive sizes; a state_dim of 1 or more with state_text",
                found=f"vocab_size={self.vocab_size}, prompt_length={self.prompt_length}, state_dim={self.state_dim}",
            )

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels. Raises ConfigError for a network of words only."""
        if self.vision is None:
            raise errors.ConfigError(
                f"{type(self).__name__}.image_size", expected="a vision tower", found="vision=None"
            )
        return (self.vision.image_size, self.vision.image_size)


# Fields that the networks with PaliGemma's published shapes, and those for CPU minutes at 64x64 pixels, agree in.
PUBLISHED = dict(vocab_size=257152, vision=SO400M_14, compute_dtype="bfloat16", remat=True)
SMALL = dict(vision=SIGLIP_TINY, camera_embedding=True, unroll=True)


class Language(nnx.Module):
    """Reads and writes words behind a prefix that a subclass makes of pictures and a prompt.

    A subclass brings `embedding`, and what is abstract here.
    """

    def __init__(self, config: VisionLanguageConfig, width: int):
        self.config, self.feature_dim = config, width

    @property
    def runs(self) -> dict:
        """How layers run, not what they compute."""
        return dict(unroll=self.config.unroll, remat=self.config.remat, attention=self.config.attention)

    @property
    @abc.abstractmethod
    def text_layers(self) -> nnx.Module:
        """The stack of `GemmaBlock` that reads and writes words."""

    @property
    @abc.abstractmethod
    def text_norm(self) -> Callable[[Array], Array]:
        """The norm between the last layer and the logits."""

    def see_and_read(self, observation: Observation) -> list[Part]:
        """The images with the words around them, the prompt and the state's words."""
        self._check(observation)
        reading, everywhere = self.config.reading, jnp.ones(observation.prompt.shape[0], bool)
        parts = [self._fixed(reading.opening, everywhere)]
        for name, picture in zip(self.config.cameras, self._pictures(observation), strict=True):
            is_there = observation.image_mask[name]
            mask = jnp.repeat(is_there[:, None], picture.tokens.shape[1], axis=1)
            part = Part(picture.tokens, mask, is_picture=True, added=picture.added)
            parts += [self._fixed(reading.before_image, is_there), part, self._fixed(reading.after_image, is_there)]
        prompt, prompt_mask = self.words(observation)
        return [part for part in [*parts, Part(self.embed(prompt), prompt_mask)] if part.mask.shape[1]]

    def words(self, observation: Observation) -> tuple[Int[Array, "b n"], Bool[Array, "b n"]]:
        """Ids and mask of the prompt and, where it is written behind it, the state."""
        prompt, prompt_mask = observation.prompt, observation.prompt_mask
        if self.config.state_text is None:
            return prompt, prompt_mask
        words, words_mask = self.config.state_text.tokens(observation.state)
        return jnp.concatenate([prompt, words], axis=1), jnp.concatenate([prompt_mask, words_mask], axis=1)

    def embed(self, tokens: Int[Array, "b n"]) -> Float[Array, "b n d"]:
        return self.embedding[...][tokens].astype(self.config.compute_dtype) * self.feature_dim**0.5

    def logits(self, x: Float[Array, "b n d"]) -> Float[Array, "b n v"]:
        """The output layer is the embedding itself."""
        table = self.embedding[...].astype(x.dtype)
        return jnp.einsum("bnd,vd->bnv", x, table, preferred_element_type=jnp.float32)

    def token_logits(self, prefix: Cache, tokens: Int[Array, "b n"]) -> Float[Array, "b n v"]:
        """Logits of every token given the prefix and the tokens before it, teacher-forced."""
        decoded = self.continue_text(prefix, self.embed(tokens[:, :-1]))
        return self.logits(jnp.concatenate([prefix.last[:, None], decoded], axis=1))

    def continue_text(self, prefix: Cache, x: Float[Array, "b n d"], causal: bool = True) -> Float[Array, "b n d"]:
        """Outputs at `n` embedded tokens behind the prefix; each sees all of it, itself and the earlier ones."""
        batch, n, _ = x.shape
        block = jnp.arange(n) if causal else jnp.zeros(n, jnp.int32)
        seen = block_mask(jnp.broadcast_to(block, (batch, n)), jnp.ones((batch, n), bool))
        positions = prefix.length[:, None] + jnp.arange(n)[None]
        return self._run(Stream(x, positions), seen, [prefix.segment(n)])[0]

    def generate(self, key: Key[Array, ""], prefix: Cache, decoding: Decoding) -> Generated:
        """Token by token in one loop that ends when every row has its end token; each token is decoded once.

        Rows do not depend on each other. Positions go on from the prefix without a gap, as in training.
        """
        batch, n = prefix.last.shape[0], decoding.max_tokens
        empty = jnp.zeros((*prefix.keys.shape[:2], n, *prefix.keys.shape[3:]), prefix.keys.dtype)
        sees_itself = jnp.ones((batch, 1, 1), bool)

        def step(state: _Loop) -> _Loop:
            slot, cache = state.slot, state.cache
            drawn = _choose(jax.random.fold_in(key, slot), state.logits, decoding.temperature)
            token = jnp.where(state.running, drawn, 0)
            earlier = jnp.broadcast_to(jnp.arange(n) < slot, (batch, 1, n))
            stream = Stream(self.embed(token[:, None]), (prefix.length + slot)[:, None])
            written = Segment(*cache, earlier, prefix.length[:, None] + jnp.arange(n)[None])
            decoded, keys, values = self._run(stream, sees_itself, [prefix.segment(1), written])
            new = zip(cache, (keys, values), strict=True)
            return _Loop(
                slot + 1,
                self.logits(decoded)[:, 0],
                state.tokens.at[:, slot].set(token),
                state.mask.at[:, slot].set(state.running),
                state.running & (token != decoding.end_token),
                tuple(jax.lax.dynamic_update_slice_in_dim(old, part, slot, axis=2) for old, part in new),
            )

        start = _Loop(
            jnp.zeros((), jnp.int32),
            self.logits(prefix.last[:, None])[:, 0],
            jnp.zeros((batch, n), jnp.int32),
            jnp.zeros((batch, n), bool),
            jnp.ones(batch, bool),
            (empty, empty),
        )
        end = jax.lax.while_loop(lambda state: (state.slot < n) & state.running.any(), step, start)
        return Generated(end.tokens, end.mask)

    def _run(self, stream: Stream, seen: Bool[Array, "b n n"], cached: Sequence[Segment]):
        outputs = run_layers([self.text_layers], [stream], seen, cached, **self.runs)
        return self.text_norm(outputs.tokens[0]), outputs.keys, outputs.values

    def _fixed(self, ids: tuple[int, ...], is_there: Bool[Array, "b"]) -> Part:
        """The same words in every example that has them."""
        shape = (is_there.shape[0], len(ids))
        tokens = self.embed(jnp.broadcast_to(jnp.array(ids, jnp.int32)[None], shape))
        return Part(tokens, jnp.broadcast_to(is_there[:, None], shape))

    @abc.abstractmethod
    def _pictures(self, observation: Observation) -> list[Picture]:
        """One per camera."""

    def _check(self, observation: Observation) -> None:
        size = self.config.image_size if self.config.cameras else None
        for name in self.config.cameras:
            found = observation.images[name].shape[-3:-1] if name in observation.images else "no such camera"
            if found != size:
                raise errors.ConfigError(
                    f"camera {name!r} of the observation",
                    expected=f"images of {size[0]}x{size[1]}",
                    found=f"{found}; cameras: {', '.join(observation.images)}",
                    fix="name the cameras of the data in cameras, and resize them to vision.image_size",
                )


class VisionLanguage(Language):
    """Base of `nets/paligemma.py` and `nets/vla_transformer.py`, which bring the layers and what else they need."""

    def __init__(self, config: VisionLanguageConfig, width: int, rngs: nnx.Rngs):
        super().__init__(config, width)
        vision, reading = config.vision, config.reading
        if vision is not None:
            self.vision = Siglip(vision, rngs, **self.runs)
            self.vision_norm = RMSNorm(vision.width) if reading.pooled_norm else None
            bias = not reading.pooled_norm
            self.vision_out = Dense(vision.width, width, rngs, axes=(None, "embed"), use_bias=bias)
        if config.camera_embedding:
            per_camera = 0.02 * jax.random.normal(rngs.params(), (len(config.cameras), width))
            self.camera_embedding = nnx.Param(per_camera, logical_axes=(None, "embed"))
        # Scaled by sqrt(width) when read, as Gemma does, so rows start with norm 1.
        embedding = jax.random.normal(rngs.params(), (config.vocab_size, width)) * width**-0.5
        self.embedding = nnx.Param(embedding, logical_axes=("vocab", "embed"))

    def _pictures(self, observation: Observation) -> list[Picture]:
        if not self.config.cameras:
            return []
        cameras, dtype = self.config.cameras, jnp.dtype(self.config.compute_dtype)
        # One pass for all cameras: they share the tower. An example's cameras stay neighbours, so that a batch that is
        # split over devices stays where it is.
        images = jnp.stack([observation.images[name] for name in cameras], axis=1)
        seen = average_squares(self.vision(images.reshape(-1, *images.shape[2:]), dtype), self.config.reading.pool)
        seen = self.vision_out(seen if self.vision_norm is None else self.vision_norm(seen))
        tokens = list(jnp.moveaxis(seen.reshape(*images.shape[:2], *seen.shape[1:]), 1, 0))
        if self.config.camera_embedding:
            tokens = [x + self.camera_embedding[...][i].astype(dtype)[None, None] for i, x in enumerate(tokens)]
        return [Picture(x) for x in tokens]


class _Loop(NamedTuple):
    """The state of `generate`."""

    slot: Int[Array, ""]
    logits: Float[Array, "b v"]  # of the token that goes into `slot`
    tokens: Int[Array, "b n"]
    mask: Bool[Array, "b n"]
    running: Bool[Array, "b"]
    cache: tuple[Float[Array, "layers b n g k"], Float[Array, "layers b n g k"]]


def _choose(key: Key[Array, ""], logits: Float[Array, "b v"], temperature: float) -> Int[Array, "b"]:
    if temperature == 0:
        return logits.argmax(-1).astype(jnp.int32)
    return jax.random.categorical(key, logits / temperature).astype(jnp.int32)
