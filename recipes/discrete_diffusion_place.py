"""Discrete Diffusion VLA (arXiv 2508.20072) on a robot: one backbone, three ways to say a chunk, on `tabletop/place`.

    vla-jax train recipes/discrete_diffusion_place.py --run runs/discrete_diffusion_place/quick
    python scripts/reproduce_discrete_diffusion_place.py --seeds 0 1 2           # all arms, and their table
    vla-jax plan recipes/discrete_diffusion_place.py:paper --topology h100:4

The small arms share demonstrations, encoder, widths, optimizer and number of updates; what differs is the decoder:
tokens unmasked together (`quick`), tokens one after the other (`autoregressive`), flow matching (`flow`).
"""

import dataclasses

from recipes import tabletop_demo
from vla_jax.codecs.bins import uniform_bins
from vla_jax.data.pictures.augment import AugmentConfig
from vla_jax.data.schema import DatasetConfig
from vla_jax.envs.libero import LiberoTasks
from vla_jax.envs.mjx.tabletop import ACTION_NAMES
from vla_jax.learners.imitation import ImitationConfig
from vla_jax.nets import paligemma
from vla_jax.policies.bins import BinsConfig
from vla_jax.policies.discrete_diffusion import DiscreteDiffusionConfig
from vla_jax.samplers.maskgit import MaskedOptions
from vla_jax.training.adapters import Lora
from vla_jax.training.fit import FitConfig
from vla_jax.training.optimizers import AdamW
from vla_jax.training.recipe import DataConfig, EvaluationConfig, PolicyConfig, Recipe, TextConfig
from vla_jax.training.sharding import MeshConfig
from vla_jax.training.tuning import TuningConfig

FOLDER = "runs/discrete_diffusion_place"
NUM_BINS = 64  # even, between the 1 % and 99 % quantiles, which normalization puts at -1 and 1
HIDDEN = 640  # of the suffix; a multiple of the 40 tokens, as the causal one needs: 16 units belong to each
LOSS_SAMPLES = 8  # draws of masks, or of noise, per picture
VOCABULARY = "runs/paligemma/tokenizer.model"  # PaliGemma's, which the user brings
BASE = "runs/discrete_diffusion_base"  # of `vla-jax import --layout paligemma`, tables of tokens started anew


def quick(folder: str = FOLDER, seed: int = 0) -> Recipe:
    """Unmasked together in 12 rounds, the surest first (the paper's decoder)."""
    codec = uniform_bins(len(ACTION_NAMES), NUM_BINS)
    decoder = DiscreteDiffusionConfig(tabletop_demo.ACTION_HORIZON, codec, MaskedOptions(12), LOSS_SAMPLES)
    return _arm("quick", decoder, codec.action_dim * decoder.action_horizon, folder, seed)


def autoregressive(folder: str = FOLDER, seed: int = 0) -> Recipe:
    """One token after the other, in 40 rounds; the same weights, of which a causal suffix masks half."""
    codec = uniform_bins(len(ACTION_NAMES), NUM_BINS)
    decoder = BinsConfig(tabletop_demo.ACTION_HORIZON, codec)
    return _arm("autoregressive", decoder, codec.action_dim * decoder.action_horizon, folder, seed)


def flow(folder: str = FOLDER, seed: int = 0) -> Recipe:
    """The demo's decoder."""
    decoder = tabletop_demo.imitation(folder, seed).policy.decoder
    return _arm("flow", dataclasses.replace(decoder, loss_samples=LOSS_SAMPLES), decoder.action_horizon, folder, seed)


def paper(seed: int = 0) -> Recipe:
    """LIBERO-Spatial at the paper's sizes, on our nearest backbone: PaliGemma, 2.9B parameters, for OpenVLA's 7B.

    256 bins, chunks of 8, 12 rounds, adapters of rank 32, batch 32, 150,000 updates. Unlike the released script, which
    divides the learning rate by ten after 100,000 updates, it falls along a cosine to that tenth.
    """
    text = TextConfig(vocabulary=VOCABULARY, prompt_length=48)
    codec, steps = uniform_bins(7, 256), 150_000
    cameras = (("image", "image"), ("wrist_image", "wrist_image"))
    data = DatasetConfig(
        "data/libero_spatial_no_noops/1.0.0",
        action_horizon=8,
        cameras=cameras,
        displacement_dims=tuple(range(6)),  # the gripper keeps its last command
        resize=(224, 224, "pad"),
    )
    return Recipe(
        name="discrete_diffusion_place/paper",
        policy=PolicyConfig(
            paligemma.paligemma(tuple(name for name, _ in cameras), text.prompt_length, state_dim=8),
            DiscreteDiffusionConfig(8, codec, MaskedOptions(12)),
        ),
        learner=ImitationConfig(ema_decay=0.0),
        optimizer=AdamW(peak_lr=5e-4, decay_steps=steps, end_lr=5e-5),
        fit=FitConfig(steps, log_every=100, checkpoint_every=5000, mesh=MeshConfig(data=-1), seed=seed),
        evaluation=EvaluationConfig((LiberoTasks("libero_spatial"),), execution_horizon=8),
        data=DataConfig((data,), batch_size=32, augment=AugmentConfig(crop=0.95, colour_only=()), seed=seed),
        text=text,
        start_from=BASE,
        tuning=TuningConfig(
            lora=(Lora("backbone/*layers/*kernel", rank=32),),
            train=("embedding", "slots", "logits_out/*"),
            keep_frozen_in="bfloat16",
        ),
    )


def _arm(name: str, decoder, num_suffix_tokens: int, folder: str, seed: int) -> Recipe:
    """The demo's imitation with another decoder; the suffix is as wide in all arms."""
    demo = tabletop_demo.imitation(folder, seed)
    backbone = dataclasses.replace(demo.policy.backbone, num_suffix_tokens=num_suffix_tokens, hidden=HIDDEN)
    policy = PolicyConfig(backbone, decoder)
    return dataclasses.replace(demo, name=f"discrete_diffusion_place/{name}", policy=policy)
