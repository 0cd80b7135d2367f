"""GPT-2's way with text, for code points below 0x800 and inside a jit: letters for bytes, and where words begin.

The published FAST tokenizer writes its coefficients as characters of such a text.
"""

import functools
import unicodedata

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

NUM_POINTS = 0x800  # code points of one or two bytes in UTF-8


def utf8(point: int) -> bytes:
    return chr(point).encode("utf-8")


def _byte_letters() -> tuple[str, ...]:
    """GPT-2's printable letter for every byte: itself where it prints, else the next free one from code point 256."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


BYTE_LETTERS = _byte_letters()
_BYTES = {letter: byte for byte, letter in enumerate(BYTE_LETTERS)}


def token_bytes(token: str) -> tuple[int, ...]:
    """A token with a letter that stands for no byte is text itself, as in the tokenizers library."""
    if all(letter in _BYTES for letter in token):
        return tuple(_BYTES[letter] for letter in token)
    return tuple(token.encode("utf-8"))


def from_utf8(
    data: Int[Array, "b m"], num_bytes: Int[Array, "b"], num_values: int
) -> tuple[Int[Array, "b n"], Bool[Array, "b"]]:
    """Code points of bytes that are characters of one or two bytes each, and whether they are `num_values` of those."""
    is_real = jnp.arange(data.shape[1])[None] < num_bytes[:, None]
    follows = is_real & (data >= 0x80) & (data < 0xC0)
    opens_two = is_real & (data >= 0xC2) & (data < 0xE0)
    is_whole = jnp.roll(opens_two, 1, axis=1).at[:, 0].set(False) == follows
    is_valid = (
        is_whole.all(1) & ~opens_two[:, -1] & ~(is_real & ((data >= 0xE0) | (data == 0xC0) | (data == 0xC1))).any(1)
    )
    begins = is_real & ~follows
    values = jnp.where(opens_two, (data & 0x1F) << 6 | (jnp.roll(data, -1, axis=1) & 0x3F), data)
    to = jnp.where(begins, jnp.cumsum(begins, axis=1) - 1, num_values)
    rows = jnp.arange(len(data))[:, None]
    points = jnp.zeros((len(data), num_values), data.dtype).at[rows, to].set(values, mode="drop")
    return points, is_valid & (begins.sum(1) == num_values) & (num_bytes <= data.shape[1])


def word_starts(points: Int[Array, "b n"]) -> Bool[Array, "b n"]:
    """Where GPT-2's rule begins a word in texts of code points below 0x800.

    Words are runs of letters, of numbers, of spaces or of anything else; one blank before a run belongs to it, and so
    does an English ending ('s, 't, 're, 've, 'm, 'll, 'd) to its apostrophe.
    """
    kind = jnp.asarray(_kinds())[points]
    no_more = jnp.full((len(points), 1), -1, points.dtype)

    def at(values, offset):
        """Values so many places later (before, where negative), -1 beyond the ends."""
        pad = jnp.repeat(no_more, abs(offset), axis=1).astype(values.dtype)
        n = values.shape[1]
        return jnp.concatenate([values, pad], 1)[:, offset:] if offset > 0 else jnp.concatenate([pad, values], 1)[:, :n]

    space = kind == _SPACE
    new_kind = (kind != at(kind, -1)) & ~(~space & (at(points, -1) == ord(" ")))
    # The last of several spaces goes with what follows.
    starts = new_kind | (space & (at(kind, 1) >= 0) & (at(kind, 1) != _SPACE))
    opens = starts & (points == ord("'"))
    one = jnp.isin(at(points, 1), jnp.asarray([ord(letter) for letter in "stmd"]))
    two = functools.reduce(
        jnp.logical_or, [(at(points, 1) == ord(a)) & (at(points, 2) == ord(b)) for a, b in ("re", "ve", "ll")]
    )
    for found, length in ((opens & one, 2), (opens & two, 3)):
        for offset in range(1, length):
            starts = starts & ~_shift(found, offset)
        starts = starts | _shift(found, length)
    return starts


def _shift(mask: Bool[Array, "b n"], places: int) -> Bool[Array, "b n"]:
    """True `places` later."""
    return jnp.pad(mask, ((0, 0), (places, 0)))[:, : mask.shape[1]]


_OTHER, _LETTER, _NUMBER, _SPACE = range(4)


@functools.cache
def _kinds() -> Int[np.ndarray, "points"]:
    blank = {*range(9, 14), 32, 0x85, 0xA0}
    by_category = {"L": _LETTER, "N": _NUMBER}
    return np.array(
        [
            _SPACE if point in blank else by_category.get(unicodedata.category(chr(point))[0], _OTHER)
            for point in range(NUM_POINTS)
        ],
        np.int32,
    )
