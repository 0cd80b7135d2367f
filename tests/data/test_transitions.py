"""See rich_rlds.py for the set: episodes of frames 0-4, 5-7 (cut off) and 8-13; the reward of a frame is its number."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vla_jax.core.errors import ConfigError, DataError
from vla_jax.core.types import Transitions
from vla_jax.data.demonstrations import compute_statistics
from vla_jax.data.loader import Loader
from vla_jax.data.normalization import NormalizationConfig, Normalizer
from vla_jax.data.samples.goals import GoalConfig
from vla_jax.data.schema import DatasetConfig, TransitionConfig
from vla_jax.data.transitions import TransitionDataset, n_step_return
from vla_jax.losses.td import chunk_return


def tokenizer(text):
    return np.zeros(2, int), np.ones(2, bool)


def make_config(folder, transitions=None, **changes):
    values = dict(
        action_horizon=3,
        cameras=(("wrist", "wrist"),),
        state_keys=("joints", "gripper"),
        action_key="action_dict/joints",
        transitions=transitions or TransitionConfig(),
    )
    return DatasetConfig(path=str(folder), **{**values, **changes})


def make_dataset(config):
    return TransitionDataset(config, normalizer_of(config), tokenizer)


def normalizer_of(config):
    return Normalizer.create(compute_statistics(config), NormalizationConfig(mode="none"))


def frames_of(observation):
    return observation.state[:, 0].tolist()


def test_a_chunk_stops_where_its_episode_does(rich_folder):
    batch = make_dataset(make_config(rich_folder)).batch(np.array([0, 2, 3, 4]))
    assert frames_of(batch.observation) == [0, 2, 3, 4]
    assert frames_of(batch.next_observation) == [3, 4, 4, 4]  # of ended ones it is not looked at
    assert batch.action_mask.astype(int).tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0]]
    assert batch.rewards.tolist() == [[0, 1, 2], [2, 3, 4], [3, 4, 0], [4, 0, 0]]
    assert batch.discounts.tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert batch.actions[0].tolist() == [[1, 10], [2, 20], [3, 30]]
    assert batch.extras["weight"].tolist() == [1] * 4


def test_being_cut_off_is_no_end(rich_folder):
    """Frames 5-7: what the action at 7 led to was never seen, so 7 is where one bootstraps from."""
    batch = make_dataset(make_config(rich_folder)).batch(np.array([5, 6]))
    assert frames_of(batch.next_observation) == [7, 7]
    assert batch.action_mask.astype(int).tolist() == [[1, 1, 0], [1, 0, 0]]
    assert batch.rewards.tolist() == [[5, 6, 0], [6, 0, 0]]
    assert batch.discounts.tolist() == [[1, 1, 0], [1, 0, 0]]
    factor = chunk_return(batch.rewards, batch.discounts, batch.action_mask, 0.5)[1]
    assert factor.tolist() == [0.25, 0.5]  # not 0: the value of frame 7 counts


def test_no_sample_starts_where_nothing_follows(rich_folder):
    acts, shows = (make_dataset(make_config(rich_folder, TransitionConfig(last_step=s))) for s in ("acts", "shows"))
    assert acts.selection.frame(np.arange(acts.num_frames)).tolist() == [*range(7), *range(8, 14)]
    assert shows.selection.frame(np.arange(shows.num_frames)).tolist() == [*range(4), 5, 6, *range(8, 13)]


def test_a_last_step_that_only_shows_is_where_one_arrives(rich_folder):
    batch = make_dataset(make_config(rich_folder, TransitionConfig(last_step="shows"))).batch(np.array([2, 3]))
    assert frames_of(batch.next_observation) == [4, 4]
    assert batch.action_mask.astype(int).tolist() == [[1, 1, 0], [1, 0, 0]]
    assert batch.discounts.tolist() == [[1, 0, 0], [0, 0, 0]]  # the step from 3 to 4 ends the task


def test_n_steps_are_summed_into_one(rich_folder):
    config = make_config(rich_folder, TransitionConfig(n_step=3, discount=0.5), action_horizon=1)
    batch = make_dataset(config).batch(np.array([0, 3, 5, 9]))
    assert batch.actions.shape == (4, 1, 2) and batch.action_mask.all()
    assert frames_of(batch.next_observation) == [3, 4, 7, 12]
    # 0 + 1/2 + 2/4; 3 + 4/2; 5 + 6/2; 9 + 10/2 + 11/4
    assert batch.rewards[:, 0].tolist() == [1, 5, 8, 16.75]
    # A learner's own 0.5 times these: 0.5**3, 0 (ended), 0.5**2 (cut off after two), 0.5**3.
    assert (0.5 * batch.discounts[:, 0]).tolist() == [0.125, 0, 0.25, 0.125]


@settings(deadline=None)  # the first example compiles
@given(
    arrays.arrays(np.float32, (3, 4), elements=st.integers(-9, 9).map(float)),
    st.lists(st.integers(1, 4), min_size=3, max_size=3),
    st.lists(st.booleans(), min_size=3, max_size=3),
    st.sampled_from([0.5, 0.99, 1.0]),
)
def test_an_n_step_return_is_that_of_a_chunk(rewards, lengths, ends, discount):
    """Reduction: the learners' own `chunk_return` over the steps, and over the one summed step, agree."""
    is_run = np.arange(4) < np.array(lengths)[:, None]
    discounts = is_run.astype(np.float32)
    discounts[np.arange(3), np.array(lengths) - 1] -= np.array(ends)
    summed, factor = n_step_return(rewards, discounts, is_run, discount)
    expected = chunk_return(jnp.asarray(rewards), jnp.asarray(discounts), jnp.asarray(is_run), discount)
    found = chunk_return(jnp.asarray(summed), jnp.asarray(factor), jnp.ones((3, 1), bool), discount)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_goals_bring_rewards_of_their_own(rich_folder):
    goals = GoalConfig(0.0, 0.0, 1.0, goal_reward=0.0, step_reward=-1.0)
    dataset = make_dataset(make_config(rich_folder, goals=goals))
    batch = dataset.batch(np.array([0, 2, 6]))
    assert frames_of(batch.goal) == [4, 4, 7]
    assert frames_of(batch.next_observation) == [3, 4, 7]
    assert batch.rewards.tolist() == [[-1, -1, -1], [-1, 0, 0], [0, 0, 0]]
    assert batch.discounts.tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert batch.action_mask.astype(int).tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0]]
    assert dataset.selection.frame(np.arange(dataset.num_frames)).tolist() == [*range(4), 5, 6, *range(8, 13)]


def test_the_loader_serves_transitions(rich_folder):
    config = make_config(rich_folder)
    loader = Loader(config, batch_size=13, seed=0, tokenizer=tokenizer, normalizer=normalizer_of(config))
    batch = next(loader)
    loader.close()
    assert isinstance(batch, Transitions) and batch.goal is None
    assert sorted(frames_of(batch.observation)) == [*map(float, range(7)), *map(float, range(8, 14))]
    assert loader.metrics() == {"data/faults": 0.0}


def test_impossible_configs_are_refused(rich_folder):
    with pytest.raises(ConfigError, match="return of that many steps"):
        make_config(rich_folder, TransitionConfig(n_step=2))
    with pytest.raises(ConfigError, match="next_observation"):
        make_config(rich_folder, future_offset=1)
    for values in ({"n_step": 0}, {"discount": 0.0}, {"last_step": "flies"}):
        with pytest.raises(ConfigError, match=f"TransitionConfig.{next(iter(values))}"):
            TransitionConfig(**values)
    config = make_config(rich_folder)
    config = dataclasses.replace(config, transitions=TransitionConfig(reward_key="rewards"))
    with pytest.raises(DataError, match=r"(?s)no key \"steps/rewards\".*did you mean 'reward'"):
        compute_statistics(config)
