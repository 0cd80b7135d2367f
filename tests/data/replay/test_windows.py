"""Rows say where they come from: the observation of environment e at time t is 1000 e + t, its reward 10 times that."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_jax.core import errors
from vla_jax.data.replay import windows
from vla_jax.data.trajectories import Steps
from vla_jax.losses.td import chunk_return

ENVS, CAPACITY = 2, 8

_insert = jax.jit(windows.insert)
_sample = jax.jit(windows.sample, static_argnums=(2, 3), static_argnames="whole")
_ahead = jax.jit(windows.steps_ahead)


def empty(capacity=CAPACITY):
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    vector = jax.ShapeDtypeStruct((1,), jnp.float32)
    return windows.init(ENVS, capacity, Steps(vector, vector, scalar, scalar))


def steps_at(first, num_steps, discounts=None):
    number = 1000.0 * jnp.arange(ENVS)[:, None] + first + jnp.arange(num_steps, dtype=jnp.float32)[None]
    ones = jnp.ones((ENVS, num_steps))
    return Steps(number[..., None], -number[..., None], 10 * number, ones if discounts is None else discounts)


def filled(acts, discounts=None, capacity=CAPACITY):
    """One row at a time; `acts` [envs, n]."""
    acts = np.array(acts, bool)
    discounts = np.ones(acts.shape, np.float32) if discounts is None else np.array(discounts, np.float32)
    buffer = empty(capacity)
    for t in range(acts.shape[1]):
        at = slice(t, t + 1)
        buffer = _insert(buffer, steps_at(t, 1, jnp.array(discounts[:, at])), jnp.array(acts[:, at]))
    return buffer


def test_runs_end_as_in_the_picture():
    row = [1, 1, 1, 0, 1, 1, 1]
    assert _ahead(filled([row, [1] * 7])).tolist() == [[3, 2, 1, 0, 2, 1, 0, 0], [6, 5, 4, 3, 2, 1, 0, 0]]


def test_the_oldest_row_does_not_follow_the_newest():
    """Times 2 to 9 in 8 slots: the newest, 9, is in slot 1, and slot 2 holds the oldest, time 2."""
    assert _ahead(filled([[1] * 10, [1] * 10])).tolist() == [[1, 0, 7, 6, 5, 4, 3, 2]] * 2


def test_a_time_limit_bootstraps_and_a_termination_does_not():
    acts = [[1, 1, 0, 1, 1, 0, 0]] * 2
    discounts = [[1, 1, 1, 1, 0, 1, 1]] * 2  # cut off at 2; ended by the action at 4
    batch = _sample(filled(acts, discounts), jax.random.key(0), (400,), 3)
    factor = chunk_return(batch.rewards, batch.discounts, batch.action_mask, 0.5)[1]
    by_time = {int(o) % 1000: i for i, o in enumerate(batch.observation[:, 0])}
    assert sorted(by_time) == [0, 1, 3, 4]
    assert [float(factor[by_time[t]]) for t in (0, 1, 3, 4)] == [0.25, 0.5, 0, 0]
    assert [int(batch.next_observation[by_time[t], 0]) % 1000 for t in (0, 1)] == [2, 2]


@settings(max_examples=40)
@given(st.data())
def test_windows_cross_neither_an_end_nor_the_pointer(data):
    """Against the whole history, from which every window can be read off."""
    num_steps = data.draw(st.integers(2, 3 * CAPACITY))
    acts = np.array(data.draw(st.lists(st.lists(st.booleans(), min_size=24, max_size=24), min_size=2, max_size=2)))
    discounts = np.where(np.random.default_rng(num_steps).random(acts.shape) < 0.2, 0.0, 1.0)
    acts, discounts = acts[:, :num_steps], discounts[:, :num_steps]
    horizon, whole = data.draw(st.sampled_from([1, 3])), data.draw(st.booleans())
    buffer = filled(acts, discounts)
    batch = jax.device_get(_sample(buffer, jax.random.key(num_steps), (64,), horizon, whole=whole))

    def run(env, time):
        """How many steps go on from here, by the history."""
        there = range(time, num_steps - 1)
        return next((t - time for t in there if not acts[env, t]), max(num_steps - 1 - time, 0))

    oldest = max(0, num_steps - CAPACITY)
    allowed = {
        1000 * env + time
        for env in range(ENVS)
        for time in range(oldest, num_steps)
        if run(env, time) >= (horizon if whole else 1)
    }
    drawn = set(batch.observation[:, 0].astype(int).tolist())
    if not allowed:
        assert not batch.action_mask.any()
        return
    assert drawn <= allowed
    for i, first in enumerate(batch.observation[:, 0].astype(int)):
        env, time = divmod(first, 1000)
        count = min(run(env, time), horizon)
        numbers = [first + k for k in range(count)]
        assert batch.action_mask[i].tolist() == [k < count for k in range(horizon)]
        assert batch.rewards[i].tolist() == [10 * n for n in numbers] + [0] * (horizon - count)
        assert batch.actions[i, :count, 0].tolist() == [-n for n in numbers]
        assert batch.discounts[i, :count].tolist() == np.cumprod(discounts[env, time : time + count]).tolist()
        assert batch.next_observation[i, 0] == first + count


def test_samples_are_uniform_over_what_may_start():
    buffer = filled([[1, 1, 0, 1, 1], [0, 1, 1, 1, 1]])
    batch = _sample(buffer, jax.random.key(3), (2, 3000), 2, whole=True)
    assert batch.rewards.shape == (2, 3000, 2)
    shares = np.unique(batch.observation.astype(int), return_counts=True)
    assert shares[0].tolist() == [0, 1001, 1002]
    assert np.allclose(shares[1] / 6000, 1 / 3, atol=0.03)


def test_a_buffer_without_a_whole_window_gives_none():
    """The last slot of all runs one step of the two: it must not be taken for want of a better one."""
    batch = _sample(filled([[0] * 9, [0] * 7 + [1, 1]]), jax.random.key(0), (16,), 2, whole=True)
    assert not batch.action_mask.any()
    assert _sample(filled([[0] * 9, [0] * 7 + [1, 1]]), jax.random.key(0), (16,), 2).action_mask.sum() == 16


def test_many_steps_at_once_are_the_same_as_one_by_one():
    acts = jnp.ones((ENVS, 12), bool)
    buffer = empty()
    for first in (0, 5):
        buffer = windows.insert(buffer, steps_at(first, 5), acts[:, :5])
    buffer = windows.insert(buffer, steps_at(10, 2), acts[:, :2])
    jax.tree.map(np.testing.assert_array_equal, buffer, filled(acts))
    with pytest.raises(errors.ConfigError, match="smaller than one insertion"):
        windows.insert(buffer, steps_at(0, 12), acts)


def test_n_step_returns_are_those_of_the_chunk():
    acts, discounts = [[1, 1, 1, 0, 1, 1, 0, 0]] * 2, [[1, 1, 1, 1, 1, 0, 1, 1]] * 2
    batch = _sample(filled(acts, discounts), jax.random.key(0), (200,), 3)
    single = windows.n_step(batch, 0.9)
    assert single.actions.shape == (200, 1, 1) and single.rewards.shape == (200, 1)
    np.testing.assert_array_equal(single.actions[:, 0], batch.actions[:, 0])
    whole = chunk_return(batch.rewards, batch.discounts, batch.action_mask, 0.9)
    ours = chunk_return(single.rewards, single.discounts, single.action_mask, 0.9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, whole)
