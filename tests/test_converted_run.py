"""Policies that learned other actions than were recorded, or resized pictures, from training to success rates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recipes import tabletop_demo
from tests.data.memory_set import MemorySet, write_rlds
from tests.evaluation.point_env import PointEnv, expert
from vla_jax import experiment
from vla_jax.core.errors import CheckpointError, ConfigError
from vla_jax.core.types import Observation
from vla_jax.data.action_space import ActionSpace
from vla_jax.data.demonstrations import DemonstrationDataset
from vla_jax.data.normalization import NormalizationConfig, Normalizer
from vla_jax.data.pictures.resize import resize
from vla_jax.data.schema import DatasetConfig
from vla_jax.envs.mjx.tabletop import ACTION_NAMES, STATE_NAMES, TabletopConfig
from vla_jax.evaluation import rollouts
from vla_jax.nets.conv_film import ConvFilmConfig
from vla_jax.policies.flow import FlowConfig
from vla_jax.training import trained
from vla_jax.training.fit import FitConfig
from vla_jax.training.recipe import DataConfig, EvaluationConfig, PolicyConfig, TextConfig
from vla_jax.training.sharding import MeshConfig

HORIZON, SIZE = 4, (12, 16)
PLACES = ((0, 0), (1, 1), (2, 2))  # of the hand: the first three actions move the first three numbers of the state
ENV = TabletopConfig("push", image_size=20, episode_length=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A set with the names of the tabletop, pictures of another size and other proportions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        rng = np.random.default_rng(0)
        frames = 2 * 6
        columns = {
            "observation/state": rng.normal(size=(frames, len(STATE_NAMES))).astype(np.float32),
            "action": rng.uniform(-1, 1, (frames, len(ACTION_NAMES))).astype(np.float32),
        }
        pictures = {
            f"observation/{name}": rng.integers(0, 256, (frames, 18, 20, 3), dtype=np.uint8)
            for name in ("front", "wrist")
        }
        words = {"language_instruction": [ENV.instructions[0]] * frames}
        yield write_rlds(MemorySet((6, 6), columns, words, pictures), tmp_path_factory.mktemp("set") / "push/1.0.0")


def recipe_of(folder, **dataset):
    data = DatasetConfig(str(folder), HORIZON, (("front", "front"), ("wrist", "wrist")), **dataset)
    backbone = ConvFilmConfig(
        cameras=("front", "wrist"), state_dim=len(STATE_NAMES), vocab_size=257, prompt_length=64,
        num_suffix_tokens=HORIZON, image_size=SIZE, channels=4, text_embed=4, text_features=4, hidden=16,
        feature_dim=8, suffix_width=8, suffix_blocks=1,
    )  # fmt: skip
    demo = tabletop_demo.imitation()
    return dataclasses.replace(
        demo,
        policy=PolicyConfig(backbone, FlowConfig(HORIZON, len(ACTION_NAMES), num_flow_steps=2)),
        fit=FitConfig(num_train_steps=2, log_every=1, checkpoint_every=2, mesh=MeshConfig(data=1)),
        evaluation=EvaluationConfig((ENV,), execution_horizon=2, num_episodes=2, batch_size=2),
        data=DataConfig((data,), batch_size=2, normalization=NormalizationConfig(hidden_state_dims=(0,))),
        text=TextConfig(prompt_length=64),
    )


CONVERSIONS = [
    dict(resize=(*SIZE, "pad")),
    dict(resize=(*SIZE, "crop"), action_kind="delta", relative_dims=PLACES),
    dict(resize=(*SIZE, "stretch"), action_kind="absolute", relative_dims=PLACES),
]


@pytest.mark.parametrize("dataset", CONVERSIONS[1:], ids=["crop, delta", "stretch, absolute"])
def test_a_policy_trains_and_is_judged_in_a_simulator(folder, tmp_path, dataset, monkeypatch):
    monkeypatch.setenv("VLA_JAX_COMPILE_CACHE", jax.config.jax_compilation_cache_dir)
    experiment.train(recipe_of(folder, **dataset), tmp_path, quiet=True)
    policy = trained.load(tmp_path)
    assert policy.edges.resize == dataset["resize"]
    (episodes,) = experiment.evaluate(policy).values()
    assert episodes.success.shape == (2,) and (episodes.length >= 1).all() and np.isfinite(episodes.returns).all()


@pytest.mark.parametrize("dataset", CONVERSIONS, ids=["pad", "crop, delta", "stretch, absolute"])
def test_what_training_sees_comes_back_as_it_was_recorded(folder, dataset):
    """Recorded -> converted and normalized, by the loader -> back, by the edges; pictures are those of the loader."""
    recipe = recipe_of(folder, **dataset)
    edges = trained.make_edges(recipe, experiment.data_statistics(recipe))
    data = DemonstrationDataset(recipe.data.datasets[0], edges.normalizer, edges.encode)
    frames = np.arange(12)
    batch = data.batch(frames)
    states, actions = data.dataset.columns["observation/state"], data.dataset.columns["action"]
    ahead = np.minimum(frames[:, None] + np.arange(HORIZON), frames[:, None] // 6 * 6 + 5)
    back = jax.jit(edges.unnormalize)(batch.actions, states)
    np.testing.assert_allclose(back, actions[ahead], atol=1e-5)
    np.testing.assert_allclose(edges.action_space.to_policy(back, states), batch.actions, atol=1e-5)
    seen = np.zeros((12, 18, 20, 3), np.uint8)
    assert data.dataset.read_images(frames, "observation/front", seen).all()
    observation = Observation(
        {"front": seen}, {"front": np.ones(12, bool)}, states, batch.observation.prompt, batch.observation.prompt_mask
    )
    normalized = jax.jit(edges.normalize)(observation)
    np.testing.assert_array_equal(normalized.images["front"], batch.observation.images["front"])
    np.testing.assert_array_equal(normalized.images["front"][3], resize(seen[3], dataset["resize"]))
    np.testing.assert_allclose(normalized.state, batch.observation.state, atol=1e-5)


@pytest.mark.parametrize("kind", ["delta", "absolute"])
def test_a_policy_that_learned_another_kind_acts_as_one_that_did_not(kind):
    ones = np.ones(2, np.float32)
    normalizer = Normalizer(0 * ones, ones, 0.25 * ones, 3 * ones, NormalizationConfig())
    space = ActionSpace.create(normalizer, kind, ((0, 1), (1, 0)), "test")

    def converted(actor_params, key, observation, memory):
        actions, memory = expert(actor_params, key, observation, memory)
        return space.to_policy(actions, observation.state), memory

    key, params = jax.random.key(2), {"speed": jnp.float32(1)}
    plain = rollouts.Rollout(PointEnv(), expert, 4).evaluate(params, key, 6, 6)
    found = rollouts.Rollout(PointEnv(), converted, 4, unnormalize=space.to_robot).evaluate(params, key, 6, 6)
    assert plain.success.all()
    np.testing.assert_array_equal(found.length, plain.length)
    np.testing.assert_allclose(found.returns, plain.returns, rtol=1e-4)


def test_of_several_sets_the_one_that_is_named_says_how_to_act(folder, tmp_path, monkeypatch):
    recipe = recipe_of(folder, resize=(*SIZE, "pad"), embodiment="one")
    (first,) = recipe.data.datasets
    other = dict(embodiment="two", resize=(*SIZE, "crop"), action_kind="delta", relative_dims=PLACES)
    second = dataclasses.replace(first, **other)
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, datasets=(first, second)))
    metadata = trained.contract(recipe, experiment.data_statistics(recipe), ACTION_NAMES, 20.0)
    monkeypatch.setattr(trained.checkpoints, "load_actor", lambda path, step=None: ({}, metadata))
    for name, dataset in ((None, first), (first.key, first), (second.key, second)):
        edges = trained.load(tmp_path, dataset=name).edges
        space = edges.action_space
        assert (edges.resize, space.kind, space.relative_dims) == (
            dataset.resize, dataset.action_kind, dataset.relative_dims,
        )  # fmt: skip
    with pytest.raises(CheckpointError, match="did you mean 'two:push"):
        trained.load(tmp_path, dataset="two:push/1.0.0")


def test_what_cannot_be_turned_back_is_refused(folder):
    statistics = experiment.data_statistics(recipe_of(folder))
    with pytest.raises(ConfigError, match=r"relative_dims\n.*state dim below 12"):
        trained.make_edges(recipe_of(folder, action_kind="delta", relative_dims=((0, 12),)), statistics)
    with pytest.raises(ConfigError, match=r"resize\n.*\[12, 16\], policy\.backbone\.image_size"):
        trained.make_edges(recipe_of(folder, resize=(16, 12, "pad")), statistics)
    recipe = recipe_of(folder)
    with pytest.raises(ConfigError, match="size of front"):
        experiment.make_env(recipe, ENV, trained.make_edges(recipe, statistics))
