"""Action chunks as words of a language model (pi0-FAST, arXiv 2501.09747; the layout is openpi's).

    start "Action: " | one word per FAST token | stop "|" | end of sequence | padding

FAST token `k` takes the place of word `vocab_size - 1 - skip - k`: the rarest words of the vocabulary, without the last
`skip`, which PaliGemma uses for places in pictures.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vla_jax.codecs.fast import FastCodec
from vla_jax.core import errors


@dataclasses.dataclass(frozen=True)
class ActionText:
    codec: FastCodec
    vocab_size: int  # of the text tokenizer
    start: tuple[int, ...]  # ids written before the actions
    stop: tuple[int, ...]  # ids that close them; the first is looked for
    end_token: int = 1  # of the sequence
    max_tokens: int = 256  # of the whole; longer chunks are cut off and say so
    skip: int = 128  # words at the end of the vocabulary that stay words

    def __post_init__(self):
        if not self.stop or self.max_tokens < len(self.start) + len(self.stop) + 2:
            raise errors.ConfigError(
                "ActionText",
                expected="a stop, and max_tokens for start, stop, end and a token",
                found=f"start={self.start}, stop={self.stop}, max_tokens={self.max_tokens}",
            )
        if self.first_word - self.codec.num_tokens + 1 <= max(*self.start, *self.stop, self.end_token):
            raise errors.ConfigError(
                "ActionText: the action tokens would take the place of words that are needed",
                expected=f"{self.codec.num_tokens + self.skip} rare words at the end of the vocabulary",
                found=f"vocab_size={self.vocab_size}, start={self.start}, stop={self.stop}, end={self.end_token}",
                fix="raise the vocabulary's size, or lower skip",
            )

    @property
    def first_word(self) -> int:
        """The id of FAST token 0; those of the others count down."""
        return self.vocab_size - 1 - self.skip

    def encode(self, actions: Float[Array, "b h a"]) -> tuple[Int[Array, "b n"], Bool[Array, "b n"], Bool[Array, "b"]]:
        """Ids, the mask of the real ones, and whether the chunk fitted into `max_tokens`."""
        tokens, is_real = self.codec.encode(actions)
        tail = (*self.stop, self.end_token)
        count, begin = is_real.sum(1)[:, None], len(self.start)
        place = jnp.arange(self.max_tokens)[None]
        words = self.first_word - jnp.pad(tokens, ((0, 0), (begin, self.max_tokens)))[:, : self.max_tokens]
        within_tail = jnp.clip(place - begin - count, 0, len(tail) - 1)
        ids = jnp.where(place < begin + count, words, jnp.asarray(tail)[within_tail])
        if begin:
            opening = jnp.asarray(self.start)[jnp.minimum(jnp.arange(self.max_tokens), begin - 1)][None]
            ids = jnp.where(place < begin, opening, ids)
        length = begin + count + len(tail)
        return jnp.where(place < length, ids, 0), place < length, length[:, 0] <= self.max_tokens

    def decode(self, tokens: Int[Array, "b n"]) -> tuple[Float[Array, "b h a"], Bool[Array, "b"]]:
        """Chunks, and whether the words were one.

        Words that do not open with `start`, hold anything but actions before `stop` (or the end of the sequence) or do
        not make a whole chunk give zeros and False, as in openpi.
        """
        begin = len(self.start)
        opens = (tokens[:, :begin] == jnp.asarray(self.start, tokens.dtype)[None]).all(1)
        body = tokens[:, begin:]
        over = jnp.cumsum((body == self.stop[0]) | (body == self.end_token), axis=1) > 0
        actions, is_valid = self.codec.decode(self.first_word - body, ~over)
        is_valid &= opens
        return jnp.where(is_valid[:, None, None], actions, 0.0), is_valid


def action_text(codec: FastCodec, pieces: Callable[[str], Sequence[int]], vocab_size: int, **options) -> ActionText:
    """openpi's layout for one tokenizer: `pieces(text)` are the ids of a text in the middle of another."""
    start, stop = (tuple(map(int, np.asarray(pieces(text)))) for text in ("Action: ", "|"))
    return ActionText(codec, vocab_size, start, stop, **options)
