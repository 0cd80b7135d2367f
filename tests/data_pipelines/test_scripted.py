"""Scripted episodes on disk: what was run, what it paid, and how it ended."""

import dataclasses

import numpy as np
import pytest

from data_pipelines import scripted
from data_pipelines.scripted import MazeData, PickCubeData, ReachData
from vla_jax.core import errors
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.data.normalization import NormalizationConfig, Normalizer, Statistics
from vla_jax.data.schema import DatasetConfig, TransitionConfig
from vla_jax.envs.mjx.pick_cube import PickCubeConfig
from vla_jax.training import recorded
from vla_jax.training.recorded import RecordedConfig

CUBE = PickCubeConfig("slides", "sparse", lift_height=0.02, action_scale=0.1, episode_length=24)


def rows(path, state_dim, action_dim):
    """The set as single transitions."""
    config = RecordedConfig(DatasetConfig(str(path), 1, cameras=(), transitions=TransitionConfig()), 1.0)
    normalizer = Normalizer.create(Statistics.identity(state_dim, action_dim), NormalizationConfig("none"))
    no_words = lambda text: (np.zeros(1, np.int32), np.ones(1, bool))  # noqa: E731
    return recorded.transitions(config, 1, no_words, normalizer, discount=0.9)


def test_transitions_of_a_point_are_its_moves_and_failures_do_not_end_the_task(tmp_path):
    config = ReachData(num_episodes=60)
    data = RldsDataset(scripted.generate(tmp_path / "1.0.0", config))
    found = rows(tmp_path / "1.0.0", 2, 2)
    goes_on = found.discounts[:, 0] == 1  # what follows the end of a task is not written
    moved = found.next_observation.state - found.observation.state
    np.testing.assert_allclose(moved[goes_on], 0.1 * found.actions[goes_on, 0], atol=1e-5)
    wins = int((found.discounts == 0).sum())
    assert 0 < wins < 60 and found.rewards.sum() == wins  # 1 where a goal is touched, which ends the task
    np.testing.assert_array_equal(found.rewards == 1, found.discounts == 0)
    lengths = np.diff(data.episode_starts)
    assert len(lengths) == 60 and lengths.max() == config.env.episode_length
    assert len(found.rewards) == lengths.sum() - (60 - wins)  # nothing begins at the last row of one that was cut off


def test_every_step_in_the_maze_costs_but_the_one_that_arrives(tmp_path):
    scripted.generate(tmp_path / "1.0.0", MazeData(num_episodes=40))
    found = rows(tmp_path / "1.0.0", 2, 2)
    assert 0 < (found.discounts == 0).sum() < 40
    np.testing.assert_array_equal(found.rewards, np.where(found.discounts == 0, 0.0, -1.0))


@pytest.mark.parametrize("frame", ["base", "tool"])
def test_cubes_are_picked_up_by_the_actions_that_are_written(tmp_path, frame):
    config = PickCubeData(dataclasses.replace(CUBE, frame=frame), num_episodes=2, cameras=False)
    data = RldsDataset(scripted.generate(tmp_path / "1.0.0", config))
    assert len(np.diff(data.episode_starts)) == 2
    found = rows(tmp_path / "1.0.0", 10, 4)
    ends = found.discounts[:, 0] == 0
    assert ends.sum() == 2 and (found.rewards[:, 0] == ends).all() and found.actions.std() > 0.1
    if frame == "base":
        risen = found.observation.state[ends][:, 9] - 0.02  # the cube's centre, a step before
        assert (risen > 0.25 * CUBE.lift_height).all()
    else:  # it is told from where the hand is
        assert (np.linalg.norm(found.observation.state[ends][:, 7:], axis=1) < 0.05).all()


def test_a_finished_set_is_left_alone_and_another_is_refused(tmp_path):
    path = scripted.generate(tmp_path / "1.0.0", ReachData(num_episodes=2))
    before = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    scripted.generate(path, ReachData(num_episodes=2))
    assert {file.name: file.stat().st_mtime_ns for file in path.iterdir()} == before
    with pytest.raises(errors.DataError, match="another config"):
        scripted.generate(path, ReachData(num_episodes=3))
    with pytest.raises(errors.ConfigError, match="num_episodes"):
        MazeData(num_episodes=0)


def test_an_expert_that_is_shaken_too_much_is_no_expert(tmp_path):
    hopeless = dataclasses.replace(CUBE, episode_length=2)
    with pytest.raises(errors.EnvError, match="at least 5%"):
        scripted.generate(tmp_path / "1.0.0", PickCubeData(hopeless, num_episodes=2, cameras=False))
    assert not (tmp_path / "1.0.0").exists()
