"""The small reproduction of EXPO runs whole at tiny size, and its recipes name what can be built."""

import dataclasses
import functools

import jax
import numpy as np

from recipes import expo_reach
from scripts import reproduce_expo

TINY = dataclasses.replace(
    expo_reach.quick(), env_steps=40, num_envs=4, warmup_decisions=2, critic_updates=2, batch_size=8, num_evaluations=2
)


def test_an_arm_gives_a_curve_and_entries_of_a_table():
    experiment = dataclasses.replace(TINY, imitation_updates=20, evaluation_episodes=8, num_demonstrations=10)
    run = functools.partial(reproduce_expo.run_arm, experiment, reproduce_expo.ARMS["expo"][1])
    # unoptimized code: compiling is what takes time
    outcome = jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})(jax.random.key(0))
    outcome = jax.device_get(outcome)
    assert outcome.curve.shape == (3, 8) and outcome.final.shape == (256,)
    entries = list(reproduce_expo._entries("expo", outcome, experiment, 0, 1.0))
    assert {entry.cell for entry in entries} == {"area", "final", "base_right"}
    area = next(entry for entry in entries if entry.cell == "area")
    np.testing.assert_allclose(area.mean, outcome.curve.mean(), rtol=1e-6)


def test_rlpd_learns_in_the_same_loop():
    run = functools.partial(reproduce_expo.run_arm, TINY, reproduce_expo.ARMS["rlpd"][1])
    assert jax.eval_shape(run, jax.random.key(0)).curve.shape == (3, TINY.evaluation_episodes)


def test_the_papers_experiment_has_the_papers_values():
    paper = expo_reach.paper()
    config = paper.learner
    assert (config.num_critics, config.num_min_critics, config.num_base_samples) == (10, 2, 8)
    assert (paper.critic_updates, paper.batch_size, config.discount, config.target_update_rate) == (
        20,
        256,
        0.99,
        0.005,
    )
    assert not config.clip_candidates and config.initial_temperature == 1.0 and paper.decoder.schedule.num_steps == 10
    state = jax.eval_shape(_built, jax.random.key(0))
    assert state.params["critic"]["heads"]["from_actions"]["kernel"].shape == (10, 2, 256)


def _built(key):
    paper = dataclasses.replace(expo_reach.paper(), imitation_updates=1)
    env = reproduce_expo.ChunkedEnv(reproduce_expo.BatchedEnv(paper.env.make(reproduce_expo.PROMPTS)))
    rows = reproduce_expo.reach.demonstrate(env.env.env, key, 4, paper.demonstrator)
    _, state = reproduce_expo._learner(paper, {}, reproduce_expo._buffer(rows.replace(extras={})), key)
    return state
