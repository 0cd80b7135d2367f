"""The phases of the PA-RL reproduction at the smallest size, and what experience stores."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from recipes import pa_rl_maze
from scripts import reproduce_pa_rl
from vla_jax.evaluation import table_specs, tables
from vla_jax.learners.pa_rl import PARL
from vla_jax.samplers.action_ascent import AscentOptions


def tiny(policy="diffusion"):
    study = pa_rl_maze.study(policy)
    learner = dataclasses.replace(study.learner, num_samples=2, ascent=AscentOptions(2, 1, 0.01))
    return dataclasses.replace(
        study,
        learner=learner,
        num_demonstrations=4,
        imitation_steps=2,
        imitation_batch=8,
        offline_steps=2,
        collections=2,
        episodes_per_collection=2,
        updates_per_decision=0.05,
        batch_size=8,
    )


def test_an_arm_runs_through_all_phases_and_fills_its_cells(monkeypatch):
    study = tiny()
    monkeypatch.setitem(reproduce_pa_rl.STUDIES, "pa_rl", lambda policy: study)
    monkeypatch.setattr(reproduce_pa_rl, "EPISODES", 4)
    entries = reproduce_pa_rl.run("pa_rl", "diffusion", 0, ("pa_rl",))
    found = {(entry.row, entry.cell) for entry in entries}
    rows = ("critic_only", "pa_rl")
    expected = {(f"diffusion_{row}", cell) for row in rows for cell in ("success_rate", "policy_alone")}
    assert found == expected | {("diffusion_imitation", "success_rate")}
    tables.to_markdown(table_specs.TABLES["pa_rl"], entries)  # every row and cell is in the table
    steps = {entry.row: entry.manifest["cost"]["env_steps"] for entry in entries}
    assert steps["diffusion_critic_only"] == 0 < steps["diffusion_pa_rl"] <= 2 * 2 * study.env.episode_length
    reproduce_pa_rl.print_verdict(tuple(entries))


@pytest.mark.parametrize("policy", pa_rl_maze.POLICIES)
def test_experience_is_whole_episodes_with_the_returns_they_reached(policy):
    study = tiny(policy)
    env = study.env.make(reproduce_pa_rl.PROMPTS)
    learner = PARL(study.policy.constructor(), 2, 2, optax.adam(1e-3), optax.adam(1e-3), study.learner)

    def shapes():
        actor = learner.actor(learner.init(jax.random.key(0)))
        return reproduce_pa_rl.collect(study, env, learner, actor, jax.random.key(1))

    decisions = study.env.episode_length // 2
    if policy != "diffusion":
        rows, runs, _ = jax.eval_shape(shapes)
        assert rows.actions.shape == (2 * decisions, 2, 2) and runs.shape == (2 * decisions,)
        return
    rows, runs, success = jax.jit(shapes)()
    assert runs.all() and not success.any()  # an untrained policy arrives nowhere
    # of an episode that never arrives every return is that of never arriving
    np.testing.assert_allclose(rows.extras["mc_return"], -1 / (1 - study.learner.discount), rtol=1e-4)
    now, following = (x.state.reshape(decisions, 2, 2) for x in (rows.observation, rows.next_observation))
    np.testing.assert_array_equal(now[1:], following[:-1])


def test_slow_demonstrations_are_all_that_the_second_table_changes():
    for policy in pa_rl_maze.POLICIES:
        quick, slow = pa_rl_maze.study(policy), pa_rl_maze.slow(policy)
        assert slow.demonstrator.speed < quick.demonstrator.speed
        assert dataclasses.replace(slow, demonstrator=quick.demonstrator) == quick
    named = {spec: {row.name for row in table_specs.TABLES[spec].rows} for spec in reproduce_pa_rl.STUDIES}
    assert named["pa_rl_slow"] == {
        f"{policy}_{arm}" for policy in pa_rl_maze.POLICIES for arm in ("imitation", "critic_only", "pa_rl")
    }


def test_returns_of_demonstrations_are_those_of_counting_steps():
    study = dataclasses.replace(tiny(), num_demonstrations=20)
    trajectories = reproduce_pa_rl.record(study, study.env.make(reproduce_pa_rl.PROMPTS), 0)
    discount, stops = study.learner.discount, np.unique(trajectories.episode_stop)
    starts = np.concatenate([[0], stops[:-1]])
    arrived = 0
    for start, stop in zip(starts, stops, strict=True):
        ended = bool((trajectories.discounts[start:stop] == 0).any())
        steps = stop - start - 1  # the last row is only arrived at
        left = np.arange(steps, 0, -1)
        # -1 for every step but the one that arrives; never arriving costs -1 for ever
        expected = -(1 - discount ** (left - 1)) / (1 - discount) if ended else np.full(steps, -1 / (1 - discount))
        np.testing.assert_allclose(trajectories.mc_returns[start : stop - 1], expected, rtol=1e-4, atol=1e-4)
        arrived += ended
    assert 0 < arrived < 20
    assert jnp.isfinite(trajectories.mc_returns).all()
