"""The smallest words of actions, and backbones that write them; shared by the tests of policies and training."""

import dataclasses

from tests.nets import examples
from vla_jax.codecs.action_text import ActionText
from vla_jax.codecs.fast import FastCodec
from vla_jax.nets.gemma import GemmaConfig
from vla_jax.nets.paligemma import PaliGemmaConfig
from vla_jax.nets.siglip import SiglipConfig
from vla_jax.nets.state_text import StateText

H, A = 4, 2
_ZERO = chr(6)  # coefficients -6 to 6 at 4 steps per unit; runs of zeros are one token
_MERGES = ((_ZERO, _ZERO), (_ZERO * 2, _ZERO * 2))
CODEC = FastCodec(H, A, (*map(chr, range(13)), _ZERO * 2, _ZERO * 4), _MERGES, min_coefficient=-6, scale=4.0)
START, STOP, END, SKIP = (12, 13), (14,), 1, 2
VOCAB = 15 + len(CODEC.vocabulary) + SKIP  # the examples' prompts, the words above, the actions, the skipped
TEXT = ActionText(CODEC, VOCAB, START, STOP, END, max_tokens=12, skip=SKIP)
STATE_TEXT = StateText(tuple((2 + k,) for k in range(8)), end=(11,))


def paligemma_config(**changes):
    vision = SiglipConfig(16, depth=1, mlp_dim=16, num_heads=2, patch_size=8, image_size=examples.SIZE)
    language = GemmaConfig(16, depth=2, mlp_dim=24, num_heads=4, num_kv_heads=2, head_dim=8)
    read = dict(cameras=examples.CAMERAS, vocab_size=VOCAB, prompt_length=examples.PROMPT)
    state = dict(state_dim=examples.STATE_DIM, state_text=STATE_TEXT)
    return PaliGemmaConfig(**dict(vision=vision, language=language) | read | state | changes)


def pi05_config(**changes):
    text = dict(state_token="text", state_text=STATE_TEXT, with_text=True, adaptive_norm=True, vocab_size=VOCAB)
    return dataclasses.replace(examples.transformer_config(), **text | changes)
