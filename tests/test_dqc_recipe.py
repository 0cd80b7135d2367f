"""The recipe of DQC: its policy and learner fit together at every size, and OGBench's states. Nothing is allocated."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recipes import dqc_ogbench
from scripts import reproduce_dqc_ogbench
from vla_jax.core.types import Observation, Transitions
from vla_jax.data import trajectory_sets

STUDIES = {name: dqc_ogbench.quick(name) for name in dqc_ogbench.METHODS} | {"paper": dqc_ogbench.paper()}


def abstract(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def observation(*leading, state_dim):
    prompt = abstract(*leading, 1, dtype=jnp.int32)
    return Observation({}, {}, abstract(*leading, state_dim), prompt, abstract(*leading, 1, dtype=bool))


@pytest.mark.parametrize("name", STUDIES)
def test_an_update_and_an_action_have_the_recipes_shapes(name):
    study = STUDIES[name]
    learner, b, h = reproduce_dqc_ogbench.make(study, 4), 2, study.learner.backup_horizon
    seen = observation(b, state_dim=study.state_dim)
    steps, goal = abstract(b, h), abstract(b, study.goal_dim)
    actions = abstract(b, h, study.action_dim)
    batch = Transitions(seen, actions, steps, steps, abstract(b, h, dtype=bool), seen, {}, goal)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(learner.init, key)
    after, metrics = jax.eval_shape(learner.update, state, key, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state) and metrics["loss"].shape == ()
    chunk, memory = jax.eval_shape(learner.act, learner.actor(state), key, seen, goal)
    assert chunk.shape == (b, study.learner.steps_run, study.action_dim) and memory.shape == goal.shape


def test_the_policy_of_dqc_is_that_of_behaviour_cloning_and_shorter_than_its_backup():
    study = STUDIES["dqc"]
    assert study.policy.decoder.action_horizon == 1 < study.learner.backup_horizon
    assert STUDIES["q_chunking"].policy.decoder.action_horizon == STUDIES["q_chunking"].learner.backup_horizon


def test_a_stopped_run_goes_on_to_the_same_parameters(monkeypatch, tmp_path):
    study = dqc_ogbench.quick("n_step")
    policy = dataclasses.replace(study.policy, backbone=dataclasses.replace(study.policy.backbone, hidden_dims=(8,)))
    critic = dataclasses.replace(study.learner.critic, hidden_dims=(8,))
    learner_config = dataclasses.replace(study.learner, critic=critic)
    study = dataclasses.replace(study, policy=policy, learner=learner_config, batch_size=4)
    rng = np.random.default_rng(0)
    states, actions, goals = (rng.standard_normal((40, dim)) for dim in (28, 5, 3))
    observations = trajectory_sets.state_observations(states)
    rows = trajectory_sets.from_arrays(
        observations, np.tanh(actions), np.zeros(40), np.ones(40), np.array([20, 20]), goals
    )
    monkeypatch.setattr(reproduce_dqc_ogbench, "load", lambda folder: rows)
    monkeypatch.setattr(reproduce_dqc_ogbench, "STEPS_PER_CALL", 2)
    learner = reproduce_dqc_ogbench.make(study, 1)

    def train(folder, num_train_steps):
        options = reproduce_dqc_ogbench.Options(num_train_steps=num_train_steps, runs=str(tmp_path / folder))
        return reproduce_dqc_ogbench.train(study, learner, "n_step", 0, options)

    whole = train("whole", 4)
    train("stopped", 2)
    resumed = train("stopped", 4)
    assert int(resumed.step) == 4
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
