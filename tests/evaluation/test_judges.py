"""Judges of environments on the host: tasks with goals, and learners that act for them."""

import dataclasses

import jax.numpy as jnp
import pytest

from tests.envs.fake_gymnasium import GoalEnv
from vla_jax.codecs.text import ByteTokenizer
from vla_jax.core import errors
from vla_jax.data.action_space import ActionSpace
from vla_jax.data.normalization import NormalizationConfig, Normalizer, Statistics
from vla_jax.envs import ogbench_sim
from vla_jax.envs.ogbench import OgbenchConfig
from vla_jax.envs.planar.reach import ReachConfig
from vla_jax.evaluation import judges
from vla_jax.training.recipe import EvaluationConfig
from vla_jax.training.trained import Edges

ENV = OgbenchConfig(goal="oraclerep", episode_length=8)


@pytest.fixture(autouse=True)
def goal_env(monkeypatch):
    monkeypatch.setattr(OgbenchConfig, "_make", property(lambda self: GoalEnv))
    monkeypatch.setattr(ogbench_sim, "require", lambda: None)


class GoesThere:
    """Straight to the goal in its memory, which is (y, x) as the state's dims 1 and 0 are, both normalized."""

    def initial_memory(self, batch_size):
        return jnp.zeros((batch_size, 2))

    def act(self, actor_params, key, observation, memory):
        assert observation.state.shape[-1] == 3
        # the statistics below: mean 1 and scale 2 of x, mean -1 and scale 4 of y
        scale, shift = jnp.array([[2.0, 4.0]]), jnp.array([[1.0, -1.0]])
        place, goal = observation.state[:, :2] * scale + shift, memory[:, ::-1] * scale + shift
        return jnp.clip(actor_params * (goal - place) / 0.2, -1, 1)[:, None], memory


class Counts:
    """Knows no goals: sees all five entries of the state and stands still."""

    def initial_memory(self, batch_size):
        return ()

    def act(self, actor_params, key, observation, memory):
        assert observation.state.shape[-1] == 5
        return jnp.zeros((len(observation.state), 1, 2)), memory


def edges(mean, std, goal_dims=()):
    identity = Statistics.identity(len(mean), 2)
    statistics = dataclasses.replace(identity, state=dataclasses.replace(identity.state, mean=mean, std=std))
    space = ActionSpace(Normalizer.create(statistics, NormalizationConfig(mode="z_score")))
    return Edges(ByteTokenizer(), 48, space, (0, 0), goal_dims=goal_dims)


TOLD = edges((1.0, -1.0, 0.0), (2.0, 4.0, 1.0), (1, 0))
EVALUATION = EvaluationConfig((ENV,), execution_horizon=1, num_episodes=5, batch_size=2, seed=3)


def test_a_learner_of_goals_is_told_that_of_every_task():
    judge = judges.make_judge(ENV, GoesThere(), TOLD, EVALUATION)
    assert (judge.name, judge.num_episodes, judge.spec.state_dim) == ("ogbench/cube-single", 5, 3)
    found = judge.evaluate(jnp.ones(()))
    # four steps of at most 0.2 per axis reach every place; without the goal (all zeros, or x and y swapped) none or one
    assert found.success.all() and [each.task for each in found.records] == [0, 1, 2, 3, 4]
    assert {each.seed for each in found.records} == {3} and (found.returns == 1).all()


def test_a_learner_without_goals_sees_the_whole_state_and_fails_are_counted():
    judge = judges.make_judge(ENV, Counts(), edges((0.0,) * 5, (1.0,) * 5), EVALUATION)
    assert judge.spec.state_dim == 5
    found = judge.evaluate(jnp.zeros(()))
    assert not found.success.any() and {each.num_steps for each in found.records} == {8}


@pytest.mark.parametrize(
    ("config", "told", "changes", "message"),
    [
        (ReachConfig(), TOLD, {}, "tells no goal"),
        (ENV, dataclasses.replace(TOLD, goal_dims=(0,)), {}, "a goal of 1 dims"),
        (ENV, TOLD, dict(num_episodes=6), "multiple of its 5 tasks"),
    ],
)
def test_what_cannot_be_judged_is_refused(config, told, changes, message):
    with pytest.raises(errors.ConfigError, match=message):
        judges.make_judge(config, GoesThere(), told, dataclasses.replace(EVALUATION, **changes))


def test_goals_are_not_words_to_be_swapped():
    with pytest.raises(errors.ConfigError, match="swapped"):
        judges.make_judge(ENV, GoesThere(), TOLD, EVALUATION, swap_instructions=True)
