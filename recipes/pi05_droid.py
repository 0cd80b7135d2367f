"""pi0.5 on DROID and LIBERO together (arXiv 2504.16054), for a pod; and the same at a size for two CPU cores.

    vla-jax plan recipes/pi05_droid.py:paper --topology v5e:16x16 --batch-size 2048
    python -c "from recipes import pi0_droid; pi0_droid.generate()"
    vla-jax train recipes/pi05_droid.py --run runs/pi05_droid/quick

`paper` has the values of openpi's `pi05_full_droid_finetune` (commit 15a9616, src/openpi/training/config.py) on the
mixture of recipes/pi0_droid.py, with its departures. The state stands in the prompt as words, norms of the action
expert are conditioned on the flow time, and a prompt has room for 200 tokens.
"""

import dataclasses
from pathlib import Path

from recipes import pi0_droid
from vla_jax.codecs import text as texts
from vla_jax.nets import vla_transformer
from vla_jax.nets.state_text import StateText, state_text
from vla_jax.policies.flow import FlowConfig
from vla_jax.training.recipe import PolicyConfig, Recipe, TextConfig

_PROMPT, _TEMPLATE = 200, "Task: {instruction}, State:"


def paper(seed: int = 0) -> Recipe:
    """3.4B parameters. Without PaliGemma's vocabulary it can be planned, and training refuses."""
    full, words = pi0_droid.paper(seed), _words()
    length = _PROMPT - (0 if words is None else words.num_tokens(pi0_droid.STATE_DIM))
    backbone = vla_transformer.pi05(pi0_droid.CAMERAS, pi0_droid.STATE_DIM, length, words, remat=pi0_droid.REMAT)
    return dataclasses.replace(
        full,
        name="pi05_droid/paper",
        policy=PolicyConfig(backbone, _decoder()),
        text=dataclasses.replace(full.text, prompt_length=length, template=_TEMPLATE),
    )


def quick(seed: int = 0) -> Recipe:
    """1M parameters on generated pictures of 64 pixels: that the mixture trains, never that it acts."""
    text = TextConfig(prompt_length=72, template=_TEMPLATE)
    small = pi0_droid.quick(seed)
    tokenizer = texts.ByteTokenizer()
    backbone = dataclasses.replace(
        small.policy.backbone,
        prompt_length=text.prompt_length,
        state_token="text",
        state_text=state_text(tokenizer.pieces, num_bins=32),
        adaptive_norm=True,
    )
    return dataclasses.replace(small, name="pi05_droid/quick", policy=PolicyConfig(backbone, _decoder()), text=text)


def _decoder() -> FlowConfig:
    return FlowConfig(
        pi0_droid.ACTION_HORIZON,
        pi0_droid.ACTION_DIM,
        time_distribution="pi0",
        time_conditioning="adaptive_norm",
    )


def _words() -> StateText | None:
    """The state's words in PaliGemma's vocabulary, where the user has put it."""
    if not Path(pi0_droid.VOCABULARY).is_file():
        return None
    return state_text(texts.SentencePieceTokenizer(pi0_droid.VOCABULARY).pieces)
