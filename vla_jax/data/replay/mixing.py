"""Several sources in one batch: demonstrations and experience, half and half or in any other ratio.

    batch = mix(key, (rounds, updates, 256), (sample_demonstrations, sample_online), (0.5, 0.5))     # inside a jit
    batch = mix_in_proportion(key, shape, samplers, sizes)                       # as if the sources were one buffer
    batch = join([demonstrations.sample(...), online.sample(...)])               # on the host, counts from split_counts

Every row carries the number of its source in `extras["source"]`. Sources: symmetric sampling is RLPD's (arXiv
2302.02948), in proportion to the buffers is what PA-RL (arXiv 2412.06685) distils its policy on.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from vla_jax.core import errors
from vla_jax.core.types import Transitions

Sampler = Callable[[Key[Array, ""], tuple[int, ...]], Transitions]  # key, leading shape


def split_counts(batch_size: int, fractions: Sequence[float]) -> tuple[int, ...]:
    """How many rows of a batch each source gives, as near to its fraction as whole numbers can be.

    Rows left over by rounding down go to the largest remainders, the earlier source first. Raises ConfigError unless
    the fractions are at least 0 and add up to 1.
    """
    if min(fractions, default=-1) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise errors.ConfigError("mixing: fractions", expected="at least 0, adding up to 1", found=tuple(fractions))
    exact = [batch_size * fraction for fraction in fractions]
    counts = [math.floor(value + 1e-6) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: batch_size - sum(counts)]:
        counts[i] += 1
    return tuple(counts)


def counts_in_proportion(batch_size: int, sizes: Sequence[int], draw: float) -> tuple[int, ...]:
    """How many rows each of several buffers gives to a batch that treats them as one; `draw` in [0, 1).

    Each is its exact share rounded up or down, at random so that it is exact on average: systematic sampling.
    Raises DataError when all buffers are empty.
    """
    total = sum(sizes)
    if total == 0:
        raise errors.DataError("mixing: all sources are empty", expected="at least one row", found=tuple(sizes))
    bounds = [math.floor(batch_size * sum(sizes[: i + 1]) / total + draw) for i in range(len(sizes) - 1)]
    bounds = [0, *(min(bound, batch_size) for bound in bounds), batch_size]
    return tuple(stop - start for start, stop in itertools.pairwise(bounds))


def join(batches: Sequence[Transitions], sources: Sequence[int] | None = None) -> Transitions:
    """Batches with the same fields behind one another, along the last axis of `rewards` but one; numpy or jax.

    `extras["source"]` is the number of the batch that a row came from (or what `sources` says of it), int32. Raises
    DataError when the batches differ in structure or in the shape of a row.
    """
    numbers = range(len(batches)) if sources is None else sources
    tagged = [_tagged(batch, i) for batch, i in zip(batches, numbers, strict=True)]
    _check_alike(tagged)
    axis = batches[0].rewards.ndim - 2
    on_device = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tagged))
    concatenate = jnp.concatenate if on_device else np.concatenate
    return jax.tree.map(lambda *leaves: concatenate(leaves, axis=axis), *tagged)


def mix(
    key: Key[Array, ""], shape: tuple[int, ...], samplers: Sequence[Sampler], fractions: Sequence[float]
) -> Transitions:
    """A batch with leading `shape`; of its last axis every source gives exactly its `split_counts`."""
    counts = split_counts(shape[-1], fractions)
    keys = jax.random.split(key, len(samplers))
    return join([draw(k, (*shape[:-1], n)) for draw, k, n in zip(samplers, keys, counts, strict=True)])


def mix_in_proportion(
    key: Key[Array, ""], shape: tuple[int, ...], samplers: Sequence[Sampler], sizes: Sequence[Int[Array, ""]]
) -> Transitions:
    """A batch with leading `shape` whose counts per source are those of `counts_in_proportion`, inside a jit.

    `sizes` may be traced, so every source draws a whole batch, of which it gives its part.
    """
    draw_key, *keys = jax.random.split(key, len(samplers) + 1)
    drawn = [_tagged(sample(k, shape), i) for i, (sample, k) in enumerate(zip(samplers, keys, strict=True))]
    _check_alike(drawn)
    total = jnp.cumsum(jnp.stack([jnp.asarray(size, jnp.float32) for size in sizes]))
    draws = jax.random.uniform(draw_key, (*shape[:-1], 1))
    place = jnp.broadcast_to(jnp.arange(shape[-1], dtype=jnp.float32), shape)
    chosen = drawn[-1]
    for i in reversed(range(len(drawn) - 1)):
        is_before = place < jnp.floor(shape[-1] * total[i] / jnp.maximum(total[-1], 1) + draws)
        chosen = jax.tree.map(
            lambda new, old, where=is_before: jnp.where(_lift(where, new), new, old), drawn[i], chosen
        )
    return chosen


def _tagged(batch: Transitions, number: int) -> Transitions:
    on_device = isinstance(batch.rewards, jax.Array)
    source = (jnp if on_device else np).full(batch.rewards.shape[:-1], number, np.int32)
    return batch.replace(extras={**batch.extras, "source": source})


def _check_alike(batches: Sequence[Transitions]) -> None:
    first = jax.tree_util.tree_structure(batches[0])
    for number, batch in enumerate(batches[1:], start=1):
        if jax.tree_util.tree_structure(batch) != first:
            raise errors.DataError(
                f"mixing: sources 0 and {number} differ in their fields",
                expected=_described(batches[0]),
                found=_described(batch),
                fix="give both the same extras, cameras and goals",
            )
        axis = batch.rewards.ndim - 1
        for path, a in jax.tree_util.tree_leaves_with_path(batches[0]):
            b = _at(batch, path)
            if a.shape[axis:] != b.shape[axis:] or a.dtype != b.dtype:
                raise errors.DataError(
                    f"mixing: sources 0 and {number} differ in {jax.tree_util.keystr(path)}",
                    expected=f"{a.dtype} {list(a.shape[axis:])} per row",
                    found=f"{b.dtype} {list(b.shape[axis:])}",
                )


def _described(batch: Transitions) -> str:
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(batch)]
    return ", ".join(paths)


def _at(tree: Any, path: tuple) -> Any:
    return dict(jax.tree_util.tree_leaves_with_path(tree))[path]


def _lift(where: Array, like: Array) -> Array:
    return where.reshape(where.shape + (1,) * (like.ndim - where.ndim))
