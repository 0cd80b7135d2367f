"""The codec in a jit against the tokenizers library, SciPy's DCT and what rounding allows."""

import functools
import itertools
import json

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import tokenizers
from hypothesis import strategies as st

from vla_jax.codecs import fast_files
from vla_jax.codecs.fast import FastCodec, dct_matrix
from vla_jax.codecs.gpt2_text import word_starts
from vla_jax.core import errors

H, A = 8, 3


def smooth(num_chunks, seed=0):
    """Sums of two slow sines: what arms do."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 1, H)[None, :, None]
    shape = (num_chunks, 1, A)
    slow = 0.6 * np.sin(2 * t * rng.uniform(0, 1, shape) + rng.uniform(0, 6, shape))
    return (slow + 0.2 * np.sin(4 * t + rng.uniform(0, 6, shape))).astype(np.float32)


CHUNKS = smooth(300)
CODEC = fast_files.train(CHUNKS, vocab_size=256)
WHOLE = fast_files.train(np.random.default_rng(0).uniform(-1, 1, (50, H, A)), vocab_size=100)  # every size of number


@functools.partial(jax.jit, static_argnums=0)
def encode(codec, chunks):
    return codec.encode(chunks)


@functools.partial(jax.jit, static_argnums=0)
def decode(codec, tokens, mask):
    return codec.decode(tokens, mask)


def ids_of(encoded):
    return [row[mask].tolist() for row, mask in zip(np.asarray(encoded.tokens), np.asarray(encoded.mask), strict=True)]


def padded(rows, width):
    mask = np.arange(width)[None] < np.array(list(map(len, rows)))[:, None]
    tokens = np.zeros(mask.shape, np.int32)
    tokens[mask] = np.concatenate(rows)
    return jnp.asarray(tokens), jnp.asarray(mask)


def published(vocab_size=400):
    """A tokenizer trained and saved in the published way: byte-level, words split, raw alphabet in the vocabulary."""
    low = -60
    points = np.round(np.einsum("kh,nha->nka", dct_matrix(H), CHUNKS) * 10).astype(int).reshape(len(CHUNKS), -1) - low
    bpe = tokenizers.ByteLevelBPETokenizer()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, show_progress=False, initial_alphabet=[chr(i) for i in range(120)]
    )
    # numbers, letters, quotes and blanks all occur, and both sides of code point 128
    spread = np.random.default_rng(1).integers(0, 240, (200, H * A))
    texts = ["".join(map(chr, row)) for row in [*points, *spread]]
    bpe._tokenizer.train_from_iterator(texts, trainer)
    return bpe._tokenizer, low


def saved(tmp_path, tokenizer, low):
    folder = tmp_path / "published"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "processor_config.json").write_text(json.dumps({"scale": 10, "min_token": low, "vocab_size": 400}))
    return folder


def test_the_transform_is_the_orthonormal_dct():
    ours = CODEC.dct(CHUNKS)
    np.testing.assert_allclose(ours, scipy.fft.dct(CHUNKS, axis=1, norm="ortho"), atol=1e-5)
    np.testing.assert_allclose(CODEC.inverse_dct(ours), CHUNKS, atol=1e-5)


def test_a_constant_chunk_is_its_mean_in_the_first_coefficients_and_zeros():
    """0.5 * sqrt(8) * 10 = 14.14 rounds to 14; the first three numbers are the three dims' means."""
    codec = FastCodec(H, A, tuple(map(chr, range(41))), (), min_coefficient=-20)
    tokens = codec.encode(jnp.full((1, H, A), 0.5)).tokens[0]
    assert tokens.tolist() == [34, 34, 34] + [20] * (H * A - 3)


def test_low_frequencies_of_all_dims_come_first():
    codec = FastCodec(4, 2, tuple(map(chr, range(41))), (), min_coefficient=-20)
    coefficients = jnp.arange(-4.0, 4.0).reshape(1, 4, 2)
    tokens = codec.encode(codec.inverse_dct(coefficients / 10)).tokens[0]
    assert (tokens - 20).tolist() == list(range(-4, 4))


@hypothesis.given(st.integers(0, 2**31), st.floats(0.01, 1))
@hypothesis.settings(max_examples=25)
def test_a_round_trip_is_off_by_the_rounding_at_most(seed, size):
    """Every coefficient is off by 1/20, so a step is off by at most 1/20 of the sum of its column of the transform."""
    chunks = np.random.default_rng(seed).uniform(-size, size, (4, H, A)).astype(np.float32)
    encoded = encode(WHOLE, chunks)
    decoded, is_valid = decode(WHOLE, *encoded)
    assert is_valid.all()
    points = np.round(np.asarray(WHOLE.dct(chunks)) * 10) - WHOLE.min_coefficient
    hypothesis.assume(points.min() >= 0 and points.max() < len(WHOLE.alphabet))  # beyond it the error has no bound
    bound = np.abs(dct_matrix(H)).sum(0).max() / 20
    assert np.abs(decoded - chunks).max() <= bound + 1e-5


def test_smooth_chunks_become_few_tokens():
    held_out = smooth(100, seed=1)
    counts = np.asarray(encode(CODEC, held_out).mask.sum(1))
    assert (H * A) / counts.mean() > 2.5
    assert (
        counts.mean()
        < 0.7 * np.asarray(encode(CODEC, np.random.default_rng(0).uniform(-1, 1, (20, H, A))).mask).sum(1).mean()
    )


def test_the_files_agree_with_the_tokenizers_library(tmp_path):
    fast_files.save(CODEC, tmp_path / "codec")
    fast_files.save(CODEC, tmp_path / "codec")  # again: the folder is replaced
    assert [path.name for path in tmp_path.iterdir()] == ["codec"]
    assert fast_files.load(tmp_path / "codec") == CODEC
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "codec" / "tokenizer.json"))
    chunks = smooth(50, seed=2)
    points = np.round(np.asarray(CODEC.dct(chunks)) * 10).astype(int).reshape(50, -1) - CODEC.min_coefficient
    points = np.clip(points, 0, len(CODEC.alphabet) - 1)
    theirs = [library.encode("".join(map(chr, row))).ids for row in points]
    assert ids_of(encode(CODEC, chunks)) == theirs
    assert [list(map(ord, library.decode(ids))) for ids in theirs] == points.tolist()


def test_the_published_layout_is_encoded_and_decoded_as_the_library_does(tmp_path):
    library, low = published()
    codec = fast_files.load(saved(tmp_path, library, low), action_horizon=H, action_dim=A)
    assert codec.byte_level and codec.splits_words
    rng = np.random.default_rng(3)
    # coefficients all over the alphabet, so that every rule of words and both lengths of characters are met
    points = np.concatenate(
        [rng.integers(0, 240, (60, H * A)), rng.choice([32, 39, 115, 116, 101, 108, 9, 49, 33], (60, H * A))]
    )
    chunks = codec.inverse_dct((points.reshape(-1, H, A) + low) / codec.scale)
    theirs = [library.encode("".join(map(chr, row))).ids for row in points]
    assert ids_of(encode(codec, chunks)) == theirs
    decoded, is_valid = decode(codec, *padded(theirs, codec.max_tokens))
    assert is_valid.all()
    np.testing.assert_allclose(decoded, chunks, atol=1e-4)
    fast_files.save(codec, tmp_path / "again")
    assert fast_files.load(tmp_path / "again") == codec


@hypothesis.given(st.lists(st.sampled_from("  \t\n''stdmrevla1²é!?à"), min_size=24, max_size=24))
@hypothesis.settings(max_examples=200)
def test_words_begin_where_gpt2_says(letters):
    words = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("".join(letters))
    found = STARTS(np.array([list(map(ord, letters))], np.int32))[0]
    assert np.flatnonzero(found).tolist() == [begin for _, (begin, _) in words]


STARTS = jax.jit(word_starts)


def test_malformed_tokens_give_zeros_and_say_so():
    good = ids_of(encode(CODEC, CHUNKS[:1]))[0]
    rows = [good, good[:-1], [*good, good[-1]], [*good[:-1], CODEC.num_tokens], [*good[:-1], -3], []]
    tokens, mask = padded([np.array(row, np.int32) for row in rows], CODEC.max_tokens)
    decoded, is_valid = decode(CODEC, tokens, mask)
    assert is_valid.tolist() == [True] + [False] * 5
    assert jnp.abs(decoded[0]).max() > 0 and (decoded[1:] == 0).all()


def test_broken_bytes_give_zeros_and_say_so(tmp_path):
    library, low = published()
    codec = fast_files.load(saved(tmp_path, library, low), action_horizon=1, action_dim=1)
    ids = {letter: codec.vocabulary.index(letter) for letter in "aÃ©"}  # bytes 61, c3 and a9: c3 a9 is é
    rows = [[ids["Ã"], ids["©"]], [ids["a"]], [ids["Ã"]], [ids["©"]], [ids["Ã"], ids["a"]], [ids["a"], ids["©"]]]
    decoded, is_valid = decode(codec, *padded(rows, codec.max_tokens))
    assert is_valid.tolist() == [True, True, False, False, False, False]
    np.testing.assert_allclose(decoded[:2, 0, 0], (np.array([0xE9, ord("a")]) + low) / 10, rtol=1e-6)


def test_coefficients_beyond_the_alphabet_become_the_nearest():
    codec = FastCodec(1, 1, tuple(map(chr, range(3))), (), min_coefficient=-1)
    assert codec.encode(jnp.array([[[-9.0]], [[0.0]], [[9.0]]])).tokens[:, 0].tolist() == [0, 1, 2]


def test_overlapping_pairs_are_merged_from_the_left_as_in_the_library():
    merges = [("a", "a"), ("aa", "a"), ("a", "b"), ("ab", "ab"), ("aa", "b"), ("b", "b")]
    vocabulary = ["a", "b", *(left + right for left, right in merges)]
    library = tokenizers.Tokenizer(tokenizers.models.BPE({token: i for i, token in enumerate(vocabulary)}, merges))
    codec = FastCodec(7, 1, tuple(vocabulary), tuple(merges), min_coefficient=0, scale=1.0)
    texts = list(map("".join, itertools.product("ab", repeat=7)))
    points = jnp.array([list(map(ord, text)) for text in texts], jnp.float32)
    assert ids_of(encode(codec, codec.inverse_dct(points[..., None]))) == [library.encode(text).ids for text in texts]


def test_impossible_codecs_are_named(tmp_path):
    with pytest.raises(errors.ConfigError, match="join to a token"):
        FastCodec(1, 1, ("a", "b"), (("a", "b"),), 0)
    with pytest.raises(errors.ConfigError, match="different tokens"):
        FastCodec(1, 1, ("a", "a"), (), 0)
    with pytest.raises(errors.ConfigError, match=r"different coefficients(?s:.*)raise vocab_size"):
        fast_files.train(100 * CHUNKS, vocab_size=256)
    with pytest.raises(errors.ConfigError, match="finite"):
        fast_files.train(np.full((1, H, A), np.nan))
    with pytest.raises(errors.ConfigError, match=r"processor_config\.json"):
        fast_files.load(tmp_path)
    library, low = published()
    folder = saved(tmp_path, library, low)
    with pytest.raises(errors.ConfigError, match="no action_horizon, action_dim"):
        fast_files.load(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(content | {"normalizer": {"type": "Lowercase"}}))
    with pytest.raises(errors.ConfigError, match="normalizer"):
        fast_files.load(folder, action_horizon=H, action_dim=A)
