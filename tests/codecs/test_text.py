import builtins

import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.codecs import text
from vla_jax.core import errors

SENTENCES = ["put the red block on the green zone", "put the blue block on the yellow zone", "öffne die Tür"]


@pytest.fixture(scope="module")
def sentencepiece_file(tmp_path_factory):
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("sentencepiece")
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(SENTENCES * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "tokenizer"), vocab_size=64, byte_fallback=False, minloglevel=2,
        hard_vocab_limit=False, user_defined_symbols=["\n"], pad_id=0, unk_id=3,
    )  # fmt: skip
    return folder / "tokenizer.model"


@pytest.fixture(scope="module")
def json_file(tmp_path_factory):
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]"])
    model.train_from_iterator(SENTENCES, trainer)
    model.enable_truncation(2)  # our reader must not inherit this
    path = tmp_path_factory.mktemp("json") / "tokenizer.json"
    model.save(str(path))
    return path


@pytest.mark.parametrize("instruction", [*SENTENCES, ""])
def test_bytes_come_back_after_padding(instruction):
    ids, mask = text.ByteTokenizer().encode(instruction, 48)
    assert ids.shape == mask.shape == (48,) and mask.sum() == len(instruction.encode())
    assert text.ByteTokenizer().decode(ids) == instruction
    assert ids.max() < text.ByteTokenizer().vocab_size


@pytest.mark.parametrize("tokenizer", ["bytes", "sentencepiece", "json"])
def test_a_text_that_does_not_fit_is_an_error_and_one_that_fits_exactly_is_not(tokenizer, request):
    made = _make(tokenizer, request)
    ids, mask = made.encode(SENTENCES[0], 60)
    needed = int(mask.sum())
    exact_ids, exact_mask = made.encode(SENTENCES[0], needed)
    np.testing.assert_array_equal(exact_ids, ids[:needed])
    assert exact_mask.all() and needed > 2  # 2 is the truncation stored in the json file
    with pytest.raises(errors.ConfigError, match=f"at most {needed - 1} tokens"):
        made.encode(SENTENCES[0], needed - 1)


@pytest.mark.parametrize("tokenizer", ["sentencepiece", "json"])
def test_file_tokenizers_decode_what_they_encoded(tokenizer, request):
    made = _make(tokenizer, request)
    ids, _ = made.encode(SENTENCES[1], 60)
    assert made.decode(ids) == SENTENCES[1]
    assert ids.max() < made.vocab_size


def test_sentencepiece_prompts_begin_with_bos_and_end_with_a_newline(sentencepiece_file):
    model = text.SentencePieceTokenizer(sentencepiece_file)
    ids, mask = model.encode("put the\nred block", 60)
    assert ids[0] == model._model.bos_id()
    assert ids[mask][-1] == model._model.piece_to_id("\n")
    assert (ids[mask] == model._model.piece_to_id("\n")).sum() == 1  # the text itself became one line


def test_words_are_numbered_once_and_unknown_ones_are_named():
    tokenizer = text.WordTokenizer.of(SENTENCES[:2])
    assert tokenizer.words == ("block", "blue", "green", "on", "put", "red", "the", "yellow", "zone")
    ids, mask = tokenizer.encode("Put the red block", 6)
    np.testing.assert_array_equal(ids, [5, 7, 6, 1, 0, 0])
    assert mask.sum() == 4 and tokenizer.decode(ids) == "put the red block" and tokenizer.vocab_size == 10
    with pytest.raises(errors.ConfigError, match="did you mean 'yellow'"):
        tokenizer.encode("put the yelow block", 6)


def test_prompt_table_rows_belong_to_instructions_in_order():
    table = text.prompt_table(text.ByteTokenizer(), SENTENCES, 48)
    assert table.tokens.shape == table.mask.shape == (3, 48) and table.mask.dtype == jnp.bool_
    assert [text.ByteTokenizer().decode(row) for row in np.asarray(table.tokens)] == SENTENCES
    with pytest.raises(errors.ConfigError, match="at least one instruction"):
        text.prompt_table(text.ByteTokenizer(), [], 48)


def test_a_missing_file_and_a_missing_package_say_how_to_mend_it(tmp_path, json_file, monkeypatch):
    with pytest.raises(errors.ConfigError, match="not a file"):
        text.SentencePieceTokenizer(tmp_path / "absent.model")
    real_import = builtins.__import__
    monkeypatch.setattr(text.importlib, "import_module", lambda name: real_import("absent_" + name))
    with pytest.raises(errors.ConfigError, match=r"vla-jax\[text\]"):
        text.JsonTokenizer(json_file).encode("put", 4)


def _make(name, request):
    if name == "bytes":
        return text.ByteTokenizer()
    if name == "sentencepiece":
        return text.SentencePieceTokenizer(request.getfixturevalue("sentencepiece_file"))
    return text.JsonTokenizer(request.getfixturevalue("json_file"))


def test_a_template_puts_the_instruction_into_a_sentence():
    tokenizer = text.TemplateTokenizer(text.ByteTokenizer(), "Task: {instruction}, State:")
    ids, mask = tokenizer.encode(" Pick_up\nthe {Cup} ", 40)
    assert tokenizer.decode(ids[mask]) == "Task: pick up the {cup}, State:"
    ids, mask = text.TemplateTokenizer(text.ByteTokenizer(), "{instruction}", lower_case=False).encode("The_Cup", 40)
    assert tokenizer.decode(ids[mask]) == "The Cup"
    with pytest.raises(errors.ConfigError, match="a text with"):
        text.TemplateTokenizer(text.ByteTokenizer(), "Task")
