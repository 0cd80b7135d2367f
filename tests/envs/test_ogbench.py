"""What needs no simulator is always tested; the rest where the extra "ogbench" is installed."""

import importlib.util

import numpy as np
import pytest

from vla_jax.core import errors
from vla_jax.envs import ogbench_sim
from vla_jax.envs.ogbench import OgbenchConfig, goal_dim


def test_numpys_generator_is_left_as_it_was():
    np.random.seed(3)
    expected = np.random.random(2)
    np.random.seed(3)
    with ogbench_sim.numpy_seeded(7):
        inside = np.random.random()
    assert (np.random.random(2) == expected).all()
    with ogbench_sim.numpy_seeded(7):
        assert np.random.random() == inside


def test_configs_name_their_tasks():
    five, one = OgbenchConfig("scene"), OgbenchConfig("scene", single_task=3)
    assert five.layout.instructions[4] == "scene task 5" and five.layout.task_option == "task"
    assert five.layout.state_keys == ("observation", "goal") and five.layout.name == "ogbench/scene"
    assert one.layout.instructions == ("scene task 3",) and one.layout.task_option is None
    assert one.layout.state_keys == ("observation",) and one.layout.name == "ogbench/scene/task3"
    assert goal_dim(("observation_0", "observation_1", "goal_0", "goal_1")) == 2 and goal_dim(("goal",)) == 1


def test_what_is_not_there_says_so():
    with pytest.raises(errors.ConfigError, match="did you mean 'puzzle-3x3'"):
        OgbenchConfig("puzzle-3x33")
    with pytest.raises(errors.ConfigError, match="1 to 5"):
        OgbenchConfig(single_task=0)
    with pytest.raises(errors.ConfigError, match="where reset chooses the task"):
        OgbenchConfig(goal="none")


def test_a_missing_extra_says_what_to_install(monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ogbench" else there(name))
    with pytest.raises(errors.EnvError, match=r'pip install "vla-jax\[ogbench\]"'):
        OgbenchConfig().make()


@pytest.fixture(scope="module")
def cube():
    pytest.importorskip("ogbench", reason='needs the extra "ogbench"')
    return OgbenchConfig("cube-single", goal="oraclerep").make()


def _actions(num_steps: int, action_dim: int = 5) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (num_steps, action_dim)).astype(np.float32)


def test_an_environment_with_goals(cube):
    assert cube.spec.episode_length == 200 and cube.spec.action_dim == 5 and goal_dim(cube.spec.state_names) == 3
    goals = [cube.reset(seed=0, task=task).state[-3:] for task in range(5)]
    # task 2 wants the cube at x 0.50, y 0: (0.50 - 0.425) * 10, 0, 0.02 * 10
    assert np.allclose(goals[1], [0.75, 0.0, 0.2], atol=2e-2) and len({tuple(np.round(goal, 1)) for goal in goals}) == 5


def test_equal_seeds_give_equal_episodes(cube):
    runs = []
    for seed in (5, 6, 5):
        first = cube.reset(seed)
        chunk = cube.step(_actions(20))
        runs.append((first.state, chunk.observation.state))
    assert all((a == b).all() for a, b in zip(runs[0], runs[2], strict=True)) and (runs[0][0] != runs[1][0]).any()
    assert len({tuple(cube.reset(seed).state[-3:].round(1)) for seed in range(8)}) > 1  # tasks are drawn, too


def test_an_episode_runs_out_of_time(cube):
    cube.reset(seed=0, task=0)
    chunk = cube.step(np.zeros((250, 5), np.float32))
    assert chunk.mask.sum() == 200 and chunk.truncated and (chunk.discounts == 1).all() and not chunk.success


def test_reaching_the_goal_of_a_maze_pays_and_ends_the_task():
    pytest.importorskip("ogbench", reason='needs the extra "ogbench"')
    env = OgbenchConfig("pointmaze-medium", goal="oraclerep").make()
    simulator = env.unwrapped.simulator
    observation = env.reset(seed=1, task=2)
    for _ in range(300):
        place, goal = observation.state[:2].astype(float), observation.state[2:].astype(float)
        ahead, _ = simulator.get_oracle_subgoal(place, goal)
        way = ahead - place
        chunk = env.step((way / max(np.abs(way).max(), 1e-6))[None])
        observation = chunk.observation
        if chunk.done:
            break
    assert chunk.success and not chunk.truncated and chunk.discounts.tolist() == [0] and chunk.rewards.tolist() == [1]


def test_a_single_task_counts_what_is_unsolved_and_ends_after_the_state_that_solves_it():
    pytest.importorskip("ogbench", reason='needs the extra "ogbench"')
    env = OgbenchConfig("cube-double", single_task=1).make()
    env.reset(seed=0)
    chunk = env.step(np.zeros((2, 5), np.float32))
    assert chunk.rewards.tolist() == [-1, -1]  # task 1 leaves one of the cubes where it is
    simulator = env.unwrapped.simulator
    for cube, place in enumerate(simulator.cur_task_info["goal_xyzs"]):
        simulator.data.joint(f"object_joint_{cube}").qpos[:3] = place
    chunk = env.step(np.zeros((3, 5), np.float32))  # the first action was chosen before the cube was where it should be
    assert chunk.rewards.tolist() == [-1, 0, 0] or chunk.rewards.tolist() == [0, 0, 0]
    assert chunk.done and not chunk.truncated and chunk.success and chunk.discounts[chunk.mask.sum() - 1] == 0


def test_lanes_agree_with_one_environment(cube):
    with OgbenchConfig("cube-single", goal="oraclerep").make_lanes(1, timeout=120) as lanes:
        lanes.reset(seeds=[4])
        alone = cube.reset(4)
        assert (lanes.observe().state[0] == alone.state).all()
        many, chunk = lanes.step(_actions(5)[None]), cube.step(_actions(5))
        assert (many.rewards[0] == chunk.rewards).all()
        assert (lanes.observe().state[0] == chunk.observation.state).all()
