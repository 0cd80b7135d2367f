import dataclasses
import functools
import importlib.util

import numpy as np
import pytest

from tests.envs.fake_gymnasium import BoxEnv, LineEnv
from vla_jax.core import errors
from vla_jax.core.types import PromptTable
from vla_jax.envs import gymnasium_sim
from vla_jax.envs.gymnasium_env import RENDER, GymnasiumEnv, GymnasiumLayout, GymnasiumVectorEnv, make_env

LAYOUT = GymnasiumLayout(
    name="line",
    state_keys=("robot/speed", "robot/place"),
    cameras=(("front", "eye"), ("side", RENDER)),
    success_key="is_success",
    episode_length=6,
    instructions=("go to one", "go to two", "go to three"),
    task_option="task",
)
PROMPTS = PromptTable(tokens=np.arange(12).reshape(3, 4), mask=np.ones((3, 4), bool))


@pytest.fixture(scope="module")
def lanes():
    """Two workers for the whole file: a spawned process costs a second."""
    with GymnasiumVectorEnv(LineEnv, LAYOUT, 2, PROMPTS, timeout=120) as env:
        yield env


def _forward(speed: float, length: int) -> np.ndarray:
    """Entries in [-1, 1]: the environment's own first entry is twice that."""
    return np.tile(np.array([speed / 2, 0.0], np.float32), (length, 1))


def test_spaces_become_a_spec():
    spec = GymnasiumEnv(LineEnv, LAYOUT).spec
    assert spec.state_names == ("robot/speed_0", "robot/speed_1", "robot/place") and spec.action_dim == 2
    assert spec.cameras == {"front": (8, 8), "side": (8, 16)} and spec.episode_length == 6


def test_an_observation_joins_the_state_in_its_declared_order():
    env = GymnasiumEnv(LineEnv, LAYOUT, PROMPTS)
    observation = env.reset(seed=3, task=2)
    assert observation.state.dtype == np.float32 and np.allclose(observation.state, [0, 0, 0.3])
    assert observation.images["front"].dtype == np.uint8 and (observation.images["front"] == 3).all()
    assert (observation.images["side"] == 7).all() and observation.image_mask["front"]
    assert observation.prompt.tolist() == [8, 9, 10, 11]
    chunk = env.step(_forward(0.5, 2))
    assert np.allclose(chunk.observation.state, [0.5, 0.5, 1.3])  # speed 0.5, then 0.5 of [0, 1] for entry 0


def test_actions_are_scaled_from_minus_one_to_one_and_clipped():
    made = []
    env = GymnasiumEnv(lambda: made.append(LineEnv(ends=False)) or made[-1], LAYOUT)
    env.reset(0)
    env.step(np.array([[-1, -1], [1, 1], [0, 0], [5, -5]], np.float32))
    assert np.allclose(made[-1].actions, [[-2, 0], [2, 1], [0, 0.5], [2, 0]])
    assert made[-1].actions[0].dtype == np.float32


def test_a_chunk_stops_where_the_task_ends():
    env = GymnasiumEnv(LineEnv, LAYOUT)
    env.reset(seed=0, task=0)
    chunk = env.step(_forward(0.5, 4))
    assert chunk.mask.tolist() == [True, True, False, False] and chunk.rewards.tolist() == [0, 1, 0, 0]
    # a swapped flag would leave the discount at 1 and bootstrap from a finished task
    assert chunk.discounts.tolist() == [1, 0, 1, 1] and chunk.done and not chunk.truncated and chunk.success


def test_failure_ends_the_task_without_success():
    env = GymnasiumEnv(LineEnv, LAYOUT)
    env.reset(seed=0, task=0)
    chunk = env.step(_forward(-2.0, 3))
    assert chunk.mask.tolist() == [True, True, False] and chunk.discounts.tolist() == [1, 0, 1]
    assert chunk.done and not chunk.truncated and not chunk.success


def test_a_time_limit_truncates_and_leaves_the_discount():
    env = GymnasiumEnv(LineEnv, LAYOUT)
    env.reset(seed=0, task=0)
    assert not env.step(_forward(0.0, 4)).done
    chunk = env.step(_forward(0.0, 4))
    assert chunk.mask.tolist() == [True, True, False, False] and chunk.done and chunk.truncated
    assert chunk.discounts.tolist() == [1] * 4


def test_success_at_the_time_limit_counts_as_the_end_of_the_task():
    env = GymnasiumEnv(LineEnv, dataclasses.replace(LAYOUT, episode_length=2))
    env.reset(seed=0, task=0)
    chunk = env.step(_forward(0.5, 2))
    assert chunk.done and not chunk.truncated and chunk.discounts.tolist() == [1, 0]


def test_success_of_a_task_that_goes_on_is_remembered():
    env = GymnasiumEnv(functools.partial(LineEnv, ends=False), LAYOUT)
    env.reset(seed=0, task=0)
    env.step(_forward(1.0, 1))
    chunk = env.step(_forward(-1.0, 1))
    assert chunk.success and not chunk.done


def test_stepping_what_does_not_run_raises():
    env = GymnasiumEnv(LineEnv, LAYOUT)
    with pytest.raises(errors.EnvError, match="reset first"):
        env.step(_forward(0.0, 1))
    env.reset(0, task=0)
    env.step(_forward(2.0, 1))
    with pytest.raises(errors.EnvError, match="reset first"):
        env.step(_forward(0.0, 1))
    env.close()
    env.close()


def test_a_chunk_of_another_shape_and_nan_raise():
    env = GymnasiumEnv(LineEnv, LAYOUT)
    env.reset(0)
    with pytest.raises(errors.EnvError, match=r"\[h >= 1, 2\]"):
        env.step(np.zeros((3, 7)))
    with pytest.raises(errors.EnvError, match="NaN"):
        env.step(np.full((1, 2), np.nan))


def test_a_box_observation_and_equal_seeds():
    layout = GymnasiumLayout(name="box", episode_length=5)
    first, again, other = (GymnasiumEnv(BoxEnv, layout).reset(seed).state for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any() and first.shape == (3,)
    assert not GymnasiumEnv(BoxEnv, layout).reset(0).prompt_mask.any()


def test_what_does_not_fit_says_how_to_mend_it():
    box = GymnasiumLayout(name="box", episode_length=5)
    with pytest.raises(errors.EnvError, match=r"set GymnasiumLayout\.episode_length"):
        GymnasiumEnv(BoxEnv, GymnasiumLayout())
    with pytest.raises(errors.EnvError, match="Box with finite bounds"):
        GymnasiumEnv(functools.partial(BoxEnv, bounded=False), box)
    with pytest.raises(errors.EnvError, match="did you mean 'robot/place'"):
        GymnasiumEnv(LineEnv, dataclasses.replace(LAYOUT, state_keys=("robot/plaice",)))
    with pytest.raises(errors.EnvError, match="a Box"):
        GymnasiumEnv(LineEnv, dataclasses.replace(LAYOUT, state_keys=("kind",)))
    with pytest.raises(errors.EnvError, match="uint8"):
        GymnasiumEnv(LineEnv, dataclasses.replace(LAYOUT, cameras=(("front", "robot/speed"),)))
    env = GymnasiumEnv(LineEnv, dataclasses.replace(LAYOUT, success_key="success"))
    env.reset(0)
    with pytest.raises(errors.EnvError, match="is_success"):
        env.step(_forward(0.0, 1))
    with pytest.raises(errors.ConfigError, match="3 rows, one per instruction"):
        GymnasiumEnv(LineEnv, LAYOUT, PromptTable(tokens=np.zeros((1, 2)), mask=np.zeros((1, 2), bool)))
    with pytest.raises(errors.ConfigError, match="task_option that chooses"):
        GymnasiumLayout(instructions=("a", "b"))


def test_a_registered_environment_brings_its_limit_and_its_end():
    layout = GymnasiumLayout()
    env = GymnasiumEnv(functools.partial(make_env, "Pendulum-v1"), layout)
    assert env.spec.name == "Pendulum-v1" and env.spec.episode_length == 200 and env.spec.state_dim == 3
    env.reset(0)
    chunk = env.step(np.zeros((250, 1)))
    assert chunk.mask.sum() == 200 and chunk.done and chunk.truncated and (chunk.rewards[:200] < 0).all()


def test_a_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.EnvError, match=r'pip install "vla-jax\[gymnasium\]"'):
        gymnasium_sim.require()


def test_lanes_run_their_own_tasks_and_stop_where_they_end(lanes):
    lanes.reset(seeds=[0, 3], tasks=[0, 2])
    seen = lanes.observe()
    assert np.allclose(seen.state[:, 2], [0, 0.3]) and seen.images["front"].shape == (2, 8, 8, 3)
    assert seen.prompt[:, 0].tolist() == [0, 8]
    chunk = lanes.step(np.stack([_forward(0.5, 3)] * 2))
    assert chunk.mask.sum(1).tolist() == [2, 3] and chunk.done.tolist() == [True, False] == lanes.success.tolist()
    for executed in ([0, 3], [0, 0]):  # an episode that was cut off says so for as long as it is asked
        again = lanes.step(np.stack([_forward(0.2, 8)] * 2))
        assert again.mask.sum(1).tolist() == executed and lanes.env_steps.tolist() == [2, 6]
        assert again.truncated.tolist() == [False, True] and again.done.all()


def test_a_lane_is_reset_alone(lanes):
    lanes.reset(seeds=[1, 2], tasks=[1, 1])
    lanes.step(np.stack([_forward(0.1, 1)] * 2))
    lanes.reset(seeds=[5], tasks=[0], lanes=[1])
    assert np.allclose(lanes.observe().state[:, 2], [0.2, 0.5]) and lanes.env_steps.tolist() == [1, 0]
    assert np.allclose(lanes.observe([1]).state[:, 2], [0.5])


def test_lanes_agree_with_one_environment(lanes):
    """The same seed, task and actions give the same chunk in a worker and in this process."""
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 2)).astype(np.float32)
    env = GymnasiumEnv(LineEnv, LAYOUT, PROMPTS)
    env.reset(7)
    lanes.reset(seeds=[7, 8])
    alone, many = env.step(actions), lanes.step(np.stack([actions, actions]))
    assert (alone.rewards == many.rewards[0]).all() and (alone.mask == many.mask[0]).all()
    assert (alone.observation.state == lanes.observe([0]).state[0]).all()
    assert (alone.observation.prompt == lanes.observe([0]).prompt[0]).all()


def test_rows_that_do_not_match_the_lanes_raise(lanes):
    with pytest.raises(errors.EnvError, match="2 of each, one per lane"):
        lanes.reset(seeds=[0])
    lanes.reset(seeds=[0, 0])
    with pytest.raises(errors.EnvError, match="1 actions"):
        lanes.step(np.zeros((1, 3, 2)))
