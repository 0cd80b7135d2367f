"""How often goals are touched while nothing is known about them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from recipes import expo_reach
from scripts import inspect_expo_start, reproduce_expo
from vla_jax.envs.planar.reach import ReachEnv
from vla_jax.evaluation import table_specs, tables

EASY = dataclasses.replace(
    expo_reach.fine(),
    env=dataclasses.replace(expo_reach.fine().env, radius=0.45),
    env_steps=48,
    num_envs=4,
    warmup_decisions=2,
    critic_updates=1,
    batch_size=8,
    num_evaluations=2,
    imitation_updates=50,
)


def test_a_hit_that_pays_nothing_ends_the_episode_and_counts():
    env = inspect_expo_start.Unrewarded(EASY.env, reproduce_expo.PROMPTS)
    goal = jnp.array(EASY.env.goal)
    outcome = env.judge(goal, goal)
    assert outcome.success and outcome.terminal and outcome.reward == 0
    task = inspect_expo_start.Unrewarded
    touched = jax.jit(lambda key: inspect_expo_start.hits(task, EASY, {"edited": False}, key))(jax.random.key(0))
    # with goals three steps away an episode of the imitated base is over before its time
    assert touched.shape == (48,) and touched.sum() >= 1


def test_the_first_hit_is_counted_from_one_and_is_the_length_of_a_run_without():
    touched = jnp.array([False, False, True, True])
    assert inspect_expo_start.first_hit(touched) == 3
    assert inspect_expo_start.first_hit(jnp.zeros(7, bool)) == 7


def test_hits_with_hidden_rewards_are_per_thousand_steps():
    touched = np.zeros(200, bool)
    touched[[3, 50, 150]] = True
    entry = inspect_expo_start._entry("fine_expo", "hidden", 0, touched, {})
    np.testing.assert_allclose(entry.mean, 15.0)
    assert entry.records == {"hidden": [20.0, 10.0]}


def test_every_row_and_cell_is_in_the_table():
    spec = table_specs.TABLES[inspect_expo_start.TABLE]
    assert {row.name for row in spec.rows} == set(inspect_expo_start.ARMS)
    keys = jax.random.split(jax.random.key(0), 1)
    found = {}
    for arm in inspect_expo_start.ARMS:
        measure = functools.partial(inspect_expo_start.of_seeds, arm, inspect_expo_start.MEASURES, EASY)
        found[arm] = jax.eval_shape(measure, keys)
        assert set(found[arm]) <= {column.name for column in spec.columns}
    assert "edited" in found["fine_expo"] and "edited" not in found["fine_best_of_8"]
    assert found["fine_expo"]["hidden"].shape == (1, 24) and "first_hit" not in found["fine_best_of_16"]
    entries = [inspect_expo_start._entry("fine_expo", "sample", seed, np.ones(1024, bool), {}) for seed in (0, 1)]
    assert "100.0 %" in tables.to_markdown(spec, entries)


def test_hits_of_a_run_are_those_of_the_tables_run_with_the_same_key():
    """The rewards that the reproduction's loop collects, asked of its own buffer."""
    env = reproduce_expo.ChunkedEnv(reproduce_expo.BatchedEnv(ReachEnv(EASY.env, reproduce_expo.PROMPTS)))
    keys, changes = jax.random.split(jax.random.key(1), 6), {"edited": False}

    @jax.jit
    def both(key):
        learner, demonstrations, carry = reproduce_expo.begin(env, EASY, changes, keys)
        for key_of_part in jax.random.split(keys[4], EASY.num_evaluations):
            learn_key, _ = jax.random.split(key_of_part)
            carry = reproduce_expo.learn(env, EASY, learner, demonstrations, carry, learn_key)
        return inspect_expo_start.hits(ReachEnv, EASY, changes, key), carry[0][1].rows.rewards[:, 0] == 1

    touched, rewarded = both(jax.random.key(1))
    assert 0 < touched.sum() < touched.size
    np.testing.assert_array_equal(touched, rewarded[: touched.size])
