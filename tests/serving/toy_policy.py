"""A tiny untrained flow policy as a checkpoint on disk, with two cameras and statistics that are not the identity."""

from pathlib import Path

import jax
import numpy as np

from vla_jax.core import functional
from vla_jax.data.normalization import FieldStatistics, Statistics
from vla_jax.data.schema import DatasetConfig
from vla_jax.envs.mjx.tabletop import TabletopConfig
from vla_jax.learners.imitation import ImitationConfig
from vla_jax.nets.conv_film import ConvFilmConfig
from vla_jax.policies.flow import FlowConfig
from vla_jax.serving.keys import RequestReader
from vla_jax.training import trained
from vla_jax.training.checkpoints import Checkpoints
from vla_jax.training.fit import FitConfig
from vla_jax.training.optimizers import AdamW
from vla_jax.training.recipe import DataConfig, EvaluationConfig, PolicyConfig, Recipe, TextConfig

HORIZON, ACTION_DIM, STATE_DIM, SIZE = 6, 3, 8, (16, 16)
NAMES = ("x", "y", "gripper")


def recipe(decoder=None, **dataset):
    """Cameras are called base and wrist, as in no robot's keys; the data call them top and hand."""
    decoder = decoder or FlowConfig(HORIZON, ACTION_DIM + 1, num_flow_steps=4, clip_actions=True)
    backbone = ConvFilmConfig(
        cameras=("base", "wrist"), state_dim=STATE_DIM, vocab_size=257, prompt_length=24, num_suffix_tokens=HORIZON,
        image_size=SIZE, channels=4, text_embed=4, text_features=4, hidden=16, feature_dim=8, suffix_width=8,
        suffix_blocks=1,
    )  # fmt: skip
    data = DatasetConfig(
        "data/1.0.0",
        HORIZON,
        (("base", "top"), ("wrist", "hand")),
        state_keys=("joints", "grip"),
        action_dim=ACTION_DIM + 1,
        **dataset,
    )
    return Recipe(
        name="toy",
        policy=PolicyConfig(backbone, decoder),
        learner=ImitationConfig(),
        optimizer=AdamW(peak_lr=1e-3),
        fit=FitConfig(num_train_steps=1),
        evaluation=EvaluationConfig((TabletopConfig(),), execution_horizon=2),
        data=DataConfig((data,), batch_size=2),
        text=TextConfig(prompt_length=24),
    )


def statistics():
    rows = np.random.default_rng(0).normal(size=(100, STATE_DIM)) * 2 + 1
    return Statistics(FieldStatistics.of(rows), FieldStatistics.of(rows[:, :ACTION_DIM] * 3))


def random_params(constructor):
    """Large enough that every input moves the actions; drawn without compiling an initializer."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        return (rng.normal(size=leaf.shape) * 1.2 / np.sqrt(max(1, np.prod(leaf.shape[:-1])))).astype(leaf.dtype)

    return jax.tree.map(draw, functional.describe(constructor)[1])


def write_checkpoint(folder: Path) -> Path:
    config = recipe()
    params = random_params(config.policy.constructor())
    saved = Checkpoints(folder)
    saved.save(1, {"params": params}, params, {}, trained.contract(config, statistics(), NAMES, 20.0))
    saved.close()
    return folder


def reader(policy, **options):
    return RequestReader.of(policy, **options)


def observation(rng, size=SIZE, **more):
    """A request in the flat layout."""
    return {
        "observation/base": rng.integers(0, 256, (*size, 3), dtype=np.uint8),
        "observation/wrist": rng.integers(0, 256, (*size, 3), dtype=np.uint8),
        "observation/state": rng.normal(size=STATE_DIM),
        "prompt": "pick up the cup",
        **more,
    }


def local_act(policy, request, seed):
    """What the policy answers without any server: one observation, one call."""
    from vla_jax.core.types import Observation

    one = Observation(
        {name: image[None] for name, image in request.images.items()},
        {name: np.array([shown]) for name, shown in request.image_mask.items()},
        request.state[None],
        request.prompt[None],
        request.prompt_mask[None],
    )
    normalized = policy.edges.normalize(one)
    act = _ACT.setdefault(id(policy), jax.jit(policy.act))
    chunk, _ = act(policy.params, jax.random.key(seed), normalized, ())
    return np.asarray(policy.edges.unnormalize(chunk, one.state))[0]


_ACT = {}
