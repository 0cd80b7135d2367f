import dataclasses
import json

import numpy as np
import pytest

from vla_jax.core import errors
from vla_jax.evaluation import results, statistics
from vla_jax.evaluation.rollouts import Episodes


def entry(**changes):
    values = {
        "table": "demo",
        "row": "fine_tuned",
        "cell": "success_rate",
        "seeds": (0,),
        "episodes": 2,
        "mean": 0.5,
        "interval": statistics.Interval(0.1, 0.9),
        "manifest": {"git": {"commit": None, "dirty": None}},
        "records": {"success": [True, False]},
    }
    return results.Entry(**{**values, **changes})


def test_an_entry_comes_back_as_it_was_written(tmp_path):
    (path,) = results.append(tmp_path, "run", [entry()])
    assert path == tmp_path / "demo" / "run.json"
    assert results.load(path) == (entry(),)
    assert results.load_table(tmp_path, "demo") == (entry(),)


def test_a_table_nobody_ran_has_no_entries(tmp_path):
    assert results.load_table(tmp_path, "demo") == ()


def test_appending_keeps_other_cells_and_replaces_the_same_one(tmp_path):
    other = entry(row="behaviour_cloning")
    results.append(tmp_path, "run", [entry(), other])
    better = entry(mean=1.0, interval=statistics.Interval(0.3, 1.0))
    (path,) = results.append(tmp_path, "run", [better])
    assert results.load(path) == (other, better)
    assert results.load(results.append(tmp_path, "run", [entry(seeds=(1,))])[0])[-1].seeds == (1,)


def test_nothing_temporary_stays_behind_and_a_failed_write_keeps_the_old_file(tmp_path):
    (path,) = results.append(tmp_path, "run", [entry()])
    with pytest.raises(TypeError):
        results.append(tmp_path, "run", [entry(row="new", manifest={"not": object()})])
    assert results.load(path) == (entry(),)
    assert [file.name for file in path.parent.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda value: value.pop("mean"), "entry 0: 'mean'"),
        (lambda value: value.update(mean="0.5"), "found     str '0.5'"),
        (lambda value: value.update(episodes=True), "entry 0: 'episodes'"),
        (lambda value: value.update(interval=[0.1]), r"expected  \[low, high\]"),
        (lambda value: value.update(interval=[0.9, 0.1]), r"expected  interval \[low, high\]"),
        (lambda value: value.update(mean=float("nan")), "finite mean"),
        (lambda value: value.update(succes=1), "unknown keys"),
        (lambda value: value["records"].update(success=[True]), "expected  2 values of 'success'"),
    ],
)
def test_a_damaged_entry_is_named(tmp_path, damage, message):
    (path,) = results.append(tmp_path, "run", [entry()])
    content = json.loads(path.read_text())
    damage(content["entries"][0])
    path.write_text(json.dumps(content))
    with pytest.raises(errors.DataError, match=message):
        results.load(path)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2, "entries": []}', '{"format": 1}'])
def test_another_file_is_not_taken_for_results(tmp_path, text):
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(errors.DataError, match="not"):
        results.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(errors.DataError, match="no results file"):
        results.load(tmp_path / "absent.json")


def test_episodes_become_a_rate_with_its_interval_and_records():
    episodes = Episodes(
        success=np.array([True, True, False]),
        returns=np.array([0.9, 0.8, -0.1], np.float32),
        length=np.array([5, 7, 12]),
        instruction=np.array([0, 1, 1]),
        shown_instruction=np.array([0, 1, 1]),
        initial_key=np.array([[0, 1], [0, 2], [0, 3]], np.uint32),
    )
    made = results.from_episodes(episodes, table="demo", row="r", cell="c", seed=4, env_name="point", manifest={})
    assert (made.episodes, made.seeds, made.mean) == (3, (4,), pytest.approx(2 / 3))
    assert made.interval == statistics.wilson(2, 3)
    assert made.records["returns"] == [0.9, 0.8, -0.1]
    assert len(set(made.records["initial_state"])) == 3
    assert all(state.startswith("point:") for state in made.records["initial_state"])
    json.dumps(dataclasses.asdict(made))
