"""pi0 on DROID and LIBERO together (arXiv 2410.24164), for a pod; and the same at a size for two CPU cores.

    vla-jax plan recipes/pi0_droid.py:paper --topology v5e:16x16 --batch-size 2048
    python -c "from recipes import pi0_droid; pi0_droid.generate()"
    vla-jax train recipes/pi0_droid.py --run runs/pi0_droid/quick
    vla-jax plan recipes/pi0_droid.py:lora --topology h100:1 --compiler cpu

`paper` takes the shapes of openpi's `pi0_config.Pi0Config` and the optimizer, schedule, batch and steps of its
full-DROID configs (`pi0_fast_full_droid_finetune`, `pi05_full_droid_finetune`; openpi commit 15a9616,
src/openpi/training/config.py), because it has none for pi0 itself. Unlike openpi, the third camera, which is black on
DROID, is left out, and LIBERO is mixed in. What it needs and how fast it would run is in docs/scale.md.
"""

import dataclasses
from pathlib import Path

from data_pipelines import droid, droid_synthetic, libero_synthetic
from vla_jax.data.schema import DatasetConfig
from vla_jax.learners.imitation import ImitationConfig
from vla_jax.nets import vla_transformer
from vla_jax.policies.flow import FlowConfig
from vla_jax.training.adapters import Lora
from vla_jax.training.fit import FitConfig
from vla_jax.training.optimizers import AdamW
from vla_jax.training.recipe import DataConfig, EvaluationConfig, PolicyConfig, Recipe, TextConfig
from vla_jax.training.sharding import MeshConfig
from vla_jax.training.tuning import TuningConfig

CAMERAS = ("exterior", "wrist")
STATE_DIM = 8  # DROID: joints and gripper; LIBERO: hand pose and two fingers. Each is normalized by its own statistics
ACTION_DIM, ACTION_HORIZON, EXECUTION_HORIZON = 32, 16, 8
VOCABULARY = "runs/paligemma/tokenizer.model"  # PaliGemma's, which the user brings
DROID, KEPT = "data/droid/1.0.1", "data/droid/kept.json"  # kept: `vla-jax data` or data_pipelines.droid writes it
LIBERO = tuple(f"data/libero_{suite}_no_noops/1.0.0" for suite in ("spatial", "object", "goal", "10"))
REMAT = "dots_with_no_batch_dims_saveable"  # attention alone is computed twice; docs/scale.md compares
QUICK = Path("runs/pi0_droid")
BASE = "runs/pi0_base"  # what `vla-jax import` made of openpi's pi0_base


def paper(seed: int = 0) -> Recipe:
    """3.2B parameters. 100,000 updates of 256; peak learning rate 5e-5, held after 1,000 steps of warm-up."""
    steps = 100_000
    return Recipe(
        name="pi0_droid/paper",
        policy=PolicyConfig(
            vla_transformer.pi0(CAMERAS, STATE_DIM, remat=REMAT),
            FlowConfig(ACTION_HORIZON, ACTION_DIM, time_distribution="pi0"),
        ),
        learner=ImitationConfig(ema_decay=0.99),
        optimizer=optimizer(),
        fit=FitConfig(steps, log_every=100, checkpoint_every=5000, mesh=MeshConfig(data=1, fsdp=-1), seed=seed),
        evaluation=EvaluationConfig((), EXECUTION_HORIZON),
        data=mixture(DROID, LIBERO, batch_size=256, size=224, kept=KEPT, seed=seed),
        text=TextConfig(vocabulary=VOCABULARY, prompt_length=48),
    )


def one_gpu(seed: int = 0) -> Recipe:
    """Everything trains, from openpi's base, in 30,000 updates of 32; only the inputs of layers are kept."""
    full, steps = paper(seed), 30_000
    return dataclasses.replace(
        full,
        name="pi0_droid/one_gpu",
        policy=PolicyConfig(vla_transformer.pi0(CAMERAS, STATE_DIM), full.policy.decoder),
        fit=FitConfig(steps, log_every=100, checkpoint_every=5000, mesh=MeshConfig(data=1), seed=seed),
        data=dataclasses.replace(full.data, batch_size=32),
        start_from=BASE,
    )


def lora(seed: int = 0) -> Recipe:
    """As `one_gpu`, with adapters of openpi's ranks (`pi0_libero_low_mem_finetune`) and whole action projections."""
    return dataclasses.replace(
        one_gpu(seed),
        name="pi0_droid/lora",
        tuning=TuningConfig(
            lora=(
                Lora("backbone/mixture/prefix_layers/*kernel", rank=16, alpha=16.0),
                Lora("backbone/mixture/suffix_layers/*kernel", rank=32, alpha=32.0),
            ),
            train=("action_*", "time_*", "backbone/state_in/*"),
            keep_frozen_in="bfloat16",
        ),
        learner=ImitationConfig(ema_decay=0.0),
    )


def quick(seed: int = 0) -> Recipe:
    """1M parameters on generated pictures of 64 pixels: that the mixture trains, never that it acts."""
    text = TextConfig(prompt_length=48)
    backbone = vla_transformer.tiny(CAMERAS, STATE_DIM, text.tokenizer().vocab_size, text.prompt_length)
    full, steps = paper(seed), 200
    return dataclasses.replace(
        full,
        name="pi0_droid/quick",
        policy=PolicyConfig(dataclasses.replace(backbone, state_token="suffix"), full.policy.decoder),
        optimizer=dataclasses.replace(full.optimizer, peak_lr=1e-3, warmup_steps=20, end_lr=1e-3),
        fit=FitConfig(steps, log_every=20, checkpoint_every=100, seed=seed),
        data=quick_data(seed),
        text=text,
    )


def optimizer() -> AdamW:
    """openpi's AdamW: betas 0.9 and 0.95, next to no weight decay, gradients clipped to norm 1."""
    return AdamW(
        peak_lr=5e-5, end_lr=5e-5, warmup_steps=1000, decay_steps=1_000_000, b2=0.95, weight_decay=1e-10, clip_norm=1.0
    )


def mixture(
    droid_folder: str, libero_folders: tuple[str, ...], *, batch_size: int, size: int, kept: str | None, seed: int
) -> DataConfig:
    """DROID's joint positions and LIBERO's hand movements, one head of 32 dims; in proportion to their frames."""
    common = dict(resize=(size, size, "pad"), action_dim=ACTION_DIM)
    robot = droid.dataset_config(droid_folder, ACTION_HORIZON, actions="joint_position", kept=kept)
    simulated = [
        DatasetConfig(
            folder,
            ACTION_HORIZON,
            cameras=(("exterior", "image"), ("wrist", "wrist_image")),
            displacement_dims=tuple(range(6)),  # the gripper keeps its last command
            embodiment="libero",
            **common,
        )
        for folder in libero_folders
    ]
    datasets = (dataclasses.replace(robot, **common), *simulated)
    return DataConfig(datasets, batch_size, per_dataset=True, seed=seed)


def quick_data(seed: int) -> DataConfig:
    """What `generate` wrote."""
    folders = (str(QUICK / "droid/1.0.1"), (str(QUICK / "libero_synthetic/1.0.0"),))
    return mixture(*folders, batch_size=16, size=64, kept=None, seed=seed)


def generate() -> None:
    """Write the sets that `quick` trains on, a few seconds. Raises DataError when they exist."""
    config = droid_synthetic.DroidSyntheticConfig(num_episodes=6, shortest=30, longest=40)
    droid_synthetic.generate(QUICK / "droid/1.0.1", config)
    libero_synthetic.generate(QUICK / "libero_synthetic", num_episodes=6, image_size=64)
