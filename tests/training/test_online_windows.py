"""Windows of experience over several decisions, with a learner whose every choice is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.evaluation.point_env import PointEnv
from tests.training.test_online import CONFIG, HORIZON, Straight
from vla_jax.core import errors
from vla_jax.training.online_windows import WindowSource

WINDOW = 2 * HORIZON
STILL = {"speed": jnp.zeros(())}  # never arrives: every episode ends at the time limit of 12 steps
SLOW = {"speed": jnp.full((), 0.4)}


def source(window=WINDOW, **overrides):
    config = dataclasses.replace(CONFIG, **overrides)
    return WindowSource(PointEnv(), Straight(), Straight.actor, config, window=window, stride=HORIZON)


@pytest.fixture(scope="module")
def compiled():
    return source()


def drawn(made, actor, steps):
    made.restore(None)  # begins anew
    batches = [jax.device_get(made.next(step, actor)[0]) for step in range(steps)]
    return jax.tree.map(
        lambda *leaves: np.concatenate([leaf.reshape(-1, *leaf.shape[3:]) for leaf in leaves]), *batches
    )


def test_a_window_leads_from_what_its_first_decision_saw_to_what_was_seen_behind_its_last_step(compiled):
    rows = drawn(compiled, SLOW, 30)
    assert rows.rewards.shape[1] == WINDOW
    taken = np.where(rows.action_mask[..., None], rows.actions, 0).sum(axis=1)
    np.testing.assert_allclose(rows.next_observation["state"], rows.observation["state"] + 0.1 * taken, atol=1e-5)
    assert (rows.observation["goal"] == rows.next_observation["goal"]).all()
    lengths = rows.action_mask.sum(axis=1)
    assert (lengths == WINDOW).any() and lengths.min() >= 1
    assert (np.diff(rows.action_mask.astype(int), axis=1) <= 0).all()  # no step behind one that is missing


def test_windows_are_short_at_ends_of_episodes_and_where_nothing_followed_yet(compiled):
    rows = drawn(compiled, STILL, 30)
    assert set(rows.action_mask.sum(axis=1).tolist()) == {10, 7, 2, 5}  # from steps 0, 5, 10; at the newest decision
    assert (rows.discounts == 1).all()  # a time limit is no end
    np.testing.assert_allclose(rows.rewards, np.where(rows.action_mask, -0.01, 0), atol=1e-6)  # the price of a step


def test_arriving_is_rewarded_once_and_ends_the_task(compiled):
    rows = drawn(compiled, Straight.actor, 30)
    arrived = (rows.rewards > 0.5).any(axis=1)
    assert arrived.any() and ((rows.rewards[arrived] > 0.5).sum(axis=1) == 1).all()
    corner = np.array(PointEnv.corners)[rows.observation["goal"] - 1]
    distance = np.linalg.norm(rows.next_observation["state"] - corner, axis=-1)
    assert (distance[arrived] < 0.05).all() and (rows.discounts[arrived, -1] == 0).all()


def test_a_full_ring_still_gives_whole_windows_and_a_restored_source_the_same_batches():
    made = source(capacity=8 * 4)
    for step in range(20):
        made.next(step, SLOW)
    saved = jax.tree.map(jnp.copy, made.state())
    expected = [made.next(step, SLOW) for step in range(20, 24)]
    again = source(capacity=8 * 4)
    again.restore(saved)
    found = [again.next(step, SLOW) for step in range(20, 24)]
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    rows = jax.device_get(found[-1][0])
    taken = np.where(rows.action_mask[..., None], rows.actions, 0).sum(axis=-2)
    np.testing.assert_allclose(rows.next_observation["state"], rows.observation["state"] + 0.1 * taken, atol=1e-5)
    assert found[-1][1]["collect/buffer_rows"] == 8 * 4


def test_windows_that_cannot_be_are_refused():
    with pytest.raises(errors.ConfigError, match="multiple of the 5 steps"):
        source(window=7)
    with pytest.raises(errors.ConfigError, match="above 16"):
        source(capacity=16)
