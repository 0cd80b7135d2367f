"""Trajectory quality and coverage, with the counts and orderings that the paper's definitions give."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.memory_set import MemorySet
from vla_jax.core import errors
from vla_jax.evaluation.dataset_quality import (
    ExactCounter,
    HyperLogLog,
    Limits,
    digitize,
    finished_returns,
    quality_card,
    saco,
    trajectory_quality,
    unique_state_actions,
)


def random_rows(count, seed=0, dims=4):
    return np.random.default_rng(seed).integers(0, 100, (count, dims)).astype(np.int32)


def counted(rows, counter):
    counter.add(rows)
    return counter.count()


def make_set(states, actions, rewards=None, lengths=None, is_last=None):
    columns = {"observation/state": np.asarray(states, np.float32), "action": np.asarray(actions, np.float32)}
    if rewards is not None:
        columns["reward"] = np.asarray(rewards, np.float32)
    if is_last is not None:
        columns["is_last"] = np.asarray(is_last)
    return MemorySet(lengths or (len(states),), columns)


def test_trajectory_quality_is_0_for_random_and_1_for_the_best():
    assert trajectory_quality(np.array([2.0, 4.0]), 3.0, 9.0) == 0.0
    assert trajectory_quality(np.array([9.0]), 3.0, 9.0) == 1.0
    assert trajectory_quality(np.array([12.0]), 3.0, 9.0) == 1.5  # better than anything seen


def test_trajectory_quality_does_not_care_about_the_scale_of_rewards():
    returns = np.random.default_rng(0).normal(size=20)
    assert trajectory_quality(7 * returns, 7 * -1.0, 7 * 2.0) == pytest.approx(trajectory_quality(returns, -1.0, 2.0))


def test_a_constant_reward_changes_the_quality_where_lengths_differ():
    # Lengths 1 and 3 with a bonus of 1 per step: returns 1, 1 become 2, 4; the references are of episodes of 1 step.
    assert trajectory_quality(np.array([1.0, 1.0]), 0.0, 2.0) == 0.5
    assert trajectory_quality(np.array([2.0, 4.0]), 1.0, 3.0) == 1.0


def test_trajectory_quality_needs_a_range():
    with pytest.raises(errors.ConfigError, match="g_max above g_min"):
        trajectory_quality(np.array([1.0]), 2.0, 2.0)


@pytest.mark.parametrize("counter", [ExactCounter, HyperLogLog])
def test_three_states_and_two_actions_are_six(counter):
    states = np.repeat([[0.0], [1.0], [2.0]], 2, axis=0)
    actions = np.tile([[0.0], [1.0]], (3, 1))
    limits, chosen = Limits((0.0, 0.0), (2.0, 1.0)), counter()
    for _ in range(5):
        unique_state_actions(states, actions, limits, chosen)
    assert chosen.count() == 6


def test_a_key_is_no_sum_of_state_and_action():
    # (1, 2) and (2, 1): adding the arrays, as the authors' exact counter does, would make one of two.
    counter = ExactCounter()
    unique_state_actions(np.array([[1.0], [2.0]]), np.array([[2.0], [1.0]]), Limits((0, 0), (3, 3)), counter)
    assert counter.count() == 2


@pytest.mark.parametrize("count", [0, 10, 1000, 60_000, 400_000])
def test_the_sketch_is_within_three_standard_errors(count):
    rows = np.stack([np.arange(count), np.zeros(count)], axis=1).astype(np.int32)
    sketch = HyperLogLog()
    assert sketch.standard_error < 0.01
    assert counted(rows, sketch) == pytest.approx(count, rel=3 * sketch.standard_error)


def test_the_sketch_has_its_stated_error_on_average():
    errors_found = []
    for trial in range(40):
        rows = np.stack([np.arange(3000), np.full(3000, trial)], axis=1).astype(np.int32)
        errors_found.append(counted(rows, HyperLogLog(index_bits=8)) / 3000 - 1)  # 6.5 %
    assert np.sqrt(np.mean(np.square(errors_found))) < 1.4 * 0.065
    assert abs(np.mean(errors_found)) < 3 * 0.065 / np.sqrt(40)


@pytest.mark.parametrize("counter", [ExactCounter, HyperLogLog])
def test_repeating_and_permuting_rows_changes_no_count(counter):
    rows = random_rows(2000)
    once, again = counter(), counter()
    once.add(rows)
    again.add(np.random.default_rng(1).permutation(np.concatenate([rows, rows])))
    assert once.count() == again.count()


@pytest.mark.parametrize("counter", [ExactCounter, HyperLogLog])
def test_counters_of_shards_merge_to_the_counter_of_all(counter):
    rows = random_rows(3000, dims=2)  # many repeat
    whole, first, second = counter(), counter(), counter()
    whole.add(rows)
    first.add(rows[:1800])
    second.add(rows[1500:])
    first.merge(second)
    assert first.count() == whole.count()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=60))
def test_exact_counting_is_counting(pairs):
    rows = np.array(pairs, np.int32).reshape(-1, 2)
    assert counted(rows, ExactCounter()) == len(set(pairs)) == counted(rows, HyperLogLog())


def test_sketches_of_different_sizes_do_not_merge():
    with pytest.raises(errors.ConfigError, match="expected  14"):
        HyperLogLog().merge(HyperLogLog(index_bits=8))


def test_bins_follow_numpy_over_equally_spaced_edges():
    values = np.random.default_rng(0).uniform(-3, 3, (500, 1))
    edges = np.linspace(-2, 2, 100)
    np.testing.assert_array_equal(digitize(values, Limits((-2.0,), (2.0,)))[:, 0], np.digitize(values[:, 0], edges))


def test_values_beyond_the_limits_of_the_reference_fall_into_the_outer_bins():
    bins = digitize(np.array([[-1e9], [0.0], [1.0], [1e9]]), Limits((0.0,), (1.0,)), num_bins=10)[:, 0]
    assert bins.tolist() == [0, 1, 10, 10]


def test_discrete_values_keep_their_distinctness():
    values = np.arange(100, dtype=np.float64)[:, None] * 0.1
    assert len(np.unique(digitize(values, Limits.of(values)))) == 100


def test_a_dim_without_width_has_one_bin():
    assert digitize(np.array([[1.0], [2.0]]), Limits((3.0,), (3.0,))).tolist() == [[0], [0]]


def test_unfinished_episodes_have_no_return():
    is_last = [False, True, False, False, False, True]
    dataset = make_set(np.zeros((6, 1)), np.zeros((6, 1)), [1, 2, 4, 8, 16, 32], (2, 2, 2), is_last)
    assert finished_returns(dataset).tolist() == [3.0, 48.0]


def test_the_card_of_a_set_beside_itself_has_a_coverage_of_one():
    rng = np.random.default_rng(0)
    dataset = make_set(rng.normal(size=(300, 2)), rng.normal(size=(300, 1)), np.arange(300) % 3 == 0, (100, 200))
    card = quality_card(dataset, reference=dataset, g_min=0.0, g_max=100.0)
    assert card.saco == 1.0 and card.unique_is_exact
    assert (card.num_trajectories, card.mean_length) == (2, 150.0)
    assert card.reward_sparsity == pytest.approx(2 / 3)
    assert card.mean_return == 50.0 and card.tq == 0.5  # 34 and 66 rewards of 1
    assert quality_card(dataset).saco is None and quality_card(dataset).tq is None


def test_the_card_of_a_large_set_comes_from_a_sketch():
    rng = np.random.default_rng(0)
    dataset = make_set(rng.normal(size=(3000, 2)), rng.normal(size=(3000, 1)))
    exact, sketched = quality_card(dataset), quality_card(dataset, exact_keys=100)
    assert exact.unique_is_exact and not sketched.unique_is_exact
    assert sketched.unique == pytest.approx(exact.unique, rel=0.03)
    assert exact.reward_sparsity is None and exact.mean_return is None


def test_action_entropy_goes_from_constant_to_uniform():
    states = np.zeros((10_000, 1))
    uniform = np.random.default_rng(0).uniform(size=(10_000, 1))
    assert quality_card(make_set(states, np.ones((10_000, 1)))).action_entropy == 0.0
    assert quality_card(make_set(states, uniform)).action_entropy == pytest.approx(1.0, abs=0.01)


def test_coverage_grows_with_exploration():
    """A walk on a line: the expert goes right, noise adds detours, the replay has seen most."""
    rng, sets = np.random.default_rng(0), {}
    for name, epsilon in (("expert", 0.0), ("noisy", 0.2), ("replay", 1.0)):
        states, actions = [], []
        for _ in range(20):
            place = 10
            for _ in range(20):
                action = rng.integers(0, 2) if rng.random() < epsilon else 1
                states.append([place])
                actions.append([action])
                place = int(np.clip(place + 2 * action - 1, 0, 20))
        sets[name] = make_set(states, actions)
    found = {name: quality_card(each, reference=sets["replay"]).saco for name, each in sets.items()}
    assert found["replay"] == 1.0 and found["expert"] < found["noisy"]


def test_coverage_needs_a_reference_with_something_in_it():
    assert saco(3, 6) == 0.5
    with pytest.raises(errors.ConfigError, match="a reference"):
        saco(3, 0)


def test_a_missing_column_is_named():
    dataset = make_set(np.zeros((3, 1)), np.zeros((3, 1)))
    with pytest.raises(errors.DataError, match="did you mean 'action'"):
        quality_card(dataset, action_names=("actions",))
