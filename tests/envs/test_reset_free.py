"""Whose turn it is, on a point that two policies push to and fro."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.envs.line_env import Line
from vla_jax.core import errors
from vla_jax.data.replay import device as replay
from vla_jax.envs.reset_free import ResetFree, TaskGraph, resume_where, rows_of
from vla_jax.envs.wrappers import BatchedEnv

SUCCESSES = (lambda state: state.physics >= 2, lambda state: state.physics <= 0)
KEY = jax.random.key(0)


def drive(env, moves, num_envs=1):
    """States before every step and after it; episodes go on where they ended."""
    batched = BatchedEnv(env)
    states, record = batched.reset(jax.random.split(KEY, num_envs)), []
    for move in moves:
        states = resume_where(env, states, jax.random.split(KEY, num_envs))
        before = states
        states = batched.step(states, jnp.full((num_envs, 1), move))
        record.append((before, states))
    return record


def test_success_hands_over_and_the_next_episode_begins_where_it_ended():
    record = drive(ResetFree(Line(), SUCCESSES), [1.0, 1.0, -1.0, -1.0, 1.0])
    tasks = [int(before.physics.task[0]) for before, _ in record]
    places = [float(after.physics.inner[0]) for _, after in record]
    rewards = [float(after.reward[0]) for _, after in record]
    assert tasks == [0, 0, 1, 1, 0]
    assert places == [1.0, 2.0, 1.0, 0.0, 1.0]
    assert rewards == [0.0, 1.0, 0.0, 1.0, 0.0]
    assert [float(after.discount[0]) for _, after in record] == [1.0, 0.0, 1.0, 0.0, 1.0]


def test_a_failure_is_tried_again_after_its_time_is_up():
    record = drive(ResetFree(Line(), SUCCESSES), [0.1] * 6)
    assert [int(before.physics.task[0]) for before, _ in record] == [0] * 6
    assert [bool(after.done[0]) for _, after in record] == [False] * 4 + [True, False]
    assert float(record[4][1].discount[0]) == 1.0  # a time limit is no end
    np.testing.assert_allclose(record[5][1].physics.inner, 0.6, rtol=1e-5)


def test_a_finished_episode_waits_for_its_turn_to_end():
    env = ResetFree(Line(), SUCCESSES)
    state = env.step(env.step(env.reset(KEY), jnp.array([2.0])), jnp.array([5.0]))
    assert float(state.physics.inner) == 2.0 and float(state.reward) == 0.0


def test_the_ends_of_the_environment_inside_do_not_count():
    env = ResetFree(Line(), (lambda state: state.physics >= 50, SUCCESSES[1]))
    state = env.step(env.reset(KEY), jnp.array([11.0]))
    assert not state.done and float(env.step(state, jnp.array([1.0])).physics.inner) == 12.0


def test_every_buffer_receives_its_own_turns_alone():
    record = drive(ResetFree(Line(), SUCCESSES), [1.0, 1.0, -1.0, -1.0, 1.0])
    row = jax.ShapeDtypeStruct((), jnp.float32)
    buffers = [replay.init(8, row), replay.init(8, row)]
    for before, after in record:
        turns, valid = before.physics.task, jnp.ones(1, bool)
        buffers = [
            replay.insert(buffer, after.physics.inner, rows_of(task, turns, valid))
            for task, buffer in enumerate(buffers)
        ]
    assert [int(buffer.size) for buffer in buffers] == [3, 2]
    np.testing.assert_array_equal(buffers[0].rows[:3], [1.0, 2.0, 1.0])
    np.testing.assert_array_equal(buffers[1].rows[:2], [1.0, 0.0])


def test_a_reset_may_come_after_some_episodes():
    record = drive(ResetFree(Line(), SUCCESSES, reset_every=2), [2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5])
    begins = [float(before.physics.inner[0]) for before, _ in record]
    assert begins == [0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0]


def test_a_graph_that_leads_nowhere_is_refused():
    with pytest.raises(errors.ConfigError, match="after_success"):
        TaskGraph(after_success=(1, 2))
    with pytest.raises(errors.ConfigError, match="successes"):
        ResetFree(Line(), SUCCESSES[:1])
