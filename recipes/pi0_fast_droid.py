"""pi0-FAST on DROID (arXiv 2501.09747), for a pod; and the same at a size for two CPU cores.

    vla-jax plan recipes/pi0_fast_droid.py:paper --topology v5e:16x16 --batch-size 2048
    python -c "from recipes import pi0_fast_droid; pi0_fast_droid.generate()"
    vla-jax train recipes/pi0_fast_droid.py --run runs/pi0_fast_droid/quick

`paper` has the shapes of openpi's `pi0_fast_droid` (chunks of 10 steps of 8 dims, 250 tokens beside the pictures, joint
velocities), and optimizer, batch and steps of its `pi0_fast_full_droid_finetune` (commit 15a9616,
src/openpi/training/config.py and models/pi0_fast.py), which itself has joint positions, 16 steps and 180 tokens. Unlike
openpi, the third picture, which is black on DROID, is left out, and prompt and sentence have room of their own.
"""

import dataclasses
import math
from pathlib import Path

from data_pipelines import droid, droid_synthetic
from recipes import pi0_droid
from vla_jax.codecs import fast_files
from vla_jax.codecs import text as texts
from vla_jax.codecs.action_text import ActionText, action_text
from vla_jax.codecs.fast import FastCodec
from vla_jax.learners.imitation import ImitationConfig
from vla_jax.nets import paligemma
from vla_jax.nets.language import PUBLISHED
from vla_jax.nets.state_text import StateText, state_text
from vla_jax.policies.fast_tokens import FastConfig
from vla_jax.training.fit import FitConfig
from vla_jax.training.recipe import DataConfig, EvaluationConfig, PolicyConfig, Recipe, TextConfig
from vla_jax.training.sharding import MeshConfig

STATE_DIM = ACTION_DIM = 8  # seven joints and the gripper
ACTION_HORIZON, EXECUTION_HORIZON = 10, 8
FAST = "runs/fast"  # the published codec's tokenizer.json and processor_config.json, which the user brings
QUICK = Path("runs/pi0_fast_droid")
_TOKENS, _SENTENCE, _TEMPLATE = 250, 150, "Task: {instruction}, State:"
_SCALE = 10.0  # of the published codec


def paper(seed: int = 0) -> Recipe:
    """2.9B parameters. 100,000 updates of 256; peak learning rate 5e-5, held after 1,000 steps of warm-up.

    Without PaliGemma's vocabulary it can be planned, and training refuses. With it, the codec has to be there too.
    """
    state, sentence = _words()
    length = _TOKENS - _SENTENCE - (0 if state is None else state.num_tokens(STATE_DIM))
    backbone = paligemma.pi0_fast(pi0_droid.CAMERAS, STATE_DIM, length, state, remat=pi0_droid.REMAT)
    full = pi0_droid.paper(seed)
    return dataclasses.replace(
        full,
        name="pi0_fast_droid/paper",
        policy=PolicyConfig(backbone, FastConfig(sentence)),
        evaluation=EvaluationConfig((), EXECUTION_HORIZON),
        data=data(pi0_droid.DROID, batch_size=256, size=224, kept=pi0_droid.KEPT, seed=seed),
        text=TextConfig(vocabulary=pi0_droid.VOCABULARY, prompt_length=length, template=_TEMPLATE),
    )


def quick(seed: int = 0) -> Recipe:
    """1M parameters on generated pictures of 64 pixels: that it learns to write chunks, never that it acts."""
    text, tokenizer = TextConfig(prompt_length=72, template=_TEMPLATE), texts.ByteTokenizer()
    state = state_text(tokenizer.pieces, num_bins=32)
    # Bytes above 127 are no letters of these instructions: actions take their place.
    sentence = action_text(plain_codec(), tokenizer.pieces, tokenizer.vocab_size, max_tokens=96, skip=0)
    backbone = paligemma.tiny_paligemma(
        pi0_droid.CAMERAS, tokenizer.vocab_size, text.prompt_length, state_dim=STATE_DIM, state_text=state
    )
    steps = 200
    return dataclasses.replace(
        pi0_droid.quick(seed),
        name="pi0_fast_droid/quick",
        policy=PolicyConfig(backbone, FastConfig(sentence)),
        fit=FitConfig(steps, log_every=20, checkpoint_every=100, mesh=MeshConfig(), seed=seed),
        learner=ImitationConfig(ema_decay=0.99),
        evaluation=EvaluationConfig((), EXECUTION_HORIZON),
        data=data(str(QUICK / "droid/1.0.1"), batch_size=16, size=64, kept=None, seed=seed),
        text=text,
    )


def data(folder: str, *, batch_size: int, size: int, kept: str | None, seed: int) -> DataConfig:
    """DROID's joint velocities and gripper positions, at its own width, by quantiles."""
    robot = droid.dataset_config(folder, ACTION_HORIZON, actions="joint_velocity", kept=kept)
    return DataConfig((dataclasses.replace(robot, resize=(size, size, "pad")),), batch_size, seed=seed)


def plain_codec() -> FastCodec:
    """A codec without data: one token per coefficient of a chunk in [-1, 1], and for 2, 4 and 8 zeros in a row."""
    bound = math.ceil(_SCALE * math.sqrt(ACTION_HORIZON))  # of a constant chunk's first coefficient
    zero = chr(bound)
    runs = [zero * length for length in (1, 2, 4, 8)]
    merges = tuple((run, run) for run in runs[:-1])
    vocabulary = (*(chr(point) for point in range(2 * bound + 1)), *runs[1:])
    return FastCodec(ACTION_HORIZON, ACTION_DIM, vocabulary, merges, -bound, _SCALE)


def generate() -> None:
    """Write the set that `quick` trains on, a few seconds. Raises DataError when it exists."""
    config = droid_synthetic.DroidSyntheticConfig(num_episodes=6, shortest=30, longest=40)
    droid_synthetic.generate(QUICK / "droid/1.0.1", config)


def _words() -> tuple[StateText | None, ActionText]:
    """How state and actions are written in PaliGemma's vocabulary; where that is not here, something of its size."""
    if not Path(pi0_droid.VOCABULARY).is_file():
        return None, ActionText(plain_codec(), PUBLISHED["vocab_size"], (2, 3, 4), (5,), max_tokens=_SENTENCE)
    tokenizer = texts.SentencePieceTokenizer(pi0_droid.VOCABULARY)
    codec = fast_files.load(FAST, action_horizon=ACTION_HORIZON, action_dim=ACTION_DIM)
    sentence = action_text(codec, tokenizer.pieces, tokenizer.vocab_size, max_tokens=_SENTENCE)
    return state_text(tokenizer.pieces), sentence
