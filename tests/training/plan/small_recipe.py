"""A recipe that compiles in seconds and whose data nobody opens."""

import dataclasses

from vla_jax.data.schema import DatasetConfig
from vla_jax.learners.imitation import ImitationConfig
from vla_jax.nets import vla_transformer
from vla_jax.nets.gemma import GemmaConfig
from vla_jax.nets.siglip import SiglipConfig
from vla_jax.policies.flow import FlowConfig
from vla_jax.training.fit import FitConfig
from vla_jax.training.optimizers import AdamW
from vla_jax.training.recipe import DataConfig, EvaluationConfig, PolicyConfig, Recipe, TextConfig
from vla_jax.training.sharding import MeshConfig

HORIZON, BATCH_SIZE = 4, 8


def quick() -> Recipe:
    text = TextConfig(prompt_length=48)
    expert = GemmaConfig(32, depth=1, mlp_dim=64, num_heads=2, num_kv_heads=1, head_dim=16)
    backbone = vla_transformer.tiny(
        ("front",),
        state_dim=8,
        vocab_size=text.tokenizer().vocab_size,
        prompt_length=text.prompt_length,
        vision=SiglipConfig(32, depth=1, mlp_dim=64, num_heads=2, patch_size=16, image_size=32),
        prefix_expert=expert,
        suffix_expert=dataclasses.replace(expert, mlp_dim=32),
        unroll=False,
    )
    dataset = DatasetConfig("not/opened", HORIZON, cameras=(("front", "image"),))
    return Recipe(
        name="small",
        policy=PolicyConfig(backbone, FlowConfig(HORIZON, 7)),
        learner=ImitationConfig(),
        optimizer=AdamW(peak_lr=1e-3),
        # fsdp_min_size: even these parameters are split.
        fit=FitConfig(20, log_every=1, checkpoint_every=5, mesh=MeshConfig(fsdp_min_size=1)),
        evaluation=EvaluationConfig((), HORIZON),
        data=DataConfig((dataset,), batch_size=BATCH_SIZE),
        text=text,
    )
