"""Observations and the smallest backbones, shared by the tests of nets and policies."""

import jax
import jax.numpy as jnp
import optax

from vla_jax.core import functional
from vla_jax.core.types import Observation
from vla_jax.nets.conv_film import ConvFilm, ConvFilmConfig
from vla_jax.nets.gemma import GemmaConfig
from vla_jax.nets.siglip import SiglipConfig
from vla_jax.nets.vla_transformer import VlaTransformer, VlaTransformerConfig

CAMERAS, STATE_DIM, VOCAB, PROMPT, SIZE = ("front", "wrist"), 3, 11, 6, 16


def observation(key, batch_size=2):
    image_keys, state_key, prompt_key, length_key = jax.random.split(key, 4)
    shape = (batch_size, SIZE, SIZE, 3)
    lengths = jax.random.randint(length_key, (batch_size,), 1, PROMPT + 1)
    return Observation(
        images={
            name: jax.random.randint(k, shape, 0, 256).astype(jnp.uint8)
            for name, k in zip(CAMERAS, jax.random.split(image_keys, len(CAMERAS)), strict=True)
        },
        image_mask={name: jnp.ones(batch_size, bool) for name in CAMERAS},
        state=jax.random.normal(state_key, (batch_size, STATE_DIM)),
        prompt=jax.random.randint(prompt_key, (batch_size, PROMPT), 0, VOCAB),
        prompt_mask=jnp.arange(PROMPT)[None] < lengths[:, None],
    )


def conv_film_config(num_suffix_tokens, **changes):
    sizes = dict(image_size=(SIZE, SIZE), channels=8, hidden=16 * num_suffix_tokens, feature_dim=16, suffix_width=8)
    return ConvFilmConfig(CAMERAS, STATE_DIM, VOCAB, PROMPT, num_suffix_tokens, **sizes | changes)


def conv_film(num_suffix_tokens, adaptive_norm, rngs):
    return ConvFilm(conv_film_config(num_suffix_tokens, adaptive_norm=adaptive_norm), rngs)


def transformer_config(**changes):
    sizes = dict(mlp_dim=24, depth=2, num_heads=4, num_kv_heads=2, head_dim=8)
    vision = SiglipConfig(16, depth=1, mlp_dim=16, num_heads=2, patch_size=8, image_size=SIZE)
    experts = dict(prefix_expert=GemmaConfig(16, **sizes), suffix_expert=GemmaConfig(12, **sizes))
    fields = dict(cameras=CAMERAS, state_dim=STATE_DIM, vocab_size=VOCAB, prompt_length=PROMPT, vision=vision)
    return VlaTransformerConfig(**fields | experts | changes)


def transformer(num_suffix_tokens, adaptive_norm, rngs):
    return VlaTransformer(transformer_config(adaptive_norm=adaptive_norm), rngs)


def init(constructor, key):
    """`functional.init`, compiled."""
    net, _ = functional.describe(constructor)
    return net, jax.jit(lambda key: functional.init(constructor, key)[1])(key)


BACKBONES = [conv_film, transformer]


def train(loss, params, num_steps, optimizer):
    """`params` after gradient steps on `loss(params, key)` in one scan, and the losses on the way."""

    def train_step(carry, key):
        params, opt_state = carry
        value, grads = jax.value_and_grad(loss)(params, key)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), value

    keys = jax.random.split(jax.random.key(1), num_steps)
    (params, _), losses = jax.jit(lambda p: jax.lax.scan(train_step, (p, optimizer.init(p)), keys))(params)
    return params, losses
