"""Randomness as a function of (seed, purpose, step), so that a resumed run draws the same numbers."""

import math
import zlib

import jax
import jax.numpy as jnp
from jax.extend import random as prng
from jaxtyping import Array, Int, Key, UInt32

from vla_jax.core import placement

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def stream(seed: int, purpose: str) -> Key[Array, ""]:
    """The root key of one named stream, for example `stream(seed, "noise")`; streams are independent."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))


def at_step(key: Key[Array, ""], step: int | Int[Array, ""]) -> Key[Array, ""]:
    """The key of one step of a stream."""
    return jax.random.fold_in(key, step)


def for_arrays(key: Key[Array, ""]) -> Key[Array, ""]:
    """A key that draws the same bits, quickly where small networks run side by side on a CPU.

    There JAX makes the rounds of its generator in a loop, whose every trip copies both arrays, while whatever waits
    for the draw, and a core, wait. Here they are one kernel. Other keys than JAX's default ones are given back.
    """
    default = jax.random.key_impl(key) == "threefry2x32" and jax.config.jax_threefry_partitionable
    if not (placement.runs_side_by_side() and default):
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_WRITTEN_OUT)


def _hash(key: UInt32[Array, "2"], shape: tuple[int, ...]) -> tuple[UInt32[Array, "..."], UInt32[Array, "..."]]:
    """Threefry-2x32 with 20 rounds (Salmon et al., SC 2011) of every entry's index, below 2^32."""
    words = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
    x = jnp.broadcast_to(words[0], shape)
    y = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape) + words[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x = x + y
            y = x ^ (y << jnp.uint32(rotation) | y >> jnp.uint32(32 - rotation))
        x = x + words[(group + 1) % 3]
        y = y + (words[(group + 2) % 3] + jnp.uint32(group + 1))
    return x, y


def _bits(key: UInt32[Array, "2"], bit_width: int, shape: tuple[int, ...]) -> Array:
    if bit_width != 32 or math.prod(shape) >= 2**32:
        return prng.threefry_prng_impl.random_bits(key, bit_width, shape)
    x, y = _hash(key, shape)
    return x ^ y


def _split(key: UInt32[Array, "2"], shape: tuple[int, ...]) -> UInt32[Array, "... 2"]:
    return jnp.stack(_hash(key, shape), axis=-1)


_WRITTEN_OUT = prng.define_prng_impl(
    key_shape=prng.threefry_prng_impl.key_shape,
    seed=prng.threefry_prng_impl.seed,
    split=_split,
    random_bits=_bits,
    fold_in=prng.threefry_prng_impl.fold_in,
    name="threefry2x32_written_out",
    tag="fry_written_out",
)
