"""Gemma 3 (arXiv 2503.19786): its shapes, and how it reads pictures.

    layers      5 local, 1 global, 5 local ...; a local one sees a window, positions turn at wavelengths up to 10 000
                tokens; a global one sees everything, at wavelengths up to 1 000 000 tokens, eight times as long in the
                models of 128 000 tokens
    pictures    SigLIP at 896 pixels, 64 x 64 patches averaged to 16 x 16 tokens, RMS norm, projection

The layers are `nets/gemma.py`'s. `gemma3_4b` and `gemma3_1b` (words only) make a `PaliGemma`, one transformer that
reads and writes; `gemma3_policy` a `VlaTransformer`, the same with an action expert beside it, as pi0.6 has.
"""

import dataclasses

from vla_jax.nets.attention import Rotary
from vla_jax.nets.gemma import GemmaConfig, LocalLayers
from vla_jax.nets.paligemma import PaliGemmaConfig
from vla_jax.nets.reading import Reading
from vla_jax.nets.siglip import SO400M_14, SiglipConfig
from vla_jax.nets.vla_transformer import VlaTransformerConfig

# Token ids of its tokenizer: 2 begins a text, 108 is an empty line, 255999 and 256000 stand around a picture.
# Prompts come without the begin token, which stands before the pictures.
READING = Reading(
    pool=4, pooled_norm=True, opening=(2,), before_image=(108, 255999), after_image=(256000, 108), causal=True
)
SO400M_14_896 = dataclasses.replace(SO400M_14, image_size=896)
_FAMILY = dict(head_dim=256, qk_norm=True, post_norm=True)
GEMMA3_4B = GemmaConfig(
    width=2560,
    depth=34,
    mlp_dim=10240,
    num_heads=8,
    num_kv_heads=4,
    rotary=Rotary(1e6, stretch=8.0),
    local=LocalLayers(window=1024),
    **_FAMILY,
)
GEMMA3_1B = GemmaConfig(
    width=1152,
    depth=26,
    mlp_dim=6912,
    num_heads=4,
    num_kv_heads=1,
    rotary=Rotary(1e6),
    local=LocalLayers(window=512),
    **_FAMILY,
)
# With adaptive norms 0.86B, which is what is known of pi0.6's; the widths are those of pi0's expert.
ACTION_EXPERT = dataclasses.replace(GEMMA3_4B, width=1024, mlp_dim=4096)
GEMMA3_TINY = GemmaConfig(
    width=128,
    depth=3,
    mlp_dim=384,
    num_heads=4,
    num_kv_heads=1,
    rotary=Rotary(1e6, stretch=8.0),
    local=LocalLayers(window=16, period=2),
    **_FAMILY | dict(head_dim=32),
)
_TINY_VISION = SiglipConfig(128, depth=1, mlp_dim=256, num_heads=2, patch_size=8, image_size=64)
_PUBLISHED = dict(vocab_size=262208, vision=SO400M_14_896, reading=READING, compute_dtype="bfloat16", remat=True)


def gemma3_4b(cameras: tuple[str, ...] = ("image",), prompt_length: int = 128, **changes) -> PaliGemmaConfig:
    """The published shapes: 4.3B parameters."""
    return PaliGemmaConfig(
        **_PUBLISHED | dict(cameras=cameras, prompt_length=prompt_length, language=GEMMA3_4B) | changes
    )


def gemma3_1b(prompt_length: int = 512, **changes) -> PaliGemmaConfig:
    """The published shapes of the smallest, which reads no pictures: 1.0B parameters. Prompts have the begin token."""
    words = dict(cameras=(), vision=None, reading=Reading(causal=True), vocab_size=262144)
    return PaliGemmaConfig(**_PUBLISHED | words | dict(prompt_length=prompt_length, language=GEMMA3_1B) | changes)


def gemma3_policy(
    cameras: tuple[str, ...], state_dim: int = 32, prompt_length: int = 200, **changes
) -> VlaTransformerConfig:
    """Gemma 3 4B with an action expert that attends with it layer by layer, the state in the prompt (pi0.5).

    Actions see the last 1024 tokens of the prefix in local layers, all of it in global ones.
    """
    read = dict(cameras=cameras, state_dim=state_dim, prompt_length=prompt_length)
    experts = dict(prefix_expert=GEMMA3_4B, suffix_expert=ACTION_EXPERT, state_token="text", adaptive_norm=True)
    return VlaTransformerConfig(**_PUBLISHED | read | experts | changes)


def tiny_gemma3(
    cameras: tuple[str, ...] = ("image",), vocab_size: int = 257, prompt_length: int = 48, **changes
) -> PaliGemmaConfig:
    """Under 1M parameters for 64x64 images, 4 tokens per camera, the same code."""
    shapes = dict(cameras=cameras, vocab_size=vocab_size, prompt_length=prompt_length, unroll=True)
    reading = dataclasses.replace(READING, opening=(), before_image=(), after_image=())
    return PaliGemmaConfig(**shapes | dict(vision=_TINY_VISION, reading=reading, language=GEMMA3_TINY) | changes)
