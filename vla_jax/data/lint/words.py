"""Instructions: missing, empty, of one word, or hardly ever shown."""

import numpy as np

from vla_jax.data.formats.episodes import EpisodeDataset
from vla_jax.data.lint.report import Notes
from vla_jax.data.lint.settings import LintConfig

_RARE = 0.1  # of the median number of episodes per instruction
_MANY = 10  # episodes per instruction (median) from which on a rare one is an oddity


def check(dataset: EpisodeDataset, config: LintConfig, notes: Notes) -> None:
    """By the words that an episode begins with."""
    name = config.instruction_name
    if name is None:
        return
    if name not in dataset.specs or dataset.specs[name].kind != "text":
        known = [other for other, spec in dataset.specs.items() if spec.kind == "text"]
        notes.error(
            "no instructions",
            f'the set has no text "{name}"',
            f"name the right one; its texts are: {', '.join(known) or 'none'}",
        )
        return
    texts = [text.strip() for text in dataset.texts(name)]
    ids = np.asarray(dataset.text_ids(name))
    if dataset.specs[name].is_step:
        ids = ids[np.asarray(dataset.episode_starts[:-1])]
    counts = np.bincount(ids, minlength=len(texts))
    total = int(counts.sum())
    notes.fact("instructions", f"{int((counts > 0).sum()):,} different ones in {total:,} episodes")
    empty = sum(int(count) for text, count in zip(texts, counts, strict=True) if not text)
    if empty:
        note = notes.error if empty == total else notes.warning
        note(
            "empty instruction",
            f"{empty:,} of {total:,} episodes have no instruction",
            "drop them, label them, or train them with image goals",
        )
    short = {text: int(count) for text, count in zip(texts, counts, strict=True) if count and len(text.split()) == 1}
    if short:
        notes.warning(
            "one-word instruction",
            f"{sum(short.values()):,} episodes are described by one word: {', '.join(map(repr, list(short)[:5]))}",
            "these are often placeholders; write sentences",
        )
    shown = counts[counts > 0]
    rare = [texts[i] for i in np.flatnonzero((counts > 0) & (counts < _RARE * np.median(shown))) if texts[i]]
    if rare and np.median(shown) >= _MANY:
        notes.warning(
            "rare instruction",
            f"{len(rare)} instructions have less than a tenth of the usual {np.median(shown):g} episodes: "
            f"{', '.join(map(repr, rare[:5]))}",
            "look for spelling variants, or draw them more often",
        )
