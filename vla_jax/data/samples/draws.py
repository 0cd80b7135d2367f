"""Random numbers as a pure function of integers, a whole array at once: no state, no order, no per-element Python.

Every sample of the stream has a 64-bit key, a function of the seed and its position; what is drawn for it (which
camera, which instruction, which goal) is a function of the key and the name of the purpose.
"""

import zlib

import numpy as np
from jaxtyping import Float64, Int64, UInt64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mix(x: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """A bijection of 64-bit integers that changes half the bits of the result for any change of its input.

    Source: the finalizer of SplitMix64 (Steele, Lea, Flood, 2014).
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
        x = (x ^ (x >> np.uint64(30))) * _FIRST
        x = (x ^ (x >> np.uint64(27))) * _SECOND
        return x ^ (x >> np.uint64(31))


def fold(key: int | UInt64[np.ndarray, "..."], *parts: int | np.ndarray) -> UInt64[np.ndarray, "..."]:
    """A key that depends on all of its arguments and their order; integer arrays broadcast."""
    key = np.asarray(key).astype(np.uint64)
    for part in parts:
        with np.errstate(over="ignore"):
            key = mix(key * _GOLDEN + np.asarray(part).astype(np.uint64) + _GOLDEN)
    return key


def sample_keys(seed: int, positions: Int64[np.ndarray, "n"]) -> UInt64[np.ndarray, "n"]:
    """The keys of these positions of a stream."""
    return fold(seed, zlib.crc32(b"sample"), positions)


def uniform(keys: UInt64[np.ndarray, "..."], purpose: str) -> Float64[np.ndarray, "..."]:
    """One number in [0, 1) per key and purpose."""
    return (fold(keys, zlib.crc32(purpose.encode())) >> np.uint64(11)) * 2.0**-53


def integers(
    keys: UInt64[np.ndarray, "..."], purpose: str, bound: int | Int64[np.ndarray, "..."]
) -> Int64[np.ndarray, "..."]:
    """One number in [0, bound) per key and purpose; `bound` is at least 1."""
    return np.minimum((uniform(keys, purpose) * bound).astype(np.int64), np.asarray(bound) - 1)
