"""The pipeline on arrays recorded with ogbench 1.2.2 (tests/fixtures/README.md), and with itself where it is there."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines import ogbench, ogbench_oracles, ogbench_tasks
from data_pipelines.ogbench import GenerateConfig, RelabelConfig
from data_pipelines.ogbench_oracles import OracleEpisode
from data_pipelines.ogbench_tasks import States, TaskGoal
from vla_jax.core import errors
from vla_jax.data.demonstrations import is_terminal, open_dataset, select
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.envs import ogbench_sim
from vla_jax.envs.ogbench_sim import SCENES

RECORDED = ("cube-single", "cube-double", "scene", "puzzle-3x3", "pointmaze-medium")
CUBE = SCENES["cube-single"]


@functools.cache
def _fixture() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parents[1] / "fixtures" / "ogbench_1.2.2.npz") as arrays:
        return dict(arrays)


def _states(name: str) -> States:
    return States(_fixture()[f"{name}/qpos"], _fixture()[f"{name}/button_states"].astype(np.int64))


def _goals(name: str) -> list[TaskGoal]:
    return [TaskGoal.from_json(values) for values in json.loads(str(_fixture()[f"{name}/goals"]))]


def _recording(number: int, num_rows: int) -> OracleEpisode:
    """A piece of a recorded episode of cube-single, another one for every number."""
    rows = slice(3 * number, 3 * number + num_rows)
    arrays = {name: _fixture()[f"recording/{name}"][rows] for name in ("state", "actions", "qpos", "qvel")}
    return OracleEpisode(number=number, button_states=np.zeros((num_rows, 0), np.int64), attempts=1, **arrays)


def _recorded(numbers: range):
    for number in numbers:
        yield _recording(number, 31)


def _config(out: Path, episodes: int = 4, **fields) -> GenerateConfig:
    return GenerateConfig(out=out, steps=30 * episodes, episode_steps=30, **fields)


def _write(out: Path, recorded=_recorded, **fields) -> Path:
    config = _config(out, **fields)
    return ogbench.write(config, recorded, _recording(0, 2), _goals("cube-single"), "1.2.2", lambda line: None)


def _goal_here(number: int, row: int) -> TaskGoal:
    """A task that is solved at a row of a recording."""
    return TaskGoal(cubes=(tuple(float(x) for x in _recording(number, 31).qpos[row, 14:17]),))


# --- rewards and goals against OGBench's own --------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECORDED)
def test_rewards_are_those_of_stepping_the_single_task_environments(name):
    rewards, ends = _fixture()[f"{name}/rewards"], _fixture()[f"{name}/ends"]
    assert ends.any(axis=1).all() and not ends.all(axis=1).any()  # every task is solved in some states and not in all
    for task, goal in enumerate(_goals(name)):
        ours, discounts = ogbench_tasks.relabel(SCENES[name], _states(name), goal)
        assert (ours == rewards[task]).all() and ((discounts == 0) == ends[task]).all()


@pytest.mark.parametrize("name", RECORDED)
def test_representations_are_those_of_the_oraclerep_environments(name):
    ours = ogbench_tasks.oracle_representation(SCENES[name], _states(name))
    assert ours.dtype == np.float32 and np.allclose(ours, _fixture()[f"{name}/oraclerep"], atol=1e-6)


@pytest.mark.parametrize("name", RECORDED)
def test_goals_survive_json(name):
    for goal in _goals(name):
        assert TaskGoal.from_json(json.loads(json.dumps(goal.to_json()))) == goal


def test_states_of_another_scene_raise():
    with pytest.raises(errors.DataError, match="28 positions and 0 buttons"):
        ogbench_tasks.relabel(SCENES["cube-double"], _states("cube-single"), _goals("cube-double")[0])


# --- RLDS -------------------------------------------------------------------------------------------------------------


def test_a_generated_set_is_read_as_transitions_whose_last_row_only_shows(tmp_path):
    folder = _write(tmp_path / "cube-single-play")
    dataset = RldsDataset(folder, cache_folder=tmp_path / "index")
    assert len(dataset) == 4 and dataset.num_frames == 4 * 31 and dataset.info.name == "cube-single-play"
    first = _recording(0, 31)
    assert (dataset.columns["observation/state"][:31] == first.state).all()
    assert (dataset.columns["simulator/qpos"][:31] == first.qpos).all()
    representation = ogbench_tasks.oracle_representation(CUBE, first.simulator_states)
    assert (dataset.columns["observation/oraclerep"][:31] == representation).all()
    assert not dataset.columns["is_terminal"].any() and dataset.columns["is_last"].sum() == 4
    config = ogbench.dataset_config(folder, action_horizon=5)
    frames = select(open_dataset(config, tmp_path / "index"), config)
    assert frames.num_frames == 4 * 30  # nothing starts at a row whose action led nowhere that was recorded


def test_a_relabelled_set_ends_where_the_task_is_solved(tmp_path):
    source = _write(tmp_path / "play")
    solved_at = _goal_here(1, 12)
    rewards, discounts = zip(
        *(ogbench_tasks.relabel(CUBE, _recording(n, 31).simulator_states, solved_at) for n in range(4)), strict=True
    )
    _replace_goal(source, solved_at)
    folder = ogbench.relabel(RelabelConfig(source, tmp_path / "play-task1", task=1), lambda line: None)
    dataset = RldsDataset(folder, cache_folder=tmp_path / "index")
    ends = sum(int((each[:-1] == 0).sum()) for each in discounts)
    assert ends > 0 and dataset.columns["is_terminal"].sum() == ends == (dataset.columns["discount"] == 0).sum()
    # together the pieces are the recordings, in order: nothing is lost but lone last rows that nothing leads to
    kept = [(n, t) for n in range(4) for t in range(31) if t < 30 or discounts[n][29] == 1]
    assert dataset.num_frames == len(kept)
    assert dataset.columns["reward"].tolist() == [rewards[n][t] for n, t in kept]
    config = ogbench.dataset_config(folder, action_horizon=1)
    opened = open_dataset(config, tmp_path / "index")
    frames = select(opened, config)
    assert frames.num_frames == 4 * 30  # as many transitions as the source has
    rows = frames.frame(np.arange(120))
    episodes = opened.episode_of(rows)
    is_last = rows == np.asarray(opened.episode_starts)[episodes + 1] - 1
    # the loader lets exactly these end the task, and starts nothing at the others
    assert is_last.sum() == (is_terminal(opened, config.transitions)[episodes] & is_last).sum() == ends


def _replace_goal(source: Path, goal: TaskGoal) -> None:
    about = json.loads((source / "metadata.json").read_text())
    about["tasks"] = [goal.to_json()]
    (source / "metadata.json").write_text(json.dumps(about))


def test_a_finished_set_is_left_alone_and_another_config_refused(tmp_path):
    folder = _write(tmp_path / "play")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert _write(tmp_path / "play") == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    with pytest.raises(errors.DataError, match="another config"):
        _write(tmp_path / "play", seed=1)


class _StoppedError(Exception):
    pass


def test_generating_goes_on_where_it_was_stopped_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(ogbench, "_SHARD_BYTES", 30_000)  # two or three episodes
    whole = _write(tmp_path / "whole" / "play", episodes=8)
    asked = []

    def stops(numbers):
        asked.append(numbers.start)
        for episode in _recorded(numbers):
            if len(asked) == 1 and episode.number == 6:
                raise _StoppedError
            yield episode

    with pytest.raises(_StoppedError):
        _write(tmp_path / "stopped" / "play", recorded=stops, episodes=8)
    folder = _write(tmp_path / "stopped" / "play", recorded=stops, episodes=8)
    assert asked[0] == 0 and 0 < asked[1] <= 6
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }


def test_relabelling_goes_on_where_it_was_stopped_to_the_same_bytes(tmp_path, monkeypatch):
    source = _write(tmp_path / "play", episodes=8)
    _replace_goal(source, _goal_here(1, 12))
    monkeypatch.setattr(ogbench, "_SHARD_BYTES", 3_000)  # a stop within an episode's pieces, too
    whole = ogbench.relabel(RelabelConfig(source, tmp_path / "whole" / "task"), lambda line: None)
    calls = []
    cut = ogbench.cut

    def stops(*arguments):
        calls.append(arguments)
        for i, piece in enumerate(cut(*arguments)):
            if len(calls) == 3 and i == 5:
                raise _StoppedError
            yield piece

    monkeypatch.setattr(ogbench, "cut", stops)
    config = RelabelConfig(source, tmp_path / "stopped" / "task")
    with pytest.raises(_StoppedError):
        ogbench.relabel(config, lambda line: None)
    folder = ogbench.relabel(config, lambda line: None)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }


@given(st.lists(st.booleans(), min_size=2, max_size=31))
def test_pieces_hold_every_transition_once_and_end_only_where_the_task_does(solved):
    episode = _recording(0, len(solved))
    discounts = 1 - np.array(solved, np.float32)
    pieces = list(ogbench.cut(episode, -discounts, discounts, "go", CUBE))
    transitions = []
    for piece in pieces:
        start, length = int(piece.metadata["episode_metadata/first_row"]), len(piece.steps["reward"])
        ends = bool(piece.steps["is_terminal"][-1])
        transitions += [start + i for i in range(length if ends else length - 1)]
        assert length > (0 if ends else 1) and not piece.steps["is_terminal"][:-1].any()
        assert (piece.steps["discount"] == 0).tolist() == [False] * (length - 1) + [ends]
    assert transitions == list(range(len(solved) - 1))


def test_a_set_that_was_relabelled_is_not_relabelled_again(tmp_path):
    source = _write(tmp_path / "play")
    folder = ogbench.relabel(RelabelConfig(source, tmp_path / "task2", task=2), lambda line: None)
    with pytest.raises(errors.DataError, match="a relabelled set"):
        ogbench.relabel(RelabelConfig(folder, tmp_path / "again"))
    with pytest.raises(errors.ConfigError, match="task 1 to 5"):
        ogbench.relabel(RelabelConfig(source, tmp_path / "task9", task=9))


def test_what_cannot_be_generated_says_why(tmp_path):
    with pytest.raises(errors.ConfigError, match="navigate"):
        GenerateConfig(tmp_path, env="pointmaze-medium", mode="play")
    with pytest.raises(errors.ConfigError, match="multiple"):
        GenerateConfig(tmp_path, steps=1500)
    with pytest.raises(errors.ConfigError, match="did you mean 'cube-single'"):
        GenerateConfig(tmp_path, env="cube-sinlge")


def test_cells_of_a_maze_without_its_hallways():
    maze = np.array([[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 0, 1, 1, 1], [1, 0, 0, 1, 1], [1, 1, 1, 1, 1]])
    free, corners = ogbench_oracles._cells(maze)
    assert len(free) == 6 and set(free) - set(corners) == {(1, 2), (2, 1)}


# --- the real simulators ----------------------------------------------------------------------------------------------


def test_recorded_goals_are_those_of_the_installed_package():
    pytest.importorskip("ogbench", reason='needs the extra "ogbench"')
    for name in RECORDED:
        simulator, _ = ogbench_sim.make_simulator(name)
        assert list(ogbench_tasks.task_goals(simulator)) == _goals(name)


@pytest.mark.parametrize(
    "name, mode",
    [("cube-single", "play"), ("cube-double", "noisy"), ("scene", "play"), ("puzzle-3x3", "noisy")],
)
def test_an_episode_is_a_function_of_its_number_and_what_it_did(name, mode):
    pytest.importorskip("ogbench", reason='needs the extra "ogbench"')
    recorder = ogbench_oracles.Recorder(name, mode)
    episode = recorder.episode(0, 1, 60)
    recorder.episode(0, 2, 20)
    again = recorder.episode(0, 1, 60)
    for field in dataclasses.fields(OracleEpisode):
        assert np.array_equal(getattr(episode, field.name), getattr(again, field.name)), field.name
    assert np.abs(episode.actions).max() <= 1 and np.abs(np.diff(episode.qpos[:, :6], axis=0)).max() > 1e-3
    other = recorder.episode(0, 3, 60)
    assert not np.array_equal(episode.state, other.state)


def test_an_oracle_moves_the_cube_to_where_it_wants_it():
    pytest.importorskip("ogbench", reason='needs the extra "ogbench"')
    cube = ogbench_oracles.Recorder("cube-single", "play").episode(0, 0, 200).qpos[:, 14:17]
    assert (
        cube[:, 2].max() > 0.05 and np.linalg.norm(cube[-1, :2] - cube[0, :2]) > 0.05
    )  # lifted, and set down elsewhere


def test_rows_do_not_depend_on_the_number_of_processes(tmp_path):
    pytest.importorskip("ogbench", reason='needs the extra "ogbench"')
    one, two = (
        ogbench.generate(
            GenerateConfig(
                tmp_path / str(workers) / "maze", "pointmaze-medium", "navigate", 120, 40, seed=3, workers=workers
            ),
            lambda line: None,
        )
        for workers in (1, 2)
    )
    assert {path.name: path.read_bytes() for path in one.iterdir()} == {
        path.name: path.read_bytes() for path in two.iterdir()
    }
