"""Byte-pair encoding inside a jit (arXiv 1508.07909): tables in, fixed shapes out.

A row of symbols is merged pair by pair, the pair learned first before all others, until no known pair is left. Every
pass merges all occurrences of one pair, so there are as many passes as different pairs, not as merges.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

_NEVER = np.iinfo(np.int32).max


class MergeTable(NamedTuple):
    """Known pairs, sorted by `left * num_tokens + right`."""

    pairs: Int[np.ndarray, "m"]
    ranks: Int[np.ndarray, "m"]  # 0 is merged first
    merged: Int[np.ndarray, "m"]  # the token a pair becomes
    num_tokens: int

    @classmethod
    def of(cls, merges: list[tuple[int, int, int]], num_tokens: int) -> "MergeTable":
        """From `(left, right, merged)` in the order they were learned; of a pair that is there twice the last counts,
        as in the tokenizers library."""
        last = {left * num_tokens + right: (rank, merged) for rank, (left, right, merged) in enumerate(merges)}
        pairs = np.array(sorted(last), np.int32)
        ranks, merged = np.array([last[pair] for pair in pairs.tolist()], np.int32).reshape(-1, 2).T
        return cls(pairs, ranks, merged, num_tokens)


class Merged(NamedTuple):
    tokens: Int[Array, "b n"]  # 0 behind the last
    mask: Bool[Array, "b n"]


def merge(
    symbols: Int[Array, "b n"], mask: Bool[Array, "b n"], starts: Bool[Array, "b n"], table: MergeTable
) -> Merged:
    """Encode rows of symbols, the real ones first. No pair is merged across a True of `starts`, where a word begins."""
    if not len(table.pairs):
        return Merged(jnp.where(mask, symbols, 0), mask)
    return jax.vmap(lambda *row: _merge_row(*row, table))(symbols, mask, starts)


def _merge_row(symbols: Int[Array, "n"], mask: Bool[Array, "n"], starts: Bool[Array, "n"], table: MergeTable) -> Merged:
    place = jnp.arange(len(symbols))
    pairs, ranks, merged = map(jnp.asarray, table[:3])

    def find(ids, starts, length):
        """For every place the entry of its pair in the table, and the pair's rank."""
        right, joined = jnp.roll(ids, -1), (place + 1 < length) & ~jnp.roll(starts, -1)
        pair = ids * table.num_tokens + right
        entry = jnp.minimum(jnp.searchsorted(pairs, pair), len(pairs) - 1)
        return entry, jnp.where(joined & (pairs[entry] == pair), ranks[entry], _NEVER)

    def step(state):
        ids, starts, length, entry, rank = state
        matches = rank == rank.min()
        # In a run of one symbol the pairs overlap: the first, third, ... of them are merged.
        before = jax.lax.cummax(jnp.where(matches, -1, place))
        chosen = matches & ((place - before) % 2 == 1)
        ids = jnp.where(chosen, merged[entry], ids)
        keep = ~jnp.roll(chosen, 1).at[0].set(False)
        to = jnp.where(keep, jnp.cumsum(keep) - 1, len(symbols))
        ids, starts = (jnp.zeros_like(x).at[to].set(x, mode="drop") for x in (ids, starts))
        length = length - chosen.sum()
        return ids, starts, length, *find(ids, starts, length)

    length = mask.sum()
    state = (symbols, starts, length, *find(symbols, starts, length))
    ids, _, length, *_ = jax.lax.while_loop(lambda state: (state[-1] != _NEVER).any(), step, state)
    return Merged(jnp.where(place < length, ids, 0), place < length)


def spell(
    tokens: Int[Array, "b n"], mask: Bool[Array, "b n"], spellings: list[tuple[int, ...]], length: int
) -> tuple[Int[Array, "b length"], Int[Array, "b"]]:
    """The symbols of the real tokens end to end, cut at `length`, and how many there were before the cut."""
    sizes = np.array(list(map(len, spellings)), np.int32)
    table = np.zeros((len(spellings), sizes.max()), np.int32)
    for row, spelling in zip(table, spellings, strict=True):
        row[: len(spelling)] = spelling
    ends = jnp.cumsum(jnp.where(mask, jnp.asarray(sizes)[tokens], 0), axis=1)
    place = jnp.arange(length)

    def one_row(tokens, ends):
        index = jnp.minimum(jnp.searchsorted(ends, place, side="right"), len(tokens) - 1)
        begin = jnp.where(index > 0, ends[jnp.maximum(index - 1, 0)], 0)
        within = jnp.clip(place - begin, 0, table.shape[1] - 1)
        return jnp.where(place < ends[-1], jnp.asarray(table)[tokens[index], within], 0)

    return jax.vmap(one_row)(tokens, ends), ends[:, -1]
