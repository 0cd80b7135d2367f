"""A vision-language-action transformer of the pi0 family on the whole tabletop suite: push, lift, place, stack.

    vla-jax data generate --out runs/tabletop_vla/data/1.0.0 --tasks push lift place stack --episodes-per-task 500
    vla-jax train recipes/tabletop_vla.py --run runs/tabletop_vla/train
    vla-jax eval runs/tabletop_vla/train

`quick` is a size for two CPU cores: half an hour. What it reaches, far from what it should, is in docs/demo.md.
"""

import dataclasses

from vla_jax.data.normalization import NormalizationConfig
from vla_jax.data.schema import DatasetConfig
from vla_jax.envs.mjx.tabletop import ACTION_NAMES, LAG_DIMS, STATE_NAMES, TabletopConfig
from vla_jax.learners.imitation import ImitationConfig
from vla_jax.nets import vla_transformer
from vla_jax.policies.flow import FlowConfig
from vla_jax.training.fit import FitConfig
from vla_jax.training.optimizers import AdamW
from vla_jax.training.recipe import DataConfig, EvaluationConfig, PolicyConfig, Recipe, TextConfig

TASKS = ("push", "lift", "place", "stack")
DATASET = "runs/tabletop_vla/data/1.0.0"
ACTION_HORIZON, EXECUTION_HORIZON = 8, 4


def quick(seed: int = 0) -> Recipe:
    """3.4M parameters: the tiny VLA with four tokens per camera that each read its whole grid of patches."""
    envs = tuple(TabletopConfig(task) for task in TASKS)
    words = sorted({word for env in envs for text in env.instructions for word in text.lower().split()})
    text = TextConfig(words=tuple(words), prompt_length=12)
    backbone = vla_transformer.tiny(
        cameras=("front", "wrist"),
        state_dim=len(STATE_NAMES),
        vocab_size=text.tokenizer().vocab_size,
        prompt_length=text.prompt_length,
    )
    vision = dataclasses.replace(backbone.vision, patch_size=8, mixed_tokens=4)
    backbone = dataclasses.replace(backbone, vision=vision)
    # Times near the noise, where the observation has to say what the noisy actions do not tell: it looks sooner.
    decoder = FlowConfig(ACTION_HORIZON, len(ACTION_NAMES), time_distribution="pi0", loss_samples=4, clip_actions=True)
    steps = 8_000
    dataset = DatasetConfig(
        DATASET,
        ACTION_HORIZON,
        cameras=(("front", "front"), ("wrist", "wrist")),
        displacement_dims=tuple(range(len(ACTION_NAMES) - 1)),  # all but the grip
    )
    return Recipe(
        name="tabletop_vla/quick",
        policy=PolicyConfig(backbone, decoder),
        learner=ImitationConfig(ema_decay=0.999),
        optimizer=AdamW(peak_lr=1e-3, warmup_steps=200, decay_steps=steps, end_lr=5e-5),
        fit=FitConfig(num_train_steps=steps, log_every=100, checkpoint_every=1000, seed=seed),
        evaluation=EvaluationConfig(envs, EXECUTION_HORIZON, num_episodes=128),
        data=DataConfig(
            (dataset,), batch_size=64, normalization=NormalizationConfig(hidden_state_dims=LAG_DIMS), seed=seed
        ),
        text=text,
    )
