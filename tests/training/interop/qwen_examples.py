"""The networks of `tests/fixtures/interop/qwen2_5_vl` and `qwen3_vl`, at their shapes."""

import dataclasses

import jax
import jax.numpy as jnp

from tests.training.interop import examples
from vla_jax.core import functional
from vla_jax.core.types import Observation
from vla_jax.nets.attention import Rotary
from vla_jax.nets.gemma import GemmaConfig
from vla_jax.nets.qwen_vision import QwenVisionConfig
from vla_jax.nets.qwen_vl import READING, QwenVL, QwenVLConfig
from vla_jax.training.interop import layouts, transfer
from vla_jax.training.interop.safetensors import Safetensors

NAMES = ("qwen2_5_vl", "qwen3_vl")
CAMERAS = ("left", "right")
_VISION = dict(image_size=(24, 40), width=16, depth=3, mlp_dim=24, num_heads=2, patch_size=4, out_width=24)
_LANGUAGE = dict(width=24, activation="silu")
_READING = dataclasses.replace(READING, opening=(7, 9), before_image=(60,), after_image=(62,))
_READ = dict(cameras=CAMERAS, vocab_size=64, prompt_length=5, reading=_READING)


def config(name: str, **changes) -> QwenVLConfig:
    """3x5 tokens per picture: the windows of 2x2 tokens at its edges are cut."""
    if name == "qwen2_5_vl":
        vision = QwenVisionConfig(generation="qwen2.5", window_size=16, full_layers=(1,), **_VISION)
        heads = dict(num_heads=2, num_kv_heads=1, head_dim=12, qkv_bias=True, rotary=Rotary(50.0, (1, 2, 3)))
        language = GemmaConfig(depth=3, mlp_dim=32, **heads, **_LANGUAGE)
    else:
        vision = QwenVisionConfig(generation="qwen3", position_grid=5, deepstack_layers=(0, 2), **_VISION)
        rotary = Rotary(50.0, (4, 2, 2), interleaved=True)
        heads = dict(num_heads=4, num_kv_heads=2, head_dim=16, qk_norm=True, rotary=rotary)
        language = GemmaConfig(depth=4, mlp_dim=24, **heads, **_LANGUAGE)
    return QwenVLConfig(**_READ | dict(vision=vision, language=language, tied_words=name == "qwen3_vl") | changes)


def imported(name: str):
    """The network, its parameters and the report of their import."""
    net, template = functional.describe(lambda rngs: QwenVL(config(name), rngs))
    layout = layouts.layout(name, config(name), prefix="")
    return net, *transfer.import_params(Safetensors(examples.FIXTURES / name), layout, template)


def arrays(name: str) -> dict[str, jax.Array]:
    return jax.tree.map(jnp.asarray, examples.inputs("qwen_io.npz", name))


def observation(arrays: dict[str, jax.Array]) -> Observation:
    return Observation(
        images={camera: arrays["images"][:, i] for i, camera in enumerate(CAMERAS)},
        image_mask={camera: arrays["image_mask"][:, i] for i, camera in enumerate(CAMERAS)},
        state=jnp.zeros((arrays["prompt"].shape[0], 0)),
        prompt=arrays["prompt"],
        prompt_mask=arrays["prompt_mask"],
    )
