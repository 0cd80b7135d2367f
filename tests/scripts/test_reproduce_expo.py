"""The small reproduction of EXPO runs whole at tiny size, and its recipes name what can be built."""

import dataclasses
import functools

import jax
import numpy as np

from recipes import expo_reach
from scripts import reproduce_expo

TINY = dataclasses.replace(
    expo_reach.study(), env_steps=40, num_envs=4, warmup_decisions=2, critic_updates=2, batch_size=8, num_evaluations=2
)


def test_an_arm_gives_a_curve_and_entries_of_a_table():
    experiment = dataclasses.replace(TINY, imitation_updates=20, evaluation_episodes=8, num_demonstrations=10)
    run = functools.partial(reproduce_expo.run_arm, experiment, reproduce_expo.ARMS["expo"][1])
    outcome = jax.jit(run)(jax.random.key(0))
    outcome = jax.device_get(outcome)
    assert outcome.curve.shape == (3, 8) and outcome.final.shape == outcome.within_reach.shape == (128,)
    entries = {entry.cell: entry for entry in reproduce_expo._entries("expo", outcome, experiment, 0, 1.0)}
    assert set(entries) == {"area", "final", "base_right", "within_reach"}  # two evaluations are no early area
    np.testing.assert_allclose(entries["area"].mean, outcome.curve.mean(), rtol=1e-6)


def test_early_success_is_that_of_the_evaluations_in_the_first_thousand_steps():
    curve = np.zeros((31, 32), bool)
    curve[:11], curve[20:] = True, True  # before learning and at 100, 200, ... 1,000 steps
    of_curve = reproduce_expo.Outcome(curve, curve[0], curve[0], curve[0], np.float32(0))
    entries = {e.cell: e for e in reproduce_expo._entries("rlpd", of_curve, expo_reach.study(), 0, 1.0)}
    assert set(entries) == {"area", "early", "final"}
    assert entries["early"].mean == 1 and entries["early"].episodes == 11 * 32
    assert 0.7 < entries["area"].mean < 0.8


def test_everything_is_within_reach_of_edits_of_any_size_and_nothing_of_an_untrained_base():
    small = dataclasses.replace(TINY.env, radius=0.005)
    env = reproduce_expo.ChunkedEnv(reproduce_expo.BatchedEnv(small.make(reproduce_expo.PROMPTS)))

    @jax.jit
    def within_reach(key):
        rows = reproduce_expo.reach.demonstrate(env.env.env, key, 4, TINY.demonstrator)
        untrained = dataclasses.replace(TINY, imitation_updates=1)
        demonstrations = reproduce_expo.as_buffer(rows.replace(extras={}))
        learners = [
            reproduce_expo.make_learner(untrained, changes, demonstrations, key)
            for changes in ({"edit_scale": 3.0}, {"edited": False, "num_base_samples": 1})
        ]
        return [reproduce_expo.within_reach(env, *learner, key).mean() for learner in learners]

    edited, alone = within_reach(jax.random.key(0))
    assert edited == 1 and alone < 0.1


def test_rlpd_learns_in_the_same_loop():
    run = functools.partial(reproduce_expo.run_arm, TINY, reproduce_expo.ARMS["rlpd"][1])
    assert jax.eval_shape(run, jax.random.key(0)).curve.shape == (3, TINY.evaluation_episodes)


def test_the_papers_experiment_has_the_papers_values():
    paper = expo_reach.paper_study()
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
    assert state.params["critic"]["heads"]["mlp"]["hidden"]["0"]["kernel"].shape == (10, 6, 256)


def _built(key):
    paper = dataclasses.replace(expo_reach.paper_study(), imitation_updates=1)
    env = reproduce_expo.ChunkedEnv(reproduce_expo.BatchedEnv(paper.env.make(reproduce_expo.PROMPTS)))
    rows = reproduce_expo.reach.demonstrate(env.env.env, key, 4, paper.demonstrator)
    _, state = reproduce_expo.make_learner(paper, {}, reproduce_expo.as_buffer(rows.replace(extras={})), key)
    return state
