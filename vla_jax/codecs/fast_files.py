"""FAST codecs from data, and to and from folders of the published layout.

tokenizer.json         vocabulary and merges, as the tokenizers library writes them
processor_config.json  scale, min_token, time_horizon, action_dim
"""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vla_jax.codecs.fast import FastCodec, dct_matrix
from vla_jax.codecs.text import optional_package
from vla_jax.core import errors

_SURROGATES = 0xD800  # code points from here on are no characters


def train(
    chunks: Float[np.ndarray, "n h a"] | Iterable[Float[np.ndarray, "h a"]],
    *,
    vocab_size: int = 1024,
    scale: float = 10.0,
) -> FastCodec:
    """A codec for chunks like these, normalized as the policy sees them.

    The alphabet is every integer between the smallest and the largest rounded coefficient; pairs that occur twice or
    more fill the vocabulary. Needs the tokenizers package (the text extra). Raises ConfigError when the alphabet alone
    exceeds `vocab_size`, and for chunks that are not finite.
    """
    chunks = np.asarray(chunks if isinstance(chunks, np.ndarray) else list(chunks), np.float64)
    if chunks.ndim != 3 or not chunks.size or not np.isfinite(chunks).all():
        raise errors.ConfigError(
            "training a FAST codec", expected="finite chunks [n, h, a]", found=f"shape {chunks.shape}"
        )
    coefficients = np.round(np.einsum("kh,nha->nka", dct_matrix(chunks.shape[1]), chunks) * scale).astype(int)
    low, high = int(coefficients.min()), int(coefficients.max())
    alphabet_size = high - low + 1
    if alphabet_size > min(vocab_size, _SURROGATES):
        raise errors.ConfigError(
            "training a FAST codec",
            expected=f"at most vocab_size = {vocab_size} different coefficients",
            found=f"{alphabet_size}, from {low} to {high}",
            fix="normalize the actions, lower scale, or raise vocab_size",
        )
    library = optional_package("tokenizers")
    model = library.Tokenizer(library.models.BPE())
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=[chr(point) for point in range(alphabet_size)],
        max_token_length=10000,
    )
    texts = ("".join(map(chr, row)) for row in (coefficients - low).reshape(len(chunks), -1))
    model.train_from_iterator(texts, trainer, length=len(chunks))
    vocabulary, merges = _bpe(json.loads(model.to_str()), "the trained tokenizer")
    return FastCodec(chunks.shape[1], chunks.shape[2], vocabulary, merges, low, scale)


def save(codec: FastCodec, folder: str | Path) -> None:
    """Write the folder that `load`, the tokenizers library and the published processor read; one of that name goes."""
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        _write_json(partial / "tokenizer.json", _tokenizer_json(codec))
        processor = {
            "scale": codec.scale,
            "vocab_size": codec.num_tokens,
            "min_token": codec.min_coefficient,
            "time_horizon": codec.action_horizon,
            "action_dim": codec.action_dim,
        }
        _write_json(partial / "processor_config.json", processor)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load(folder: str | Path, *, action_horizon: int | None = None, action_dim: int | None = None) -> FastCodec:
    """The codec in a folder, ours or the published one, whose chunks have any shape: name `action_horizon` and
    `action_dim` for that one. Raises ConfigError naming the file and the key that cannot be used.
    """
    folder = Path(folder)
    processor = _read_json(folder / "processor_config.json")
    horizon = action_horizon or processor.get("time_horizon")
    dim = action_dim or processor.get("action_dim")
    missing = [key for key in ("scale", "min_token") if key not in processor]
    missing += [name for name, value in (("action_horizon", horizon), ("action_dim", dim)) if value is None]
    if missing:
        raise errors.ConfigError(
            f"{folder / 'processor_config.json'}",
            expected="scale and min_token, and time_horizon and action_dim here or from the caller",
            found=f"no {', '.join(missing)}",
            fix="load(folder, action_horizon=..., action_dim=...)",
        )
    place = str(folder / "tokenizer.json")
    content = _read_json(folder / "tokenizer.json")
    before = content.get("pre_tokenizer") or {"type": None}
    for key, value in (("normalizer", None), ("added_tokens", [])):
        if content.get(key) not in (None, value):
            raise errors.ConfigError(f"{place}: {key}", expected=repr(value), found=content[key])
    if before["type"] not in (None, "ByteLevel") or before.get("add_prefix_space"):
        raise errors.ConfigError(
            f"{place}: pre_tokenizer", expected="none, or ByteLevel without add_prefix_space", found=before
        )
    vocabulary, merges = _bpe(content, place)
    byte_level = before["type"] == "ByteLevel"
    splits = byte_level and before.get("use_regex", True)
    return FastCodec(horizon, dim, vocabulary, merges, processor["min_token"], processor["scale"], byte_level, splits)


def _bpe(content: dict[str, Any], place: str) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    model = content.get("model", {})
    if model.get("type") != "BPE" or model.get("byte_fallback") or model.get("continuing_subword_prefix"):
        raise errors.ConfigError(f"{place}: model", expected="BPE without byte_fallback or prefixes", found=model)
    vocabulary = sorted(model["vocab"], key=model["vocab"].get)
    if [model["vocab"][token] for token in vocabulary] != list(range(len(vocabulary))):
        raise errors.ConfigError(f"{place}: model.vocab", expected="ids 0, 1, 2, ... without a gap", found="a gap")
    # Older files write a pair as one string with a blank between.
    merges = tuple(tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"])
    return tuple(vocabulary), merges


def _tokenizer_json(codec: FastCodec) -> dict[str, Any]:
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": codec.splits_words}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: i for i, token in enumerate(codec.vocabulary)},
        "merges": [list(pair) for pair in codec.merges],
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": level if codec.byte_level else None,
        "post_processor": None,
        "decoder": level if codec.byte_level else {"type": "Fuse"},
        "model": model,
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise errors.ConfigError(f"{path}", expected="a JSON file of a FAST codec", found=str(error)) from error
