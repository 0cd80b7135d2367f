"""Attention over segments of keys, rotary positions and the block mask of prefix and suffix.

Letters: b batch, n queries, m keys, h query heads, g key-value heads, d head dim.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vla_jax.core import errors, placement

Implementation = Literal["fold", "xla", "cudnn", "flash"]
_MASKED = -1e30  # finite: a row without any key gives a mean, never nan
_CACHE_ENTRIES = 2**21  # of logits, 8 MB: a CPU core keeps fewer near it


class Segment(NamedTuple):
    """Keys and values that were made together, and who may look at them."""

    keys: Float[Array, "b m g d"]
    values: Float[Array, "b m g d"]
    mask: Bool[Array, "b n m"]  # True: the query sees the key
    positions: Int[Array, "b m"] | None = None  # of the keys, where layers see a window of them


def attend(
    queries: Float[Array, "b n h d"], segments: Sequence[Segment], implementation: Implementation = "fold"
) -> Float[Array, "b n h d"]:
    """Softmax attention of grouped query heads over all segments together.

    "fold" puts the query heads that share a key-value head into the rows of one matrix product (measured on two CPU
    cores, 538 tokens, 8 heads on 1: forward 16 ms where the einsum over heads took 114), and never joins the segments,
    so a cache shared by many samples is not copied under `vmap`. On a CPU, where the logits of a batch are too many for
    its caches, it takes one example after another and computes the weights again in the gradient (one core, batch 8:
    forward 124 to 19 ms, with gradient 456 to 189 ms); that has no forward-mode derivative. "xla" and "cudnn" are
    `jax.nn.dot_product_attention`; cudnn, flash attention, needs an NVIDIA GPU and half precision. "flash" is cudnn
    where it can run and "fold" elsewhere, so that a recipe trained on a GPU acts on a laptop.

    Raises ConfigError for cudnn where it cannot run.
    """
    implementation = _available(implementation, queries.dtype)
    if implementation != "fold":
        keys, values, mask = _joined(segments)
        return jax.nn.dot_product_attention(queries, keys, values, mask=mask[:, None], implementation=implementation)
    b, n, h, d = queries.shape
    g = segments[0].keys.shape[2]
    rows = (queries * d**-0.5).reshape(b, n, g, h // g, d).transpose(0, 2, 3, 1, 4).reshape(b, g, h // g * n, d)
    num_keys = sum(segment.keys.shape[1] for segment in segments)
    if b > 1 and b * h * n * num_keys > _CACHE_ENTRIES and placement.on_one_cpu():
        out = one_by_one(rows, *_joined(segments))
    else:
        out = _fold(rows, segments, n)
    return out.reshape(b, g, h // g, n, d).transpose(0, 3, 1, 2, 4).reshape(b, n, h, d)


def _joined(segments: Sequence[Segment]) -> tuple[Array, Array, Array]:
    keys, values = (jnp.concatenate(parts, 1) for parts in zip(*[s[:2] for s in segments], strict=True))
    return keys, values, jnp.concatenate([segment.mask for segment in segments], axis=-1)


def _fold(rows: Float[Array, "b g q d"], segments: Sequence[Segment], n: int) -> Float[Array, "b g q d"]:
    logits = [_masked_logits(rows, segment, n) for segment in segments]
    weights = jax.nn.softmax(jnp.concatenate(logits, axis=-1), axis=-1).astype(rows.dtype)
    out, start = 0.0, 0
    for segment in segments:
        m = segment.keys.shape[1]
        out = out + jnp.einsum("bgqm,bmgd->bgqd", weights[..., start : start + m], segment.values)
        start += m
    return out


def _available(implementation: Implementation, dtype: jnp.dtype) -> Implementation:
    has_cudnn = jax.default_backend() == "gpu" and dtype in (jnp.bfloat16, jnp.float16)
    if implementation == "flash":
        return "cudnn" if has_cudnn else "fold"
    if implementation == "cudnn" and not has_cudnn:
        raise errors.ConfigError(
            "attention='cudnn' cannot run here",
            expected="an NVIDIA GPU and bfloat16 or float16 activations",
            found=f"backend {jax.default_backend()}, {dtype} activations",
            fix="set attention='flash', which is 'fold' where cuDNN is missing, and compute_dtype='bfloat16'",
        )
    return implementation


def _masked_logits(rows: Float[Array, "b g q d"], segment: Segment, n: int) -> Float[Array, "b g q m"]:
    logits = jnp.einsum("bgqd,bmgd->bgqm", rows, segment.keys, preferred_element_type=jnp.float32)
    b, g, q, m = logits.shape
    by_head = logits.reshape(b, g, q // n, n, m)
    return jnp.where(segment.mask[:, None, None], by_head, _MASKED).reshape(b, g, q, m)


@jax.custom_vjp
def one_by_one(
    rows: Float[Array, "b g q d"],
    keys: Float[Array, "b m g d"],
    values: Float[Array, "b m g d"],
    mask: Bool[Array, "b n m"],
) -> Float[Array, "b g q d"]:
    """Attention of scaled rows, `q` a multiple of the `n` queries, with the logits of one example in memory at a time.

    The gradient keeps maxima and sums of the rows and computes the weights again, as flash attention does
    (arXiv 2205.14135, algorithm 4).
    """
    return _one_by_one_forward(rows, keys, values, mask)[0]


def _one_by_one_forward(rows, keys, values, mask):
    def one(example):
        rows, keys, values, mask = example
        logits = _logits(rows, keys, mask)
        maximum = logits.max(-1, keepdims=True)
        unnormalized = jnp.exp(logits - maximum)
        total = unnormalized.sum(-1, keepdims=True)
        gathered = _product("gqm,mgd->gqd", unnormalized.astype(rows.dtype), values)
        return (gathered / total).astype(rows.dtype), maximum, total

    out, maximum, total = jax.lax.map(one, (rows, keys, values, mask))
    return out, (rows, keys, values, mask, out, maximum, total)


def _one_by_one_backward(kept, wanted):
    def one(example):
        (rows, keys, values, mask, out, maximum, total), wanted = example
        weights = jnp.exp(_logits(rows, keys, mask) - maximum) / total
        by_weight = _product("gqd,mgd->gqm", wanted, values)
        expected = (wanted.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
        by_logit = (weights * (by_weight - expected)).astype(rows.dtype)
        # A row without any key is the mean of all values, whatever its logits are.
        sees = jnp.tile(mask.any(-1), rows.shape[1] // mask.shape[0])[None, :, None].astype(rows.dtype)
        by_values = _product("gqm,gqd->mgd", weights.astype(rows.dtype), wanted)
        by_rows, by_keys = (
            _product("gqm,mgd->gqd", by_logit, keys) * sees,
            _product("gqm,gqd->mgd", by_logit, rows * sees),
        )
        return by_rows.astype(rows.dtype), by_keys.astype(keys.dtype), by_values.astype(values.dtype)

    return *jax.lax.map(one, (kept, wanted)), None


one_by_one.defvjp(_one_by_one_forward, _one_by_one_backward)


def _logits(
    rows: Float[Array, "g q d"], keys: Float[Array, "m g d"], mask: Bool[Array, "n m"]
) -> Float[Array, "g q m"]:
    logits = _product("gqd,mgd->gqm", rows, keys)
    by_head = logits.reshape(logits.shape[0], -1, *mask.shape)
    return jnp.where(mask[None, None], by_head, _MASKED).reshape(logits.shape)


def _product(equation: str, *operands: Array) -> Array:
    return jnp.einsum(equation, *operands, preferred_element_type=jnp.float32)


@dataclasses.dataclass(frozen=True)
class Rotary:
    """By which angle a position turns each pair of entries of a head: `position / max_wavelength ** (2 i / d)`.

    Multimodal positions (arXiv 2409.12191, section 2.1) have three axes: time, row, column. `sections` says how many
    pairs each of them turns: `sections[0]` pairs by time, then by row, then by column; `interleaved` (Qwen3-VL) deals
    them in turns, and what rows and columns leave over is turned by time. `stretch` divides positions, so that a model
    reads texts that much longer than it was first trained on (arXiv 2306.15595).
    """

    max_wavelength: float = 1e4
    sections: tuple[int, ...] = ()  # (): one axis
    interleaved: bool = False
    stretch: float = 1.0

    def angles(self, positions: Int[Array, "b n *axes"], head_dim: int) -> Float[Array, "b n k"]:
        """In radians, one for each of the `head_dim / 2` pairs. Positions with one axis stand for three equal ones."""
        half = head_dim // 2
        timescale = self.stretch * self.max_wavelength ** (jnp.arange(half, dtype=jnp.float32) / half)
        positions = positions[..., self._axis_of_pair(half)] if positions.ndim == 3 else positions[..., None]
        return positions.astype(jnp.float32) / timescale[None, None]

    def _axis_of_pair(self, half: int) -> Int[np.ndarray, "k"]:
        if sum(self.sections) != half:
            raise errors.ConfigError("Rotary.sections", expected=f"a sum of head_dim / 2 = {half}", found=self.sections)
        if not self.interleaved:
            return np.repeat(np.arange(len(self.sections)), self.sections)
        pair, num_axes = np.arange(half), len(self.sections)
        axis = pair % num_axes
        return np.where(pair < num_axes * np.array(self.sections)[axis], axis, 0)


class Rotation(NamedTuple):
    """Sines and cosines of the angles that positions turn by: made once, used by all layers."""

    sin: Float[Array, "#b n k"]
    cos: Float[Array, "#b n k"]

    @classmethod
    def by(cls, angles: Float[Array, "#b n k"]) -> "Rotation":
        # Without the barrier XLA computes sines again wherever they are used: in every head of every layer.
        return cls(*jax.lax.optimization_barrier((jnp.sin(angles), jnp.cos(angles))))


_ROTARY = Rotary()


def rotate(
    x: Float[Array, "b n h d"], positions: Int[Array, "b n *axes"], rotary: Rotary = _ROTARY
) -> Float[Array, "b n h d"]:
    """Rotary positions (arXiv 2104.09864, eq. 34), with the layout of the pairs that Gemma and Qwen have."""
    return turn(x, Rotation.by(rotary.angles(positions, x.shape[-1])))


def turn(x: Float[Array, "b n h d"], rotation: Rotation) -> Float[Array, "b n h d"]:
    """Turn the pair of entries `i` and `i + d/2` of every head by the `i`-th of `k = d/2` angles."""
    sin, cos = rotation.sin[:, :, None], rotation.cos[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def block_mask(block: Int[Array, "b m"], is_real: Bool[Array, "b m"]) -> Bool[Array, "b m m"]:
    """Tokens see the real tokens of their own and of earlier blocks.

    images and prompt 0 0 0 | state 1 | actions 2 2 2        a causal suffix counts on: 2 3 4
    """
    return (block[:, None, :] <= block[:, :, None]) & is_real[:, None, :]
