"""FAST: action chunks as a few tokens by frequency and byte-pair encoding (arXiv 2501.09747, section V).

    chunk [h, a] -- DCT of every dim -- * scale, round -- lowest frequency of all dims first -- byte pairs --> tokens

Smooth chunks have few large coefficients and long runs of zeros, which become single tokens. The codec is plain values,
so that it is part of a config and travels with the checkpoint, and it works inside a jit both ways. Folders have the
layout of the published tokenizer (`tokenizer.json`, `processor_config.json`), which can be loaded as it is.

Unlike the published training, ours lets pairs cross any boundary: that one sees coefficients as bytes of a text, which
it splits into words first. Its files keep their meaning here.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vla_jax.codecs import byte_pairs
from vla_jax.codecs.gpt2_text import BYTE_LETTERS, NUM_POINTS, from_utf8, token_bytes, utf8, word_starts
from vla_jax.core import errors


class Tokens(NamedTuple):
    """The tokens of chunks, real ones first."""

    tokens: Int[Array, "b n"]
    mask: Bool[Array, "b n"]


@dataclasses.dataclass(frozen=True)
class FastCodec:
    """A vocabulary over integers. Coefficient `min_coefficient + k` is written as the character of code point `k`."""

    action_horizon: int  # h
    action_dim: int  # a
    vocabulary: tuple[str, ...]  # token id -> the characters it stands for
    merges: tuple[tuple[str, str], ...]  # in the order they were learned
    min_coefficient: int
    scale: float = 10.0  # steps per unit: the rounding is off by 1 / (2 * scale) per coefficient at most
    byte_level: bool = False  # the published files: characters as bytes of UTF-8, written in GPT-2's letters
    splits_words: bool = False  # the published files: text is cut by GPT-2's rule, and no pair crosses a cut

    def __post_init__(self):
        if min(self.action_horizon, self.action_dim) < 1 or not self.scale > 0:
            raise errors.ConfigError(
                "FastCodec",
                expected="action_horizon, action_dim and scale above 0",
                found=f"{self.action_horizon}, {self.action_dim}, {self.scale}",
            )
        known = set(self.vocabulary)
        if len(known) != len(self.vocabulary) or not 1 <= len(known) <= 46340:  # pairs are numbered in int32
            raise errors.ConfigError(
                "FastCodec.vocabulary", expected="1 to 46340 different tokens", found=f"{len(self.vocabulary)} tokens"
            )
        for left, right in self.merges:
            if not {left, right, left + right} <= known:
                raise errors.ConfigError(
                    "FastCodec.merges", expected="pairs of tokens that join to a token", found=(left, right)
                )
        if not self.alphabet:
            raise errors.ConfigError("FastCodec.vocabulary", expected="tokens of single coefficients", found="none")

    @property
    def num_tokens(self) -> int:
        return len(self.vocabulary)

    @property
    def max_tokens(self) -> int:
        """Width of `encode`'s rows: no chunk needs more."""
        return self.action_horizon * self.action_dim * (2 if self.byte_level else 1)

    @functools.cached_property
    def alphabet(self) -> tuple[int, ...]:
        """The code points that can be written, rising."""
        letters = set(self.vocabulary)
        if self.byte_level:
            return tuple(k for k in range(NUM_POINTS) if all(BYTE_LETTERS[byte] in letters for byte in utf8(k)))
        return tuple(sorted(ord(token) for token in letters if len(token) == 1))

    def encode(self, actions: Float[Array, "b h a"]) -> Tokens:
        """Tokens of normalized chunks. Coefficients beyond the alphabet become the nearest one in it."""
        coefficients = jnp.round(self.dct(actions) * self.scale).reshape(actions.shape[0], -1)
        points = coefficients.astype(jnp.int32) - self.min_coefficient
        tables = _tables(self)
        points = jnp.asarray(tables.nearest)[jnp.clip(points, 0, len(tables.nearest) - 1)]
        starts = word_starts(points) if self.splits_words else jnp.zeros(points.shape, bool)
        written = jnp.asarray(tables.written)[points]  # [b, n, 1 or 2], -1 where there is no second byte
        symbols, mask, starts = _pack(written, starts)
        return Tokens(*byte_pairs.merge(symbols, mask, starts, tables.merges))

    def decode(
        self, tokens: Int[Array, "b n"], mask: Bool[Array, "b n"]
    ) -> tuple[Float[Array, "b h a"], Bool[Array, "b"]]:
        """Chunks, and whether the tokens were one.

        Tokens that do not make exactly `h * a` coefficients, are outside the vocabulary or are broken UTF-8 give zeros
        and False. (The published code gives zeros for a wrong count alone.)
        """
        num_values = self.action_horizon * self.action_dim
        known = (tokens >= 0) & (tokens < self.num_tokens)
        spelled = byte_pairs.spell(jnp.where(known, tokens, 0), mask, _tables(self).spellings, self.max_tokens)
        points, is_valid = (
            from_utf8(*spelled, num_values) if self.byte_level else (spelled[0], spelled[1] == num_values)
        )
        is_valid &= (known | ~mask).all(1)
        coefficients = (points + self.min_coefficient) / self.scale
        shape = (-1, self.action_horizon, self.action_dim)
        actions = self.inverse_dct(coefficients.astype(jnp.float32).reshape(shape))
        return jnp.where(is_valid[:, None, None], actions, 0.0), is_valid

    def dct(self, actions: Float[Array, "b h a"]) -> Float[Array, "b h a"]:
        """Orthonormal DCT-II over time: row 0 is the mean times sqrt(h)."""
        matrix = jnp.asarray(dct_matrix(self.action_horizon))
        return jnp.einsum("kh,bha->bka", matrix, actions.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)

    def inverse_dct(self, coefficients: Float[Array, "b h a"]) -> Float[Array, "b h a"]:
        matrix = jnp.asarray(dct_matrix(self.action_horizon))
        return jnp.einsum("kh,bka->bha", matrix, coefficients, precision=jax.lax.Precision.HIGHEST)


def dct_matrix(num_steps: int) -> Float[np.ndarray, "h h"]:
    """Rows are orthonormal cosines of rising frequency: `sqrt(2 / h) cos(pi k (t + 1/2) / h)`, row 0 over sqrt(2)."""
    k, t = np.arange(num_steps)[:, None], np.arange(num_steps)[None]
    rows = np.sqrt(2 / num_steps) * np.cos(np.pi * k * (t + 0.5) / num_steps)
    rows[0] /= np.sqrt(2)
    return rows.astype(np.float32)


class _Tables(NamedTuple):
    nearest: Int[np.ndarray, "points"]  # the writable code point nearest to each
    written: Int[np.ndarray, "points k"]  # tokens of a single code point, -1 where there is none
    merges: byte_pairs.MergeTable
    spellings: list[tuple[int, ...]]  # code points or bytes of every token


@functools.lru_cache(maxsize=16)
def _tables(codec: FastCodec) -> _Tables:
    ids = {token: i for i, token in enumerate(codec.vocabulary)}
    alphabet = np.array(codec.alphabet)
    points = np.arange(alphabet[-1] + 1)
    nearest = alphabet[np.abs(points[:, None] - alphabet[None]).argmin(1)]
    written = np.full((len(points), 2 if codec.byte_level else 1), -1, np.int32)
    for point in codec.alphabet:
        letters = [BYTE_LETTERS[byte] for byte in utf8(point)] if codec.byte_level else [chr(point)]
        written[point, : len(letters)] = [ids[letter] for letter in letters]
    merges = [(ids[left], ids[right], ids[left + right]) for left, right in codec.merges]
    spell = token_bytes if codec.byte_level else lambda token: tuple(map(ord, token))
    table = byte_pairs.MergeTable.of(merges, len(ids))
    return _Tables(nearest, written, table, [spell(token) for token in codec.vocabulary])


def _pack(written: Int[Array, "b n k"], starts: Bool[Array, "b n"]):
    """Rows of symbols with the gaps (-1) taken out, and the words' starts moved along."""
    batch, _, k = written.shape
    first = jnp.arange(k) == 0
    flat, starts = written.reshape(batch, -1), (starts[..., None] & first[None, None]).reshape(batch, -1)
    if k == 1:
        return flat, jnp.ones(flat.shape, bool), starts
    is_real = flat >= 0
    order = jnp.argsort(~is_real, axis=1, stable=True)
    flat, is_real, starts = (jnp.take_along_axis(x, order, axis=1) for x in (flat, is_real, starts))
    return jnp.where(is_real, flat, 0), is_real, starts & is_real
