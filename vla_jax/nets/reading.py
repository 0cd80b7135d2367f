"""How pictures and words stand in a prefix, and who sees whom.

PaliGemma, pi0   [picture][picture] prompt                                 all see all
Gemma 3          opening <[picture]> <[picture]> prompt                    words see what is before them,
                                                                           a picture that and all of itself
Qwen             opening <[picture]> <[picture]> prompt                    all see what is before them
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vla_jax.core import errors


@dataclasses.dataclass(frozen=True)
class Reading:
    """The defaults are PaliGemma's. Token ids of an absent camera are absent with it."""

    pool: int = 1  # side of the squares of patches that are averaged into one token
    pooled_norm: bool = False  # RMS norm of these before the projection to the words' width, which then has no bias
    opening: tuple[int, ...] = ()  # token ids before the first picture
    before_image: tuple[int, ...] = ()  # token ids before every picture
    after_image: tuple[int, ...] = ()
    causal: bool = False  # whether words see only what is before them, and pictures only that and themselves
    causal_pictures: bool = False  # with `causal`: whether pictures are seen as words are (Qwen)

    def __post_init__(self):
        if self.pool < 1:
            raise errors.ConfigError("Reading.pool", expected="1 or more", found=self.pool)


class Picture(NamedTuple):
    """One per example, as the language model reads it."""

    tokens: Float[Array, "b n d"]
    added: Float[Array, "k b n d"] | None = None  # to its tokens behind each of the first k layers (DeepStack)


class Part(NamedTuple):
    """Tokens that stand together in a prefix."""

    tokens: Float[Array, "b n d"]
    mask: Bool[Array, "b n"]
    is_picture: bool = False
    added: Float[Array, "k b n d"] | None = None  # of pictures


class Arranged(NamedTuple):
    """The tokens of a prefix, before any layer. Tokens see those of their own and of earlier blocks."""

    tokens: Float[Array, "b n d"]
    mask: Bool[Array, "b n"]
    block: Int[np.ndarray, "n"]  # never falls


def arrange(parts: Sequence[Part], reading: Reading) -> Arranged:
    """The parts in their order as one prefix."""
    tokens = jnp.concatenate([part.tokens for part in parts], axis=1)
    mask = jnp.concatenate([part.mask for part in parts], axis=1)
    if not reading.causal:
        return Arranged(tokens, mask, np.zeros(mask.shape[1], np.int32))
    steps = [np.ones(part.mask.shape[1], np.int32) for part in parts]
    for part, step in zip(parts, steps, strict=True):
        step[1:] = reading.causal_pictures or not part.is_picture
    return Arranged(tokens, mask, np.cumsum(np.concatenate(steps), dtype=np.int32))


def average_squares(tokens: Float[Array, "b n d"], size: int) -> Float[Array, "b m d"]:
    """A square grid of tokens, row by row, averaged over squares of `size` tokens a side.

    Raises ConfigError where the squares do not fill the grid.
    """
    if size == 1:
        return tokens
    b, n, d = tokens.shape
    side = round(n**0.5)
    if side**2 != n or side % size:
        raise errors.ConfigError(
            "Reading.pool", expected="a divisor of the side of a square of patches", found=f"{size} of {n} patches"
        )
    squares = tokens.reshape(b, side // size, size, side // size, size, d)
    return squares.mean((2, 4)).reshape(b, (side // size) ** 2, d)
