"""Randomness as a function of (seed, purpose, step), so that a resumed run draws the same numbers."""

import zlib

import jax
from jaxtyping import Array, Int, Key


def stream(seed: int, purpose: str) -> Key[Array, ""]:
    """The root key of one named stream, for example `stream(seed, "noise")`; streams are independent."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))


def at_step(key: Key[Array, ""], step: int | Int[Array, ""]) -> Key[Array, ""]:
    """The key of one step of a stream."""
    return jax.random.fold_in(key, step)
