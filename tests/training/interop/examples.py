"""Tiny policies of the shapes of `tests/fixtures/interop`, and its files."""

import tarfile
from pathlib import Path

import jax
import numpy as np

from vla_jax.core import functional
from vla_jax.data.normalization import FieldStatistics, Statistics
from vla_jax.data.schema import DatasetConfig
from vla_jax.learners.imitation import ImitationConfig
from vla_jax.nets.gemma import GemmaConfig
from vla_jax.nets.paligemma import PaliGemma, PaliGemmaConfig
from vla_jax.nets.siglip import SiglipConfig
from vla_jax.nets.vla_transformer import VlaTransformer, VlaTransformerConfig
from vla_jax.policies.flow import FlowConfig, FlowPolicy
from vla_jax.training.fit import FitConfig
from vla_jax.training.optimizers import AdamW
from vla_jax.training.recipe import DataConfig, EvaluationConfig, PolicyConfig, Recipe, TextConfig

FIXTURES = Path(__file__).parents[2] / "fixtures" / "interop"
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
LANGUAGE = GemmaConfig(width=24, depth=2, mlp_dim=40, num_heads=4, num_kv_heads=1, head_dim=8)
EXPERT = GemmaConfig(width=16, depth=2, mlp_dim=32, num_heads=4, num_kv_heads=1, head_dim=8)


def vision(mlp_dim: int) -> SiglipConfig:
    return SiglipConfig(width=16, depth=2, mlp_dim=mlp_dim, num_heads=2, patch_size=14, image_size=28)


def backbone(kind: str, **changes) -> VlaTransformerConfig:
    """`kind` is pi0 or pi05."""
    fields = dict(state_token="suffix") if kind == "pi0" else dict(state_token="text", adaptive_norm=True)
    fields = dict(state_dim=6, vocab_size=64, prompt_length=7, vision=vision(32), **fields) | changes
    return VlaTransformerConfig(cameras=CAMERAS, prefix_expert=LANGUAGE, suffix_expert=EXPERT, **fields)


def flow(kind: str) -> FlowConfig:
    return FlowConfig(5, 6, time_conditioning="concat" if kind == "pi0" else "adaptive_norm")


def policy(kind: str, **changes):
    """Constructor of the policy."""
    config = backbone(kind, **changes)
    return lambda rngs: FlowPolicy(flow(kind), VlaTransformer(config, rngs), rngs)


def random_params(constructor, seed: int = 0):
    """Every parameter random, also those that start at zero or one."""
    shapes = functional.describe(constructor)[1]
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: generator.normal(size=leaf.shape).astype(np.float32), shapes)


def paligemma_config() -> PaliGemmaConfig:
    return PaliGemmaConfig(cameras=("image",), vocab_size=64, prompt_length=5, vision=vision(24), language=LANGUAGE)


def paligemma(rngs) -> PaliGemma:
    return PaliGemma(paligemma_config(), rngs)


def openpi_folder(kind: str, folder: Path) -> Path:
    """The checkpoint of openpi, unpacked."""
    with tarfile.open(FIXTURES / f"openpi_{kind}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / kind


def inputs(file: str, prefix: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / file) as arrays:
        return {name.removeprefix(f"{prefix}/"): arrays[name] for name in arrays.files if name.startswith(f"{prefix}/")}


def large_paligemma_config() -> PaliGemmaConfig:
    """26M parameters, 105 MB in float32, in many tensors of at most 4 MB."""
    vision = SiglipConfig(width=128, depth=4, mlp_dim=512, num_heads=4, patch_size=14, image_size=28)
    language = GemmaConfig(width=512, depth=10, mlp_dim=1024, num_heads=8, num_kv_heads=1, head_dim=64)
    return PaliGemmaConfig(cameras=("image",), vocab_size=4096, prompt_length=5, vision=vision, language=language)


def recipe(kind: str, **changes) -> Recipe:
    """For a robot of 2 action dims; its data are never read."""
    decoder = flow(kind)
    return Recipe(
        name=f"tiny_{kind}",
        policy=PolicyConfig(backbone(kind, **changes), decoder),
        learner=ImitationConfig(),
        optimizer=AdamW(peak_lr=1e-3),
        fit=FitConfig(num_train_steps=1),
        evaluation=EvaluationConfig((), execution_horizon=1),
        data=DataConfig((DatasetConfig("nowhere", 5, cameras=tuple((name, name) for name in CAMERAS)),), batch_size=1),
        text=TextConfig(words=("push", "the", "block"), prompt_length=7),
    )


def statistics(state_dim: int = 6, action_dim: int = 2) -> Statistics:
    sides = [
        FieldStatistics(*[(float(i),) * dim for i in (0, 1, -2, 2, -3, 3)], count=9) for dim in (state_dim, action_dim)
    ]
    return Statistics(*sides)
