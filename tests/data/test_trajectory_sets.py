"""See rich_rlds.py for the set: episodes of frames 0-4, 5-7 (cut off) and 8-13; the reward of a frame is its number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.core import errors
from vla_jax.data import trajectories, trajectory_sets
from vla_jax.data.demonstrations import compute_statistics
from vla_jax.data.normalization import NormalizationConfig, Normalizer
from vla_jax.data.schema import DatasetConfig, TransitionConfig
from vla_jax.data.trajectory_sets import Episode
from vla_jax.data.transitions import TransitionDataset
from vla_jax.losses.returns import monte_carlo_returns


def arrays(rewards, discounts, lengths):
    n = len(rewards)
    values = (np.arange(n, dtype=np.float32)[:, None], np.zeros((n, 1), np.float32), np.array(rewards, np.float32))
    return trajectory_sets.from_arrays(*values, np.array(discounts, np.float32), np.array(lengths))


def test_episodes_become_rows_and_an_extra_observation_is_only_arrived_at():
    def episode(start, num_steps, extra, terminated):
        rows = np.arange(start, start + num_steps + extra, dtype=np.float32)[:, None]
        return Episode({"x": rows}, rows[:num_steps] * 2, np.ones(num_steps), terminated)

    resident = trajectory_sets.from_episodes([episode(0, 2, 1, True), episode(3, 2, 1, False), episode(6, 2, 0, True)])
    assert resident.discounts.tolist() == [1, 0, 1, 1, 1, 1, 1, 0]
    assert resident.episode_start.tolist() == [0, 0, 0, 3, 3, 3, 6, 6]
    assert resident.episode_stop.tolist() == [3, 3, 3, 6, 6, 6, 8, 8]
    assert resident.actions[:, 0].tolist() == [0, 2, 0, 6, 8, 0, 12, 14]
    assert trajectories.chunk_starts(resident, 1).tolist() == [0, 1, 3, 4, 6, 7]
    batch = trajectories.chunks_at(resident, jnp.array([1, 4, 7]), 1)
    assert batch.next_observation["x"][:, 0].tolist() == [2, 5, 7]
    assert batch.discounts[:, 0].tolist() == [0, 1, 0]


@pytest.mark.parametrize("last_step", ["acts", "shows"])
def test_a_resident_dataset_gives_the_batches_of_the_loader(rich_folder, last_step):
    config = DatasetConfig(
        path=str(rich_folder),
        action_horizon=3,
        cameras=(),
        state_keys=("joints", "gripper"),
        action_key="action_dict/joints",
        transitions=TransitionConfig(last_step=last_step),
    )
    normalizer = Normalizer.create(compute_statistics(config), NormalizationConfig(mode="z_score"))
    dataset = TransitionDataset(config, normalizer, lambda text: (np.zeros(1, int), np.zeros(1, bool)))
    frames = dataset.selection.frame(np.arange(dataset.num_frames))
    resident = trajectory_sets.from_dataset(config, normalizer)
    assert trajectories.chunk_starts(resident, 3, whole=False).tolist() == frames.tolist()
    ours, theirs = trajectories.chunks_at(resident, jnp.asarray(frames), 3), dataset.batch(frames)
    for name in ("rewards", "action_mask"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
    mask = theirs.action_mask
    np.testing.assert_array_equal(np.where(mask, ours.discounts, 0), np.where(mask, theirs.discounts, 0))
    np.testing.assert_allclose(ours.actions[mask], theirs.actions[mask], rtol=1e-6)
    for name in ("observation", "next_observation"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), getattr(ours, name), getattr(theirs, name)
        )


def test_pictures_are_refused(rich_folder):
    config = DatasetConfig(path=str(rich_folder), action_horizon=1, cameras=(("wrist", "wrist"),))
    with pytest.raises(errors.ConfigError, match="cameras"):
        trajectory_sets.from_dataset(config, None)


def test_returns_are_those_of_the_losses():
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=9)
    discounts = [1, 1, 1, 0, 1, 1, 1, 1, 1]  # the first ends its task, the second is cut off at its last row
    found = trajectory_sets.with_mc_returns(arrays(rewards, discounts, [4, 5]), 0.9, tail_value=-10.0).mc_returns
    first = monte_carlo_returns(jnp.array(rewards[:4]), jnp.array(discounts[:4]) * 1.0, jnp.zeros(4, bool), 0.9)
    tails = jnp.full(4, -10.0)  # the four steps of the second lead to its last row, whose value is the tail's
    second = monte_carlo_returns(jnp.array(rewards[4:8]), jnp.ones(4), jnp.zeros(4, bool), 0.9, tails)
    np.testing.assert_allclose(found, [*first, *second, -10.0], rtol=1e-5)


def test_the_best_episodes_are_those_of_highest_return():
    """Returns 3, 0 (its reward of 99 is on a row that never acts), 3 and 1."""
    rewards = [1, 2, 0, 99, 3, 0, 1, 0]
    resident = arrays(rewards, [1, 0, 1, 1, 0, 1, 0, 1], [2, 2, 2, 2])
    assert np.flatnonzero(trajectory_sets.best_episodes(resident, 50)).tolist() == [0, 1, 4, 5]
    assert np.flatnonzero(trajectory_sets.best_episodes(resident, 1)).tolist() == [0, 1]  # at least one
    assert trajectory_sets.best_episodes(resident, 100).all()
    with pytest.raises(errors.ConfigError, match="percent"):
        trajectory_sets.best_episodes(resident, 0)


def test_arrays_that_do_not_fit_are_refused():
    with pytest.raises(errors.DataError, match="rewards"):
        trajectory_sets.from_arrays(np.zeros((3, 1)), np.zeros((3, 1)), np.zeros(2), np.ones(3), np.array([3]))
    with pytest.raises(errors.DataError, match="observations, row 1"):
        bad = np.array([[0.0], [np.nan], [0.0]])
        trajectory_sets.from_arrays(bad, np.zeros((3, 1)), np.zeros(3), np.ones(3), np.array([3]))
    with pytest.raises(errors.DataError, match="episode 0"):
        trajectory_sets.from_episodes([Episode(np.zeros((4, 1)), np.zeros((2, 1)), np.zeros(2), True)])
