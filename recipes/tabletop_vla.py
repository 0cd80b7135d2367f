"""A vision-language-action transformer of the pi0 family on the whole tabletop suite: push, lift, place, stack.

    vla-jax data generate --out runs/tabletop_vla/data/1.0.0 --tasks push lift place stack --episodes-per-task 2000
    vla-jax train recipes/tabletop_vla.py:looking --run runs/tabletop_vla/looking
    vla-jax train recipes/tabletop_vla.py --run runs/tabletop_vla/train
    vla-jax eval runs/tabletop_vla/train

Two stages in a size for two CPU cores, three quarters of an hour with the demonstrations. What it reaches is in
docs/demo.md.
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
FIRST_FRAMES = 3


def looking(seed: int = 0) -> Recipe:
    """The first stage: nearly all samples are first frames.

    Trained on whole episodes from the start, it knows the scenes by heart before it finds out what the words mean.
    """
    recipe = quick(seed)
    steps = 1_200
    return dataclasses.replace(
        recipe,
        name="tabletop_vla/looking",
        learner=ImitationConfig(ema_decay=0.99),
        optimizer=AdamW(peak_lr=1e-3, warmup_steps=100, decay_steps=steps, end_lr=3e-4),
        fit=dataclasses.replace(recipe.fit, num_train_steps=steps, checkpoint_every=400),
        data=dataclasses.replace(recipe.data, weights=(0.05, 0.95)),
        start_from=None,
    )


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
    # Both make the policy look sooner. At times near the noise, the noisy actions do not yet tell what to do. And where
    # the hand goes across the table depends on the words and the pictures; height, turn and grip, at their full weight,
    # are learned by heart before anything is looked at.
    decoder = FlowConfig(
        ACTION_HORIZON,
        len(ACTION_NAMES),
        time_distribution="pi0",
        loss_samples=4,
        clip_actions=True,
        action_weights=tuple(1.0 if name in ("dx", "dy") else 0.1 for name in ACTION_NAMES),
    )
    steps = 7_000
    dataset = DatasetConfig(
        DATASET,
        ACTION_HORIZON,
        cameras=(("front", "front"), ("wrist", "wrist")),
        displacement_dims=tuple(range(len(ACTION_NAMES) - 1)),  # all but the grip
    )
    # On first frames the hand has not yet shown where it is going: the policy has to read and to look for the object.
    starts = dataclasses.replace(dataset, first_frames=FIRST_FRAMES)
    return Recipe(
        name="tabletop_vla/quick",
        policy=PolicyConfig(backbone, decoder),
        learner=ImitationConfig(ema_decay=0.999),
        optimizer=AdamW(peak_lr=6e-4, warmup_steps=200, decay_steps=steps, end_lr=5e-5),
        fit=FitConfig(num_train_steps=steps, log_every=100, checkpoint_every=1000, seed=seed),
        evaluation=EvaluationConfig(envs, EXECUTION_HORIZON, num_episodes=128),
        data=DataConfig(
            (dataset, starts),
            batch_size=64,
            weights=(0.6, 0.4),
            normalization=NormalizationConfig(hidden_state_dims=LAG_DIMS),
            seed=seed,
        ),
        text=text,
        start_from="runs/tabletop_vla/looking",
    )
