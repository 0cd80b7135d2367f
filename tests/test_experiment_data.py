"""What a recipe's DataConfig does in a run: augmentation, statistics of every dataset, and faults in the metrics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from recipes import tabletop_demo
from tests.data.memory_set import clean_set, write_rlds
from vla_jax import experiment
from vla_jax.core.errors import CheckpointError, ConfigError
from vla_jax.data.demonstrations import compute_statistics
from vla_jax.data.normalization import Normalizer
from vla_jax.data.pictures.augment import AugmentConfig
from vla_jax.data.schema import DatasetConfig
from vla_jax.learners.imitation import Imitation
from vla_jax.training import checkpoints, recipe_sources, sharding, step, trained
from vla_jax.training.plain import from_plain, to_plain
from vla_jax.training.recipe import DataConfig


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """The demo's, narrowed to two small sets whose numbers differ."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    datasets = []
    for name, scale in (("one", 1.0), ("two", 3.0)):
        episodes = clean_set(num_episodes=3, num_steps=6)
        episodes.columns["action"] = episodes.columns["action"] * np.float32(scale)
        folder = write_rlds(episodes, tmp_path / name / "1.0.0")
        datasets.append(DatasetConfig(str(folder), 8, (("front", "front"), ("wrist", "wrist")), embodiment=name))
    demo = tabletop_demo.imitation(str(tmp_path))
    backbone = dataclasses.replace(demo.policy.backbone, state_dim=7, image_size=(12, 16))
    decoder = dataclasses.replace(demo.policy.decoder, action_dim=7)
    return dataclasses.replace(
        demo,
        policy=dataclasses.replace(demo.policy, backbone=backbone, decoder=decoder),
        data=DataConfig(tuple(datasets), batch_size=4),
    )


class ByBrightness(nnx.Module):
    """The smallest policy that looks: one action for how bright the pictures are."""

    action_horizon, action_dim = 8, 7

    def __init__(self, rngs):
        self.out = nnx.Linear(1, 7, rngs=rngs)

    def loss(self, key, batch):
        seen = sum(image.astype(jnp.float32).mean((1, 2, 3)) for image in batch.observation.images.values())
        error = self.out(seen[:, None] / 255)[:, None] - batch.actions
        return jnp.square(error).mean((1, 2)), {"policy/brightness": seen.mean()}


def test_a_policy_trains_with_augmentation(recipe):
    data = dataclasses.replace(recipe.data, augment=AugmentConfig(shift=1, brightness=0.2))
    recipe = dataclasses.replace(recipe, data=data)
    edges = trained.make_edges(recipe, experiment.data_statistics(recipe))
    learner = Imitation(ByBrightness, optax.sgd(0.1))
    source = recipe_sources.of_recipe(recipe, learner, edges, {})
    mesh = sharding.make_mesh(sharding.MeshConfig(data=1), jax.devices()[:1])
    built = step.build(learner, source.example(), mesh, augment=experiment.augmentation(recipe))
    carry = built.init(source.example())
    for number in range(2):
        batch, metrics = source.next(number, None)
        assert metrics == {"data/faults": 0.0}
        carry, _ = built.run(carry, jax.device_put(batch))
    source.close()
    assert int(carry.train_step) == 2 and np.isfinite(float(carry.sums["policy/loss"]))
    plain = sum(float(image.astype(float).mean()) for image in batch.observation.images.values())
    assert abs(float(carry.sums["policy/brightness"]) / 2 - plain) > 0.1  # factors up to 20 % either way


def test_every_dataset_is_normalized_by_its_own_statistics(recipe):
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, per_dataset=True))
    found = experiment.dataset_statistics(recipe)
    assert list(found) == ["one:one/1.0.0:train", "two:two/1.0.0:train"]
    for config, statistics in zip(recipe.data.datasets, found.values(), strict=True):
        assert statistics == compute_statistics(config)
    edges = trained.make_edges(recipe, next(iter(found.values())))
    source = recipe_sources.of_recipe(recipe, trained.make_learner(recipe), edges, found)
    first, second = source._loader.datasets
    # The sets differ by a factor in their actions: by their own statistics they look the same.
    np.testing.assert_allclose(first.batch(np.arange(5)).actions, second.batch(np.arange(5)).actions, atol=1e-4)


def test_a_checkpoint_acts_with_the_statistics_that_are_named(recipe, tmp_path, monkeypatch):
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, per_dataset=True))
    by_dataset = experiment.dataset_statistics(recipe)
    first, second = by_dataset.values()
    metadata = checkpoints.plain(trained.contract(recipe, first, tuple("abcdefg"), 20.0, by_dataset))
    monkeypatch.setattr(checkpoints, "load_actor", lambda path, step=None: ({}, metadata))
    actions, state = np.ones((1, 8, 7), np.float32), np.zeros((1, 7), np.float32)
    for name, expected in ((None, first), ("two:two/1.0.0:train", second)):
        policy = trained.load(tmp_path, dataset=name)
        normalizer = Normalizer.create(expected, recipe.data.normalization)
        np.testing.assert_array_equal(policy.edges.unnormalize(actions, state), normalizer.unnormalize_actions(actions))
    with pytest.raises(CheckpointError, match=r"did you mean 'two:two/1\.0\.0:train'"):
        trained.load(tmp_path, dataset="two:two/1.0.0")


def test_a_data_config_survives_json_and_refuses_what_cannot_work(recipe):
    data = dataclasses.replace(recipe.data, augment=AugmentConfig(crop=0.9), temperature=2.0, image_cache_bytes=0)
    assert from_plain(DataConfig, to_plain(data)) == data
    twins = (recipe.data.datasets[0],) * 2
    with pytest.raises(ConfigError, match="told apart"):
        dataclasses.replace(recipe.data, datasets=twins, per_dataset=True)
    with pytest.raises(ConfigError, match="num_threads"):
        dataclasses.replace(recipe.data, num_threads=0)
