"""The main job at the size of a laptop: 500 scripted demonstrations, imitation, online RL, on `tabletop/place`.

    make demo                                   # all of it, under 15 minutes on 2 CPU cores
    vla-jax train recipes/tabletop_demo.py:imitation --run runs/demo/imitation
    vla-jax train recipes/tabletop_demo.py:finetune --run runs/demo/finetune

What to expect is in results/demo and docs/demo.md.
"""

import dataclasses

from data_pipelines.rollouts import RolloutDataConfig
from data_pipelines.tabletop import TabletopDataConfig
from vla_jax.data.normalization import NormalizationConfig
from vla_jax.data.schema import DatasetConfig
from vla_jax.envs.mjx.tabletop import ACTION_NAMES, LAG_DIMS, STATE_NAMES, TabletopConfig
from vla_jax.learners.expo import EXPOConfig
from vla_jax.learners.imitation import ImitationConfig
from vla_jax.main_job import MainJob
from vla_jax.nets.conv_film import ConvFilmConfig
from vla_jax.policies.flow import FlowConfig
from vla_jax.training.fit import FitConfig
from vla_jax.training.online import ReplayConfig
from vla_jax.training.optimizers import Adam, AdamW
from vla_jax.training.recipe import DataConfig, EvaluationConfig, PolicyConfig, Recipe, TextConfig

FOLDER = "runs/demo"
ACTION_HORIZON, EXECUTION_HORIZON = 8, 4


def job(folder: str = FOLDER, seed: int = 0) -> MainJob:
    """All stages; `seed` changes the demonstrations, both trainings and nothing of the evaluation."""
    return MainJob("demo", folder, data(seed), imitation(folder, seed), finetune(folder, seed))


def data(seed: int = 0) -> TabletopDataConfig:
    return TabletopDataConfig(tasks=("place",), episodes_per_task=500, seed=seed)


def imitation(folder: str = FOLDER, seed: int = 0) -> Recipe:
    """Convolutions with FiLM and a flow decoder: learns in CPU minutes where patch tokens do not."""
    text = TextConfig()
    backbone = ConvFilmConfig(
        cameras=("front", "wrist"),
        state_dim=len(STATE_NAMES),
        vocab_size=text.tokenizer().vocab_size,
        prompt_length=text.prompt_length,
        num_suffix_tokens=ACTION_HORIZON,
    )
    # 8 noise draws per image: the suffix is much cheaper than the convolutions. Their times are near the noise, where
    # the noisy actions tell nothing and the observation has to.
    decoder = FlowConfig(ACTION_HORIZON, len(ACTION_NAMES), time_distribution="pi0", loss_samples=8, clip_actions=True)
    steps = 900
    return Recipe(
        name="tabletop_demo/imitation",
        policy=PolicyConfig(backbone, decoder),
        learner=ImitationConfig(ema_decay=0.995),
        optimizer=AdamW(peak_lr=1e-3, warmup_steps=50, decay_steps=steps, end_lr=1e-4),
        fit=FitConfig(num_train_steps=steps, log_every=50, checkpoint_every=250, seed=seed),
        evaluation=EvaluationConfig((TabletopConfig("place"),), EXECUTION_HORIZON),
        data=DataConfig(
            (_dataset(folder),), batch_size=64, normalization=NormalizationConfig(hidden_state_dims=LAG_DIMS), seed=seed
        ),
        text=text,
    )


def finetune(folder: str = FOLDER, seed: int = 0) -> Recipe:
    """EXPO around the frozen imitation policy; the critic sees the policy's own features."""
    base = imitation(folder, seed)
    return Recipe(
        name="tabletop_demo/finetune",
        policy=base.policy,
        learner=EXPOConfig(
            execution_horizon=EXECUTION_HORIZON,
            edit_scale=0.2,
            clip_candidates=True,
            num_critics=5,
            hidden_dims=(256, 256),
            discount=0.97 ** (1 / EXECUTION_HORIZON),  # 0.97 per decision
            target_update_rate=0.01,
            value_range=(0.0, 1.0),  # the return is 1 at success, discounted
            initial_temperature=0.01,
        ),
        optimizer=Adam(peak_lr=5e-4),
        fit=FitConfig(num_train_steps=600, log_every=10, checkpoint_every=150, max_to_keep=1, seed=seed),
        evaluation=base.evaluation,
        data=base.data,
        text=base.text,
        # one decision in each of 64 environments, then 8 rounds of one critic and one edit update
        replay=ReplayConfig(num_envs=64, capacity=60_000, warmup_decisions=40, rounds=8, critic_updates=1, seed=seed),
        start_from=f"{folder}/imitation",
    )


def best_of_n(folder: str = FOLDER, seed: int = 0) -> Recipe:
    """The arm without edits: the same critic only chooses among the base policy's samples."""
    recipe = finetune(folder, seed)
    learner = dataclasses.replace(recipe.learner, edited=False)
    return dataclasses.replace(recipe, name="tabletop_demo/best_of_n", learner=learner)


def rollouts(folder: str = FOLDER, seed: int = 0) -> RolloutDataConfig:
    """Episodes of the imitation policy; about as many control steps as fine-tuning takes."""
    return RolloutDataConfig(f"{folder}/imitation", num_episodes=2560, seed=seed)


def filtered_imitation(folder: str = FOLDER, seed: int = 0) -> Recipe:
    """The arm without a critic: imitation goes on, on the demonstrations and the policy's own successes."""
    base = imitation(folder, seed)
    steps = 1200
    own = dataclasses.replace(base.data.datasets[0], path=f"{folder}/rollouts/1.0.0")
    return dataclasses.replace(
        base,
        name="tabletop_demo/filtered_imitation",
        optimizer=dataclasses.replace(base.optimizer, peak_lr=5e-4, decay_steps=steps),
        fit=dataclasses.replace(base.fit, num_train_steps=steps),
        data=dataclasses.replace(base.data, datasets=(*base.data.datasets, own)),
        start_from=f"{folder}/imitation",
    )


def _dataset(folder: str) -> DatasetConfig:
    movements = tuple(range(len(ACTION_NAMES) - 1))  # all but the grip
    return DatasetConfig(
        f"{folder}/data/1.0.0",
        ACTION_HORIZON,
        cameras=(("front", "front"), ("wrist", "wrist")),
        displacement_dims=movements,
    )
