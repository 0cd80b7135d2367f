import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.codecs.action_text import ActionText, action_text
from vla_jax.codecs.fast import FastCodec
from vla_jax.codecs.text import ByteTokenizer
from vla_jax.core import errors

H, A = 2, 2
# Coefficients -2 to 2 as tokens 0 to 4, and two zeros as token 5.
ZEROS = (chr(2), chr(2))
CODEC = FastCodec(H, A, (*map(chr, range(5)), "".join(ZEROS)), (ZEROS,), min_coefficient=-2, scale=1.0)
TEXT = ActionText(CODEC, vocab_size=30, start=(7, 8), stop=(9,), end_token=1, max_tokens=9, skip=4)
# Coefficients (1, -1) and (0, 0): tokens 3, 1, 5 are words 25 - 3, 25 - 1, 25 - 5.
CHUNK = CODEC.inverse_dct(jnp.array([[[1.0, -1.0], [0.0, 0.0]]]))
encode = jax.jit(ActionText.encode, static_argnums=0)
decode = jax.jit(ActionText.decode, static_argnums=0)
SENTENCE = [7, 8, 22, 24, 20, 9, 1, 0, 0]


def test_a_sentence_is_start_rare_words_stop_and_end():
    tokens, mask, fits = encode(TEXT, CHUNK)
    assert tokens[0].tolist() == SENTENCE
    assert mask[0].tolist() == [True] * 7 + [False] * 2 and fits.all()
    actions, is_valid = decode(TEXT, tokens)
    assert is_valid.all()
    np.testing.assert_allclose(actions, CHUNK, atol=1e-6)


def test_a_chunk_that_does_not_fit_is_cut_off_and_says_so():
    short = dataclasses.replace(TEXT, max_tokens=6)
    busy = CODEC.inverse_dct(jnp.array([[[1.0, -1.0], [1.0, 1.0]]]))
    tokens, mask, fits = encode(short, jnp.concatenate([CHUNK, busy]))
    assert tokens.tolist() == [SENTENCE[:6], [7, 8, 22, 24, 22, 22]]
    assert mask.all() and not fits.any()
    assert decode(short, tokens)[1].tolist() == [True, True]  # what is left of them is still whole here
    assert decode(dataclasses.replace(TEXT, max_tokens=5), tokens[:, :5])[1].tolist() == [True, False]


@pytest.mark.parametrize(
    "sentence",
    [
        [8, 7, *SENTENCE[2:]],  # another start
        [7, 8, 22, 24, 9, 1, 0, 0, 0],  # a number short
        [7, 8, 22, 24, 20, 20, 9, 1, 0],  # too many
        [7, 8, 22, 12, 20, 9, 1, 0, 0],  # a word that is no action
        [7, 8, 22, 24, 26, 9, 1, 0, 0],  # one of the skipped
        [1, 0, 0, 0, 0, 0, 0, 0, 0],  # nothing
    ],
)
def test_malformed_sentences_give_zeros_and_say_so(sentence):
    actions, is_valid = decode(TEXT, jnp.array([sentence, SENTENCE]))
    assert is_valid.tolist() == [False, True]
    assert (actions[0] == 0).all() and (actions[1] != 0).any()


def test_what_stands_behind_the_stop_does_not_matter():
    for sentence in ([*SENTENCE[:6], 5, 3, 22], [*SENTENCE[:5], 1, 22, 22, 22]):
        assert decode(TEXT, jnp.array([sentence]))[1].all()


def test_the_layout_of_openpi_is_made_of_a_tokenizers_pieces():
    text = action_text(CODEC, ByteTokenizer().pieces, 300, skip=10)
    assert ByteTokenizer().decode(text.start) == "Action: " and ByteTokenizer().decode(text.stop) == "|"
    assert text.first_word == 289


def test_words_that_are_needed_are_not_taken():
    with pytest.raises(errors.ConfigError, match=r"take the place(?s:.*)raise the vocabulary"):
        dataclasses.replace(TEXT, vocab_size=19)  # words 9 to 14 would be actions, and 9 is the stop
    with pytest.raises(errors.ConfigError, match="max_tokens"):
        dataclasses.replace(TEXT, max_tokens=4)
