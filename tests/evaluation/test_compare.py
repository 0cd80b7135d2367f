import pytest

from tests.evaluation.test_results import entry
from vla_jax.core import errors
from vla_jax.evaluation import compare, results, statistics


def run(row, success, states, seed=0, returns=None):
    success = [bool(s) for s in success]
    records = {"success": success, "initial_state": list(states)}
    if returns is not None:
        records["returns"] = returns
    interval = statistics.wilson(sum(success), len(success))
    rate = sum(success) / len(success)
    return entry(row=row, seeds=(seed,), episodes=len(success), mean=rate, interval=interval, records=records)


def save(tmp_path, name, *entries):
    return results.append(tmp_path, name, entries)[0]


def test_episodes_are_paired_by_initial_state_not_by_order(tmp_path):
    a = save(tmp_path, "a", run("base", [1, 0, 0, 1], "wxyz"))
    b = save(tmp_path, "b", run("tuned", [1, 1, 1, 0, 1], "zyxqw"))
    (found,) = compare.compare(a, b)
    # w and z solved by both, x and y only by b; q has no partner
    assert (found.success.pairs, found.success.difference, found.unpaired) == (4, 0.5, 1)
    assert found.success.p_value == 0.5  # two coins on one side, two-sided
    assert found.returns is None
    text = compare.to_text((found,))
    assert "b = tuned against a = base" in text and "+50.0 points" in text and "1 episodes without a partner" in text


def test_two_rows_of_one_file_are_chosen_by_name(tmp_path):
    path = save(tmp_path, "run", run("base", [0, 1], "xy"), run("tuned", [1, 1], "xy"))
    (found,) = compare.compare(f"{path}:base", f"{path}:tuned")
    assert (found.row_a, found.row_b, found.success.difference) == ("base", "tuned", 0.5)
    with pytest.raises(errors.ConfigError, match="FILE:ROW"):
        compare.compare(path, path)
    with pytest.raises(errors.ConfigError, match="did you mean 'tuned'"):
        compare.compare(f"{path}:tunde", f"{path}:base")


def test_runs_of_other_training_seeds_share_initial_states(tmp_path):
    a = save(tmp_path, "a", run("base", [0, 1], "xy", seed=0))
    b = save(tmp_path, "b", run("base", [1, 1], "xy", seed=1))
    assert compare.compare(a, b)[0].success.pairs == 2


def test_with_several_seeds_a_pair_is_a_seed_and_a_state(tmp_path):
    a = save(tmp_path, "a", run("base", [0, 0], "xy", seed=0), run("base", [1, 1], "xy", seed=1))
    b = save(tmp_path, "b", run("tuned", [1, 1], "xy", seed=1), run("tuned", [0, 1], "xy", seed=0))
    (found,) = compare.compare(a, b)
    assert (found.success.pairs, found.success.difference) == (4, 0.25)


def test_returns_are_compared_where_both_have_them(tmp_path):
    a = save(tmp_path, "a", run("base", [0, 1, 1], "xyz", returns=[0.0, 1.0, 1.0]))
    b = save(tmp_path, "b", run("tuned", [1, 1, 1], "xyz", returns=[0.5, 1.5, 1.5]))
    (found,) = compare.compare(a, b)
    assert found.returns.difference == pytest.approx(0.5)
    assert "sign-flip permutation" in compare.to_text((found,))


def test_a_run_against_itself_says_that_no_difference_was_seen(tmp_path):
    path = save(tmp_path, "a", run("base", [0, 1], "xy"))
    assert "no difference was seen" in compare.to_text(compare.compare(path, path))


def test_runs_without_a_common_initial_state_cannot_be_compared(tmp_path):
    a = save(tmp_path, "a", run("base", [0], "x"))
    b = save(tmp_path, "b", run("tuned", [1], "y"))
    with pytest.raises(errors.DataError, match="same evaluation seed"):
        compare.compare(a, b)


def test_the_same_initial_state_twice_is_an_error(tmp_path):
    path = save(tmp_path, "a", run("base", [0, 1], "xx"))
    with pytest.raises(errors.DataError, match="run twice"):
        compare.compare(path, path)


def test_a_run_without_records_says_so(tmp_path):
    path = save(tmp_path, "a", entry(records={}))
    with pytest.raises(errors.DataError, match="records of every episode"):
        compare.compare(path, path)
