"""The inspection of DQC on OGBench, on networks that were not trained and an arm that stands still."""

import dataclasses

import jax
import numpy as np
import pytest

from recipes import dqc_ogbench
from scripts import inspect_dqc_ogbench as script
from vla_jax.data import trajectory_sets
from vla_jax.data.normalization import Statistics
from vla_jax.training import trained
from vla_jax.training.trained import TrainedPolicy


def run(method, seed):
    recipe = dqc_ogbench.quick(method)
    critic = dataclasses.replace(recipe.learner.critic, hidden_dims=(8, 8))
    recipe = dataclasses.replace(recipe, learner=dataclasses.replace(recipe.learner, critic=critic))
    learner = trained.make_learner(recipe)
    state = learner.init(jax.random.key(seed))
    edges = trained.make_edges(recipe, Statistics.identity(28, dqc_ogbench.CUBE_SINGLE.action_dim))
    return TrainedPolicy(None, recipe, learner, learner.actor(state), edges, {}), state


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    states = rng.normal(size=(40, 28)).astype(np.float32)
    states[:, script.HAND], states[:, script.CUBE] = (0, 0, 0.35), 0.0  # 3.5 cm above a resting cube
    states[:, script.OPENING], states[:, script.CONTACT] = np.arange(40) % 2 * 3.0, 0.0
    actions = np.zeros((40, dqc_ogbench.CUBE_SINGLE.action_dim), np.float32)
    actions[::4, -1] = 1.0  # half of the rows with an open hand
    seen = trajectory_sets.state_observations(states)
    recorded = trajectory_sets.from_arrays(seen, actions, np.zeros(40), np.ones(40), np.array([40]))
    return recorded.replace(goals=recorded.observations.state[:, script.CUBE])


def test_critics_are_compared_on_the_same_samples(rows):
    policy, state = run("dqc", 0)
    assert {"chunk_critic/loss", "policy/loss"} < script.losses(policy, state, rows).keys()
    same = script.ranking([(policy, state)] * 2, rows, 4)
    assert same["seeds agree"] == pytest.approx(1, abs=1e-4) and same["spread in steps"] > 0
    assert script.ranking([(policy, state), run("dqc", 1)], rows, 4)["seeds agree"] < 0.95


def test_shutting_is_counted_where_the_hand_is_open(rows):
    found = script.shutting(run("dqc", 0)[0], rows, 8)
    assert found["data shut"] == 0.5  # 0.25 if rows with a shut hand counted
    assert all(0 <= found[name] <= 1 for name in ("samples shut", "choices shut"))


def test_agreement_is_a_correlation():
    scores = np.array([[0.0, 1.0, 2.0]])
    assert script._agreement(scores, 5 * scores + 1) == pytest.approx(1)
    assert script._agreement(scores, -scores) == pytest.approx(-1)


class Arm:
    """Its hand is where it is told to be and as open; the task ends at the fourth step of task 0."""

    def __init__(self):
        self.task, self.steps = 0, 0

    def reset(self, seed, options):
        self.task, self.steps = options["task"], 0
        return self._seen(), {}

    def step(self, action):
        assert np.shape(action) == (dqc_ogbench.CUBE_SINGLE.action_dim,)
        self.steps += 1
        return self._seen(), 0.0, self.task == 0 and self.steps == 4, False, {}

    def _seen(self):
        state = np.zeros(28)
        state[script.HAND][2] = 0.1 if self.task == 1 else 1.0
        state[script.OPENING] = 3.0 if self.task == 2 else 0.0
        return {"observation": state, "goal": np.zeros(3)}


@pytest.mark.parametrize(("method", "steps_run"), [("dqc", 1), ("q_chunking", 5)])
def test_acting_reports_rates_over_tasks(monkeypatch, method, steps_run):
    monkeypatch.setattr(script, "STEPS", 10)
    monkeypatch.setattr(script, "simulators", lambda: [Arm() for _ in range(script.ENVS)])
    found = script.act(run(method, 0)[0], 2, steps_run, 10)
    assert found == pytest.approx({"solved": 0.2, "came near": 0.2, "lifted": 0.0, "shut on nothing": 0.2})
