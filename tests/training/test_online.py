"""Collection from an environment into the buffer, with a learner whose every choice is known."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from tests.evaluation.point_env import PointEnv
from vla_jax.core.types import Observation, Transitions
from vla_jax.training import sharding
from vla_jax.training.online import ReplayConfig, ReplaySource

CONFIG = ReplayConfig(num_envs=8, capacity=512, warmup_decisions=3, rounds=2, critic_updates=3, batch_size=16)
HORIZON = 5  # does not divide the episode length of 12


class Straight:
    """Runs to the corner that the prompt names; the buffer keeps state, prompt and a stamp of the time."""

    actor: ClassVar = {"speed": jnp.ones(())}

    def observe(self, actor_params, key, observation):
        stored = {"state": observation.state, "goal": observation.prompt[:, 0]}
        return stored, stored

    def explore(self, actor_params, key, view):
        goal = jnp.array(PointEnv.corners)[view["goal"] - 1]
        action = jnp.clip((goal - view["state"]) / 0.1 / HORIZON, -1, 1) * actor_params["speed"]
        return jnp.repeat(action[:, None], HORIZON, axis=1)


def source(**overrides):
    return ReplaySource(PointEnv(), Straight(), Straight.actor, dataclasses.replace(CONFIG, **overrides))


def rows(collector):
    return jax.tree.map(lambda leaf: np.asarray(leaf[: int(collector.buffer.size)]), collector.buffer.rows)


def test_batches_have_rounds_updates_and_rows_in_front():
    made = source()
    batch, metrics = made.next(0, Straight.actor)
    assert batch.rewards.shape == (2, 3, 16, HORIZON)
    example = made.example()
    assert jax.tree.map(jnp.shape, example) == jax.tree.map(jnp.shape, batch)
    # three warm-up decisions and one, in 8 environments; those that finished sit out the next
    assert 8 * 2 <= metrics["collect/buffer_rows"] <= 8 * 4


def test_no_row_crosses_episodes_and_every_end_is_observed():
    made = source()
    for step in range(40):
        made.next(step, Straight.actor)
    stored = rows(made.state())
    moved = np.linalg.norm(stored.next_observation["state"] - stored.observation["state"], axis=-1)
    # in 5 steps of 0.1 per axis nobody gets further than 0.71; a reset in between would jump across the square
    assert moved.max() <= 0.1 * HORIZON * np.sqrt(2) + 1e-5
    assert (stored.observation["goal"] == stored.next_observation["goal"]).all()
    assert stored.action_mask[:, 0].all()  # a row without a single step run is never stored
    ended = stored.discounts[:, -1] == 0
    corner = np.array(PointEnv.corners)[stored.observation["goal"] - 1]
    at_goal = np.linalg.norm(stored.next_observation["state"] - corner, axis=-1) < 0.05
    assert ended.any() and (at_goal[ended & (stored.rewards.sum(1) > 0.5)]).all()


def test_a_time_limit_keeps_its_discount_and_its_last_observation():
    made = source()
    still = {"speed": jnp.zeros(())}  # never arrives: every episode ends at the time limit
    for step in range(10):
        made.next(step, still)
    stored = rows(made.state())
    lengths = stored.action_mask.sum(1)
    assert set(lengths.tolist()) == {5, 2}  # 12 = 5 + 5 + 2
    assert (stored.discounts == 1).all()
    np.testing.assert_array_equal(stored.next_observation["state"], stored.observation["state"])


def test_the_success_rate_is_that_of_the_latest_episodes():
    made = source()
    for step in range(30):
        _, metrics = made.next(step, Straight.actor)
    assert metrics["collect/success_rate"] > 0.6  # some paths cross the wrong corner


def test_there_may_be_more_environments_than_episodes_are_remembered():
    made = source(num_envs=300, capacity=900)
    for step in range(6):
        metrics = made.next(step, Straight.actor)[1]
    assert metrics["collect/success_rate"] > 0 and made.state().outcomes.capacity == 300


def test_a_restored_source_gives_the_same_batches():
    made = source()
    for step in range(3):
        made.next(step, Straight.actor)
    saved = jax.tree.map(jnp.copy, made.state())
    expected = [made.next(step, Straight.actor) for step in range(3, 6)]
    again = source()
    assert jax.tree.map(jnp.shape, again.state()) == jax.tree.map(jnp.shape, saved)
    again.restore(saved)
    found = [again.next(step, Straight.actor) for step in range(3, 6)]
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_edges_of_the_policy_are_applied():
    halved = ReplaySource(
        PointEnv(),
        Straight(),
        Straight.actor,
        CONFIG,
        normalize=lambda observation: observation.replace(state=observation.state + 100),
        unnormalize=lambda actions, state: 0 * actions,
    )
    halved.next(0, Straight.actor)
    stored = rows(halved.state())
    assert stored.observation["state"].min() >= 100
    np.testing.assert_array_equal(stored.next_observation["state"], stored.observation["state"])


def test_eight_devices_collect_what_one_does():
    alone, spread = source(), source()
    spread.use_mesh(sharding.make_mesh(sharding.MeshConfig(data=8)))
    for step in range(4):
        expected, found = alone.next(step, Straight.actor), spread.next(step, Straight.actor)
    assert len(spread.state().env.physics.sharding.device_set) == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


def test_a_part_of_every_batch_is_recorded_and_seen_as_experience_is():
    far = jnp.full((7, 2), 5.0)
    observation = Observation({}, {}, far, jnp.ones((7, 1), jnp.int32), jnp.ones((7, 1), bool))
    steps = (7, HORIZON)
    recorded = Transitions(
        observation,
        jnp.zeros((*steps, 2)),
        jnp.arange(35.0).reshape(steps),
        jnp.ones(steps),
        jnp.ones(steps, bool),
        observation,
        {},
    )
    made = ReplaySource(PointEnv(), Straight(), Straight.actor, CONFIG, recorded=recorded, recorded_fraction=0.25)
    batch, _ = made.next(0, Straight.actor)
    assert jax.tree.map(jnp.shape, made.example()) == jax.tree.map(jnp.shape, batch)
    is_recorded = np.asarray(batch.observation["state"][..., 0] == 5.0)
    assert (is_recorded.sum(axis=-1) == 4).all()
    np.testing.assert_array_equal(batch.extras["source"] == 0, is_recorded)
    # rows are drawn whole: the rewards of a recorded chunk are consecutive
    assert (np.diff(np.asarray(batch.rewards)[is_recorded], axis=-1) == 1).all()
