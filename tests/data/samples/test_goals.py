import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_jax.core.errors import ConfigError
from vla_jax.data.samples import draws
from vla_jax.data.samples.goals import GoalConfig, draw_goals, relabel

N = 60_000
KEYS = draws.sample_keys(0, np.arange(N))


def shares(config, frame=4, stop=8):
    """How often each frame is the goal, seen from `frame` of an episode that ends before `stop`."""
    goals = draw_goals(np.full(N, frame), np.full(N, stop), KEYS, config)
    return np.bincount(goals, minlength=stop) / N


def test_uniform_goals_are_equally_often_any_later_frame():
    # standard error sqrt(1/3 * 2/3 / 60000) = 0.0019; the likely bug, counting the frame itself, would give 1/4
    np.testing.assert_allclose(shares(GoalConfig(1, 0, 0))[4:], [0, 1 / 3, 1 / 3, 1 / 3], atol=0.01)


def test_geometric_goals_are_the_discounted_future():
    expected = [0, 0.4, 0.6 * 0.4, 0.6 * 0.6]  # at least three steps away is the end of the episode
    np.testing.assert_allclose(shares(GoalConfig(0, 1, 0, geometric_discount=0.6))[4:], expected, atol=0.01)


def test_without_patience_the_goal_is_the_next_frame():
    assert shares(GoalConfig(0, 1, 0, geometric_discount=0.0))[5] == 1


def test_final_goals_are_the_last_frame():
    assert shares(GoalConfig(0, 0, 1))[7] == 1


def test_kinds_mix_by_their_probabilities():
    # next frame: half of the uniform third, plus all of the geometric ones at discount 0
    found = shares(GoalConfig(0.5, 0.25, 0.25, geometric_discount=0.0))
    np.testing.assert_allclose(found[5:], [0.5 / 3 + 0.25, 0.5 / 3, 0.5 / 3 + 0.25], atol=0.01)


def test_the_goal_of_a_last_frame_is_itself():
    assert shares(GoalConfig(0.4, 0.4, 0.2), frame=7)[7] == 1


@given(st.integers(0, 50), st.integers(1, 20), st.floats(0, 1), st.floats(0, 0.999), st.integers(0, 1000))
def test_goals_lie_later_in_the_same_episode(frame, left, uniform, discount, position):
    config = GoalConfig(uniform, 1 - uniform, 0.0, geometric_discount=discount)
    stop = frame + 1 + left
    (goal,) = draw_goals(np.array([frame]), np.array([stop]), draws.sample_keys(1, np.array([position])), config)
    assert frame < goal < stop


def test_rewards_are_told_anew():
    # Goals 1, 3 and 9 steps ahead, seen through a chunk of 3 steps.
    config = GoalConfig(goal_reward=0.0, step_reward=-1.0)
    rewards, discounts, is_run = relabel(np.array([10, 10, 10]), np.array([11, 13, 19]), 3, config)
    assert rewards.tolist() == [[0, 0, 0], [-1, -1, 0], [-1, -1, -1]]
    assert discounts.tolist() == [[0, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert is_run.tolist() == [[True, False, False], [True, True, True], [True, True, True]]


def test_reaching_pays_once():
    rewards, _, _ = relabel(np.array([10]), np.array([11]), 3, GoalConfig(goal_reward=5.0, step_reward=-1.0))
    assert rewards.tolist() == [[5, 0, 0]]


@pytest.mark.parametrize(
    "values", [{"uniform": 0.5}, {"uniform": -0.5, "final": 0.5}, {"geometric_discount": 1.0}, {"geometric": 0.0}]
)
def test_impossible_goals_are_refused(values):
    with pytest.raises(ConfigError, match="GoalConfig"):
        GoalConfig(**values)
