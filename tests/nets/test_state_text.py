import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece

from vla_jax.codecs.text import ByteTokenizer, SentencePieceTokenizer
from vla_jax.core import errors
from vla_jax.nets.state_text import StateText, bin_of, state_text

TEXT = state_text(ByteTokenizer().pieces)


def test_the_prompt_reads_as_in_openpi():
    """256 bins of [-1, 1]: 0 opens bin 128, and the outer bins take what lies beyond."""
    ids, mask = TEXT.tokens(jnp.array([[0.0, -3.0, 1.0], [-1.0, 0.999, -0.5]]))
    assert ids.shape == mask.shape == (2, TEXT.num_tokens(3)) == (2, 3 * 4 + 2)
    read = [ByteTokenizer().decode(row[m].tolist()) for row, m in zip(np.asarray(ids), np.asarray(mask), strict=True)]
    assert read == [" 128 0 255;\n", " 0 255 64;\n"]


def test_bins_are_those_of_numpy_digitize():
    state = np.random.default_rng(0).uniform(-1, 1, 1000).astype(np.float32)
    expected = np.digitize(state, np.linspace(-1, 1, 257)[:-1]) - 1
    assert np.array_equal(bin_of(state, 256), expected)


def test_pieces_of_a_sentencepiece_model_made_as_gemmas_are_put_together_as_it_reads_the_whole(tmp_path):
    """Digits by themselves, spaces kept, no space added in front."""
    sentences = [f"Task: put {k} blocks, State: {k} {255 - k} {k // 2};" for k in range(200)]
    (tmp_path / "corpus.txt").write_text("\n".join(sentences))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"), model_prefix=str(tmp_path / "gemma"), vocab_size=60, model_type="bpe",
        split_digits=True, add_dummy_prefix=False, remove_extra_whitespaces=False, user_defined_symbols=["\n"],
        pad_id=0, eos_id=1, bos_id=2, unk_id=3, minloglevel=2,
    )  # fmt: skip
    model = SentencePieceTokenizer(tmp_path / "gemma.model", end="")
    table = state_text(model.pieces)
    state = jnp.array([[0.0, -1.0, 0.3]])
    ids, mask = table.tokens(state)
    head = model.pieces("Task: put 7 blocks, State:")
    assert [*head, *ids[mask].tolist()] == model.pieces("Task: put 7 blocks, State: 128 0 166;\n")


def test_a_tokenizer_that_joins_numbers_with_their_neighbours_is_refused():
    def pairs(text):  # ids of two letters at a time
        return [hash(text[i : i + 2]) for i in range(0, len(text), 2)]

    with pytest.raises(errors.ConfigError, match="joins a state's numbers"):
        state_text(pairs)
    with pytest.raises(errors.ConfigError, match="2 bins"):
        StateText(((1,),), ())
