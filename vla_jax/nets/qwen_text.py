"""The language models of Qwen2.5-VL (arXiv 2502.13923) and Qwen3-VL (arXiv 2511.21631): shapes and positions.

Their layers are `nets/gemma.py`'s with SwiGLU and other attention: Qwen2.5 has biases on queries, keys and values,
Qwen3 norms on queries and keys. Positions have three axes (multimodal rotary positions, arXiv 2409.12191, figure 3):

    token    Look   at   [ picture of 2x3 tokens ]   and   act
    time       0     1     2  2  2    2  2  2         5     6
    row        0     1     2  2  2    3  3  3         5     6      a picture takes as many as its longer side
    column     0     1     2  3  4    2  3  4         5     6
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from vla_jax.nets.attention import Rotary
from vla_jax.nets.gemma import GemmaConfig
from vla_jax.nets.reading import Part

_QWEN2_5 = dict(
    head_dim=128, activation="silu", qkv_bias=True, rotary=Rotary(max_wavelength=1e6, sections=(16, 24, 24))
)
_QWEN3 = dict(
    head_dim=128,
    activation="silu",
    qk_norm=True,
    rotary=Rotary(max_wavelength=5e6, sections=(24, 20, 20), interleaved=True),
)
QWEN2_5_3B = GemmaConfig(width=2048, depth=36, mlp_dim=11008, num_heads=16, num_kv_heads=2, **_QWEN2_5)
QWEN2_5_7B = GemmaConfig(width=3584, depth=28, mlp_dim=18944, num_heads=28, num_kv_heads=4, **_QWEN2_5)
QWEN3_2B = GemmaConfig(width=2048, depth=28, mlp_dim=6144, num_heads=16, num_kv_heads=8, **_QWEN3)
QWEN3_4B = GemmaConfig(width=2560, depth=36, mlp_dim=9728, num_heads=32, num_kv_heads=8, **_QWEN3)


def tiny(language: GemmaConfig) -> GemmaConfig:
    """Under 1M parameters of the same kind of layer, rotary sections in the same proportion."""
    sections = tuple(pairs // 4 for pairs in language.rotary.sections)
    small = dict(width=128, depth=3, mlp_dim=256, num_heads=4, num_kv_heads=2, head_dim=32)
    return dataclasses.replace(language, **small, rotary=dataclasses.replace(language.rotary, sections=sections))


def positions(parts: Sequence[Part], grid: tuple[int, int]) -> Int[Array, "b n 3"]:
    """Time, row and column of all tokens, pictures of `grid` rows and columns; what is masked takes no position."""
    start, found = jnp.zeros(parts[0].mask.shape[0], jnp.int32), []
    for part in parts:
        if part.is_picture:
            inside = jnp.asarray(grid_positions(grid))[None]
            length = jnp.where(part.mask.any(1), max(grid), 0)
        else:
            inside = jnp.cumsum(part.mask, axis=1)[..., None] - 1
            length = part.mask.sum(1)
        found.append(jnp.broadcast_to(start[:, None, None] + inside, (*part.mask.shape, 3)))
        start = start + length
    return jnp.concatenate(found, axis=1)


def grid_positions(grid: tuple[int, int]) -> Int[np.ndarray, "n 3"]:
    """Of a picture's tokens, row by row, from the position of its first."""
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    return np.stack([np.zeros_like(rows), rows, columns], axis=1)
