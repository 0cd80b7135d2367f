"""Rows say where they come from: the observation of row i is i, its reward 10 + i, its action (i, -i)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_jax.core import errors
from vla_jax.data import trajectories, trajectory_sets
from vla_jax.data.trajectories import HindsightConfig
from vla_jax.losses.td import chunk_return


def flat(lengths, ended, goals=None):
    """Episodes of these numbers of rows; `ended` says whose last action ended the task."""
    n = sum(lengths)
    rows = np.arange(n, dtype=np.float32)
    discounts = np.ones(n, np.float32)
    discounts[(np.cumsum(lengths) - 1)[np.asarray(ended, bool)]] = 0
    actions = np.stack([rows, -rows], axis=1)
    return trajectory_sets.from_arrays(rows[:, None], actions, 10 + rows, discounts, np.array(lengths), goals)


def rows_of(observation):
    return observation[..., 0].astype(int).tolist()


def test_chunks_end_as_in_the_picture():
    batch = trajectories.chunks_at(flat([5, 3], [True, False]), jnp.array([0, 3, 4, 5, 6]), 3)
    assert rows_of(batch.observation) == [0, 3, 4, 5, 6]
    assert batch.action_mask.astype(int).tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0]]
    assert batch.rewards.tolist() == [[10, 11, 12], [13, 14, 0], [14, 0, 0], [15, 16, 0], [16, 0, 0]]
    assert batch.discounts.tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1], [1, 1, 1]]
    assert batch.actions[..., 0].astype(int).tolist() == [[0, 1, 2], [3, 4, 4], [4, 4, 4], [5, 6, 6], [6, 6, 6]]
    assert rows_of(batch.next_observation) == [3, 4, 4, 7, 7]
    # being cut off bootstraps after the steps that were run, being ended does not
    assert chunk_return(batch.rewards, batch.discounts, batch.action_mask, 0.5)[1].tolist() == [0.125, 0, 0, 0.25, 0.5]


def test_a_task_that_was_over_before_its_episode_earns_nothing_more():
    """A discount of 0 in mid-episode, as relabelled single-task sets have it."""
    resident = flat([5], [False]).replace(discounts=jnp.array([1.0, 0, 1, 1, 1]))
    batch = trajectories.chunks_at(resident, jnp.array([0, 2]), 3)
    assert batch.discounts.tolist() == [[1, 0, 0], [1, 1, 1]]
    returns, factor = chunk_return(batch.rewards, batch.discounts, batch.action_mask, 1.0)
    assert returns.tolist() == [10 + 11, 12 + 13] and factor.tolist() == [0, 1]


def test_starts_are_the_rows_with_a_whole_chunk_ahead():
    resident = flat([5, 4], [True, False])
    assert trajectories.chunk_starts(resident, 3).tolist() == [0, 1, 2, 5]
    # DQC leaves out the last `action_horizon` rows of every trajectory
    assert trajectories.chunk_starts(resident, 3, arrives=True).tolist() == [0, 1, 5]
    assert trajectories.chunk_starts(resident, 3, whole=False).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    only = np.arange(9) > 3
    assert trajectories.chunk_starts(resident, 3, whole=False, rows=only).tolist() == [4, 5, 6, 7]
    with pytest.raises(errors.DataError, match="no row to start"):
        trajectories.chunk_starts(resident, 6)


def test_batches_are_uniform_over_the_starts_and_take_any_leading_shape():
    resident = flat([5, 4], [True, False])
    starts = trajectories.chunk_starts(resident, 3)
    batch = jax.jit(trajectories.chunk_batch, static_argnums=(3, 4))(resident, starts, jax.random.key(0), (2, 2000), 3)
    assert batch.actions.shape == (2, 2000, 3, 2)
    shares = jnp.bincount(batch.observation.astype(int).ravel(), length=9) / 4000
    assert jnp.allclose(shares, jnp.array([1, 1, 1, 0, 0, 1, 0, 0, 0]) / 4, atol=0.03)


_chunks_at = jax.jit(trajectories.chunks_at, static_argnums=2)


@settings(max_examples=60)
@given(st.data())
def test_no_chunk_leaves_its_episode(data):
    """Against a loop that walks every episode step by step; 24 rows always, so that little is compiled."""
    cuts = data.draw(st.sets(st.integers(1, 23), max_size=8))
    bounds = np.array([0, *sorted(cuts), 24])
    lengths = np.diff(bounds).tolist()
    ended = data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    horizon, whole = data.draw(st.sampled_from([1, 2, 5])), data.draw(st.booleans())
    resident = flat(lengths, ended)
    try:
        starts = trajectories.chunk_starts(resident, horizon, whole=whole).tolist()
    except errors.DataError:
        starts = []
    batch = jax.device_get(_chunks_at(resident, jnp.arange(24), horizon))
    for start in range(24):
        episode = np.searchsorted(bounds, start, side="right") - 1
        stop = bounds[episode + 1]
        steps = [row for row in range(start, min(start + horizon, stop)) if row < stop - 1 or ended[episode]]
        assert (start in starts) == (len(steps) == horizon if whole else bool(steps))
        assert batch.action_mask[start].sum() == len(steps)
        assert batch.actions[start, : len(steps), 0].astype(int).tolist() == steps
        assert batch.rewards[start].tolist() == [10 + row for row in steps] + [0] * (horizon - len(steps))
        is_end = bool(steps) and steps[-1] + 1 == stop
        assert is_end == (batch.discounts[start].min() == 0)
        assert is_end or int(batch.next_observation[start, 0]) == start + len(steps)


def test_goals_give_the_targets_of_dqc():
    """Distance j < h gives discount**j and no bootstrap, j = 0 gives 1, j = h and out of reach discount**h V."""
    resident = flat([8, 8], [True, False])
    goals = jnp.array([2, 4, 5, 7, 1, 12])  # 0, 2, 3 and 5 steps ahead, behind, in the other episode
    batch = trajectories.goals_at(resident, jnp.full(6, 2), goals, 3)
    returns, factor = chunk_return(batch.rewards, batch.discounts, batch.action_mask, 0.5)
    assert returns.tolist() == [1, 0.25, 0, 0, 0, 0]
    assert factor.tolist() == [0, 0, 0.125, 0.125, 0.125, 0.125]
    assert batch.extras["num_steps"].tolist() == [0, 2, 3, 3, 3, 3]
    assert batch.extras["success"].tolist() == [True, True, False, False, False, False]
    assert rows_of(batch.next_observation) == [2, 4, 5, 5, 5, 5]
    assert rows_of(batch.goal) == goals.tolist()
    assert batch.action_mask.all()  # the episode has these steps, whatever the goal
    assert batch.actions[1, :, 0].tolist() == [2, 3, 4]


def test_a_padded_goal_chunk_bootstraps_from_the_last_row():
    batch = trajectories.goals_at(flat([8, 8], [True, False]), jnp.array([6, 6]), jnp.array([0, 7]), 4)
    # the second has the last row for its goal: being there counts, although nothing was done there
    assert batch.action_mask.astype(int).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0]]
    returns, factor = chunk_return(batch.rewards, batch.discounts, batch.action_mask, 0.5)
    assert factor.tolist() == [0.5, 0] and returns.tolist() == [0, 0.5]
    assert rows_of(batch.next_observation) == [7, 7]
    assert batch.extras["success"].tolist() == [False, True]


def test_goals_come_from_where_the_probabilities_say():
    resident = flat([10, 30], [False, False])
    rows = jnp.full(4000, 4)

    def drawn(**chances):
        config = HindsightConfig(**{"current": 0, "future": 0, "random": 0, **chances})
        goals = jax.jit(trajectories.draw_goals, static_argnums=3)(resident, jax.random.key(1), rows, config)
        return np.bincount(goals, minlength=40) / len(goals)

    assert drawn(current=1)[4] == 1
    assert np.allclose(drawn(future=1)[5:10], 1 / 5, atol=0.03)
    assert np.allclose(drawn(random=1), 1 / 40, atol=0.015)
    # 5 with 1/2, 6 with 1/4, 7 and 8 with 1/8 and 1/16; farther than the end is the end
    near = drawn(future=1, geometric_discount=0.5)
    assert np.allclose(near[5:10], [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 16], atol=0.03)
    mixed = drawn(current=0.2, future=0.5, random=0.3)
    assert np.allclose([mixed[4], mixed[5:10].sum(), mixed[10:].sum()], [0.2075, 0.5375, 0.225], atol=0.03)


def test_goals_are_shown_as_their_own_representation():
    goals = np.arange(8, dtype=np.float32)[:, None] * np.array([[100.0, 1.0]])
    batch = trajectories.goals_at(flat([8], [False], goals.astype(np.float32)), jnp.array([0]), jnp.array([3]), 2)
    assert batch.goal.tolist() == [[300, 3]]


def test_impossible_probabilities_are_refused():
    with pytest.raises(errors.ConfigError, match="add up to 1"):
        HindsightConfig(current=0.5)
    with pytest.raises(errors.ConfigError, match="geometric_discount"):
        HindsightConfig(geometric_discount=1.0)
