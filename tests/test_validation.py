"""A recipe whose data holds episodes out is judged on them while it trains."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from recipes import tabletop_demo
from tests.data.memory_set import clean_set, write_rlds
from vla_jax import experiment
from vla_jax.data.demonstrations import DemonstrationDataset
from vla_jax.data.normalization import NormalizationConfig
from vla_jax.data.schema import DatasetConfig
from vla_jax.training import trained

NAMES = tuple("abcdefg")


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """The demo's, narrowed to a set of 12 short episodes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_rlds(clean_set(num_episodes=12, num_steps=6), tmp_path / "small" / "1.0.0")
    dataset = DatasetConfig(str(folder), 8, (("front", "front"), ("wrist", "wrist")), holdout=0.4, embodiment="arm")
    demo = tabletop_demo.imitation(str(tmp_path))
    backbone = dataclasses.replace(demo.policy.backbone, state_dim=7, image_size=(12, 16))
    decoder = dataclasses.replace(demo.policy.decoder, action_dim=7)
    return dataclasses.replace(
        demo,
        policy=dataclasses.replace(demo.policy, backbone=backbone, decoder=decoder),
        data=dataclasses.replace(demo.data, datasets=(dataset,), normalization=NormalizationConfig()),
    )


def parts(recipe):
    edges = trained.make_edges(recipe, experiment.data_statistics(recipe))
    return trained.make_learner(recipe), edges


def test_held_out_episodes_are_those_that_training_does_not_see(recipe):
    _, edges = parts(recipe)
    (config,) = recipe.data.datasets
    train, held_out = (
        DemonstrationDataset(dataclasses.replace(config, subset=subset), edges.normalizer, edges.encode)
        for subset in ("train", "validation")
    )
    frames = [data.selection.frame(np.arange(data.num_frames)) for data in (train, held_out)]
    assert sorted(np.concatenate(frames).tolist()) == list(range(72)) and len(frames[1]) > 0


class StandsStill:
    """Acts with 0 in normalized units; its loss is that of the examples' own weights, 1 each."""

    def loss(self, params, key, batch):
        return batch.weight.sum() / jnp.maximum(batch.weight.sum(), 1e-6), {}

    def initial_memory(self, batch_size):
        return ()

    def act(self, actor_params, key, observation, memory):
        return jnp.zeros((len(observation.state), 8, 7)), memory


def test_the_metrics_are_those_of_all_held_out_frames_in_the_robots_units(recipe):
    _, edges = parts(recipe)
    metrics = experiment.validation(recipe, StandsStill(), edges, NAMES, {})({}, 0)
    (config,) = recipe.data.datasets
    data = DemonstrationDataset(dataclasses.replace(config, subset="validation"), edges.normalizer, edges.encode)
    recorded = data.dataset.columns["action"]
    starts, frames = data.dataset.episode_starts, data.selection.frame(np.arange(data.num_frames))
    stops = starts[data.dataset.episode_of(frames) + 1]
    # A chunk of 8 from every frame, cut at the end of its episode of 6; 0 is the middle of the 1st and 99th percentile.
    steps = np.concatenate([recorded[frame:stop] for frame, stop in zip(frames, stops, strict=True)])
    expected = np.abs(steps - np.asarray(edges.normalizer.action_shift)).mean(0)
    found = [metrics.pop(f"validation/action_error_{name}") for name in NAMES]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert metrics == pytest.approx({"validation/loss": 1.0, "validation/action_error": expected.mean()}, rel=1e-5)


def test_each_dataset_is_measured_with_the_statistics_of_its_own_training_part(recipe, tmp_path):
    """The second set is the first with actions three times as large: so is its error."""
    larger = clean_set(num_episodes=12, num_steps=6)
    larger.columns["action"] = larger.columns["action"] * np.float32(3)
    (config,) = recipe.data.datasets
    folder = write_rlds(larger, tmp_path / "large" / "1.0.0")
    datasets = (config, dataclasses.replace(config, path=str(folder), embodiment="giant"))
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, datasets=datasets, per_dataset=True))
    by_dataset = experiment.dataset_statistics(recipe)
    edges = trained.make_edges(recipe, by_dataset[config.key])
    for each, statistics in zip(datasets, by_dataset.values(), strict=True):
        train = DemonstrationDataset(each, edges.normalizer, edges.encode)
        rows = train.dataset.columns["action"][train.selection.frame(np.arange(train.num_frames))]
        np.testing.assert_allclose(statistics.actions.mean, rows.mean(0), rtol=1e-4, atol=1e-5)
        assert statistics.actions.count == train.num_frames < 72
    metrics = experiment.validation(recipe, StandsStill(), edges, NAMES, by_dataset)({}, 0)
    found = [metrics[f"validation/{name}/action_error"] for name in ("arm", "giant")]
    assert found[1] == pytest.approx(3 * found[0], rel=1e-3)


def test_without_held_out_episodes_there_is_nothing_to_validate(recipe):
    learner, edges = parts(recipe)
    (config,) = recipe.data.datasets
    whole = dataclasses.replace(recipe.data, datasets=(dataclasses.replace(config, holdout=0.0),))
    assert experiment.validation(dataclasses.replace(recipe, data=whole), learner, edges, NAMES, {}) is None
