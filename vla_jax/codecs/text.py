"""Instructions to token ids. Ids and masks have a fixed length, so that one compiled program serves every prompt."""

import dataclasses
import functools
import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from vla_jax.core import errors
from vla_jax.core.types import PromptTable

Encoded = tuple[Int[np.ndarray, "l"], Bool[np.ndarray, "l"]]


@runtime_checkable
class Tokenizer(Protocol):
    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str, length: int) -> Encoded:
        """`length` ids and the mask of the real ones; raises ConfigError when the text needs more."""
        ...

    def pieces(self, text: str) -> list[int]:
        """The ids of a text in the middle of another: spaces count, and nothing is added."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the real ids, padding dropped."""
        ...


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
    """UTF-8 bytes: id 0 is padding, byte `k` is id `k + 1`. Needs no file and knows every language."""

    @property
    def vocab_size(self) -> int:
        return 257

    def encode(self, text: str, length: int) -> Encoded:
        return _pad(self.pieces(text), text, length)

    def pieces(self, text: str) -> list[int]:
        return [byte + 1 for byte in text.encode("utf-8")]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(int(i) - 1 for i in ids if i != 0).decode("utf-8", errors="replace")


@dataclasses.dataclass(frozen=True)
class WordTokenizer:
    """A closed vocabulary of whole lower-case words: id 0 is padding, word `k` is id `k + 1`.

    For suites whose instructions are known in advance: an instruction is a handful of tokens where bytes need dozens,
    which halves the prefix of a small transformer. A word outside the vocabulary raises ConfigError.
    """

    words: tuple[str, ...]

    @classmethod
    def of(cls, instructions: Sequence[str]) -> "WordTokenizer":
        """The vocabulary of these instructions, in alphabetical order."""
        return cls(tuple(sorted({word for text in instructions for word in text.lower().split()})))

    @property
    def vocab_size(self) -> int:
        return len(self.words) + 1

    def encode(self, text: str, length: int) -> Encoded:
        return _pad(self.pieces(text), text, length)

    def pieces(self, text: str) -> list[int]:
        for word in text.lower().split():
            if word not in self.words:
                raise errors.ConfigError(
                    f"instruction {text!r} has the unknown word {word!r}",
                    fix=f"{errors.closest(word, self.words)}; or use ByteTokenizer",
                )
        return [self.words.index(word) + 1 for word in text.lower().split()]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.words[int(i) - 1] for i in ids if i != 0)


@dataclasses.dataclass(frozen=True)
class SentencePieceTokenizer:
    """A SentencePiece model file, such as PaliGemma's `tokenizer.model`.

    The defaults prepare a prompt as pi0 does: the text in one line, a begin token before it, `end` after it.
    """

    path: str | Path
    add_bos: bool = True
    end: str = "\n"  # encoded by itself, so that the text's own tokens do not depend on it

    def __post_init__(self):
        _require_file(self.path, "SentencePieceTokenizer")

    @functools.cached_property
    def _model(self):
        return optional_package("sentencepiece").SentencePieceProcessor(model_file=str(self.path))

    @property
    def vocab_size(self) -> int:
        return self._model.vocab_size()

    def encode(self, text: str, length: int) -> Encoded:
        one_line = " ".join(text.split())
        ids = self._model.encode(one_line, add_bos=self.add_bos)
        return _pad(ids + self._model.encode(self.end), text, length)

    def pieces(self, text: str) -> list[int]:
        return self._model.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        # Padding is id 0 and so is the pad or unknown piece of most models: neither is text.
        return self._model.decode([int(i) for i in ids if i != 0]).strip()


@dataclasses.dataclass(frozen=True)
class JsonTokenizer:
    """A Hugging Face `tokenizer.json`. Padding is id 0 under a False mask, whatever the file's own padding says."""

    path: str | Path
    add_special_tokens: bool = True

    def __post_init__(self):
        _require_file(self.path, "JsonTokenizer")

    @functools.cached_property
    def _model(self):
        model = optional_package("tokenizers").Tokenizer.from_file(str(self.path))
        model.no_truncation()  # a file's truncation setting would cut prompts without a word
        model.no_padding()
        return model

    @property
    def vocab_size(self) -> int:
        return self._model.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, length: int) -> Encoded:
        return _pad(self._model.encode(text, add_special_tokens=self.add_special_tokens).ids, text, length)

    def pieces(self, text: str) -> list[int]:
        return self._model.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode([int(i) for i in ids], skip_special_tokens=True)


@dataclasses.dataclass(frozen=True)
class TemplateTokenizer:
    """Instructions inside a sentence: "Task: {instruction}, State:" is how pi0-FAST and pi0.5 begin.

    Underscores and line breaks of the instruction become blanks.
    """

    tokenizer: Tokenizer
    template: str  # with "{instruction}" in it
    lower_case: bool = True  # as pi0-FAST reads; pi0.5 keeps capitals

    def __post_init__(self):
        if "{instruction}" not in self.template:
            raise errors.ConfigError(
                "TemplateTokenizer.template", expected='a text with "{instruction}"', found=self.template
            )

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def encode(self, text: str, length: int) -> Encoded:
        text = text.lower() if self.lower_case else text
        instruction = " ".join(text.replace("_", " ").split())
        return self.tokenizer.encode(self.template.replace("{instruction}", instruction), length)

    def pieces(self, text: str) -> list[int]:
        return self.tokenizer.pieces(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)


def prompt_table(tokenizer: Tokenizer, instructions: Sequence[str], length: int) -> PromptTable:
    """All instructions of a suite, tokenized once: row `i` belongs to `instructions[i]`."""
    if not instructions:
        raise errors.ConfigError("prompt_table", expected="at least one instruction", found="none")
    tokens, masks = zip(*(tokenizer.encode(text, length) for text in instructions), strict=True)
    return PromptTable(tokens=jnp.asarray(np.stack(tokens)), mask=jnp.asarray(np.stack(masks)))


def _pad(ids: Sequence[int], text: str, length: int) -> Encoded:
    if len(ids) > length:
        raise errors.ConfigError(
            f"instruction {text!r} does not fit",
            expected=f"at most {length} tokens",
            found=f"{len(ids)}",
            fix="raise prompt_length, or shorten the instruction",
        )
    padded = np.zeros(length, np.int32)
    padded[: len(ids)] = ids
    return padded, np.arange(length) < len(ids)


def _require_file(path: str | Path, place: str) -> None:
    if not Path(path).is_file():
        raise errors.ConfigError(place, expected="a tokenizer file", found=f"{path}, which is not a file")


def optional_package(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise errors.ConfigError(
            f"the package {package!r} is not installed",
            fix='install the text extra: pip install "vla-jax[text]"',
        ) from error
