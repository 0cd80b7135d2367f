import functools
import importlib.util

import numpy as np
import pytest

from tests.envs.fake_libero import FakeSimulator
from vla_jax.core import errors
from vla_jax.envs import libero_sim, libero_workers
from vla_jax.envs.libero import LiberoVectorEnv
from vla_jax.envs.libero_sim import LiberoSim, RenderOptions
from vla_jax.envs.libero_workers import EpisodeRunner, WorkerPool


def _libero_problem() -> str | None:
    try:
        libero_sim.require("egl")
    except errors.EnvError as error:
        return str(error)
    return None


needs_libero = pytest.mark.skipif(_libero_problem() is not None, reason=f"LIBERO cannot run here: {_libero_problem()}")


@pytest.fixture(scope="module")
def fake_env():
    """Two workers for the whole file: a spawned process costs a second."""
    with LiberoVectorEnv("libero_object", 2, episode_length=10, make_simulator=FakeSimulator) as env:
        yield env


def _forward(speeds, length):
    chunk = np.zeros((len(speeds), length, 7), np.float32)
    chunk[..., 0] = np.array(speeds)[:, None]
    return chunk


def test_horizons_are_openvlas():
    # OpenVLA, experiments/robot/libero/run_libero_eval.py, max_steps
    horizons = {name: suite.episode_length for name, suite in libero_sim.SUITES.items()}
    assert horizons == {
        "libero_spatial": 220,
        "libero_object": 280,
        "libero_goal": 300,
        "libero_10": 520,
        "libero_90": 400,
    }


def test_axis_angle_is_the_rotation_vector_with_the_sign_of_the_quaternion():
    half = np.pi / 4
    assert np.allclose(libero_sim.axis_angle(np.array([0, 0, np.sin(half), np.cos(half)])), [0, 0, np.pi / 2])
    assert np.allclose(libero_sim.axis_angle(np.array([0, 0, 0, 1.0])), 0)
    # -q is the same rotation; robosuite's formula gives 2 pi - angle about the other axis, and so must we
    other = libero_sim.axis_angle(-np.array([0, 0, np.sin(half), np.cos(half)]))
    assert np.allclose(other, [0, 0, -1.5 * np.pi])


def test_images_are_rotated_by_180_degrees_not_flipped():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    assert (libero_sim.rotate_180(image) == np.rot90(image, 2)).all()


def test_render_options_reject_what_cannot_be_drawn():
    with pytest.raises(errors.ConfigError, match="divisor of image_size=256"):
        RenderOptions(downscale=3)
    with pytest.raises(errors.ConfigError, match="egl or osmesa"):
        RenderOptions(backend="glfw")
    assert RenderOptions(downscale=4).output_size == 64


def test_an_unknown_suite_lists_the_known_ones():
    with pytest.raises(errors.EnvError, match="did you mean 'libero_goal'"):
        libero_sim.episode_length("libero_gaol")


def test_a_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.EnvError, match=r'pip install "vla-jax\[libero\]"'):
        libero_sim.require()


def test_missing_system_libraries_are_named_with_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(libero_sim, "_can_load", lambda library: library != "libOSMesa.so.8")
    libero_sim.require("egl")
    with pytest.raises(errors.EnvError, match=r"libosmesa6\)\n.*apt-get install -y libosmesa6 libegl1"):
        libero_sim.require("osmesa")


def test_a_runner_stops_at_success_and_at_the_limit():
    runner = EpisodeRunner(FakeSimulator)
    runner.reset("libero_object", 0, 0, 0, limit=5)
    rewards, mask, done, success = runner.run(_forward([0.5], 4)[0])
    assert rewards.tolist() == [0, 1, 0, 0] and mask.tolist() == [True, True, False, False] and done and success
    runner.reset("libero_object", 0, 0, 0, limit=5)
    runner.run(_forward([0.01], 4)[0])
    _, mask, done, success = runner.run(_forward([0.01], 4)[0])
    assert mask.tolist() == [True, False, False, False] and done and not success


def test_lanes_run_their_own_tasks_and_states(fake_env):
    fake_env.reset(tasks=[0, 2], init_states=[0, 1])
    seen = fake_env.observe()
    assert seen.state[:, 0].tolist() == [0, 1] and seen.tasks.tolist() == [0, 2]
    assert seen.images["front"].shape == (2, 16, 16, 3) and seen.images["front"][1, 0, 0, 0] == 10
    result = fake_env.step_chunk(_forward([0.5, 0.5], 3))
    assert result.action_mask.sum(1).tolist() == [2, 3]
    assert result.success.tolist() == [True, False] == fake_env.done.tolist()
    # discount 0 exactly where the task ended; masked steps keep 1 and earn nothing
    assert result.discounts.tolist() == [[1, 0, 1], [1, 1, 1]] and result.rewards.tolist() == [[0, 1, 0], [0, 0, 0]]


def test_a_time_limit_ends_the_episode_and_leaves_the_discount(fake_env):
    fake_env.reset(tasks=[0, 0], init_states=[0, 0])
    result = fake_env.step_chunk(_forward([0.0, 0.2], 12))
    assert result.done.all() and result.success.tolist() == [False, True]
    assert result.discounts[0].tolist() == [1] * 12 and fake_env.env_steps.tolist() == [10, 5]


def test_a_finished_lane_waits_for_its_reset(fake_env):
    fake_env.reset(tasks=[0, 0], init_states=[0, 0])
    fake_env.step_chunk(_forward([1.0, 0.1], 1))
    result = fake_env.step_chunk(_forward([1.0, 0.1], 2))
    assert result.action_mask.tolist() == [[False, False], [True, True]] and result.success.tolist() == [True, False]
    fake_env.reset(tasks=[1], init_states=[0], lanes=[0])
    assert fake_env.done.tolist() == [False, False] and fake_env.env_steps.tolist() == [0, 3]
    assert fake_env.observe([0]).tasks.tolist() == [1]


def test_actions_are_checked_before_they_reach_a_worker(fake_env):
    fake_env.reset(tasks=[0, 0], init_states=[0, 0])
    with pytest.raises(errors.EnvError, match=r"\[2, h, 7\]"):
        fake_env.step_chunk(np.zeros((2, 7)))
    with pytest.raises(errors.EnvError, match="NaN"):
        fake_env.step_chunk(np.full((2, 1, 7), np.nan))
    with pytest.raises(errors.EnvError, match="2 tasks, initial states and seeds"):
        fake_env.reset(tasks=[0], init_states=[0])


def test_a_failing_worker_raises_its_own_traceback():
    pool = WorkerPool([FakeSimulator], timeout=60)
    with pytest.raises(errors.EnvError, match=r"worker 0 failed in fail(.|\n)*fake_libero(.|\n)*the arm fell off"):
        pool.call([0], "fail", [()])
    with pytest.raises(errors.EnvError, match="closed"):
        pool.call([0], "state", [()])


def test_a_dead_worker_raises_its_exit_code():
    with WorkerPool([FakeSimulator], timeout=60) as pool, pytest.raises(errors.EnvError, match="exit code 7"):
        pool.call([0], "die", [()])


def test_a_stuck_worker_raises_after_the_timeout_and_is_ended(monkeypatch):
    monkeypatch.setattr(libero_workers, "_SHUTDOWN_SECONDS", 0.2)
    pool = WorkerPool([FakeSimulator], timeout=60)
    pool.call([0], "state", [()])
    pool._timeout = 0.2
    process = pool._processes[0]
    with pytest.raises(errors.EnvError, match="stuck in sleep"):
        pool.call([0], "sleep", [(600,)])
    assert not process.is_alive()


@needs_libero
def test_resets_repeat_episodes_exactly():
    sim = LiberoSim(None)

    def episode(init_state):
        sim.reset("libero_object", 0, init_state)
        rng = np.random.default_rng(0)
        for gripper in (-1, 1):
            for _ in range(4):
                sim.step(np.append(rng.uniform(-1, 1, 6), gripper))
        return sim.simulator_state()

    before = np.random.get_state()[1].copy()
    first, other = episode(0), episode(1)
    assert np.array_equal(first, episode(0)) and not np.array_equal(first, other)
    assert np.array_equal(np.random.get_state()[1], before)  # the caller's generator is left alone
    sim.close()


@needs_libero
def test_drawn_initial_states_are_near_the_official_ones_and_none_of_them():
    sim = LiberoSim(None, settle_steps=0)
    drawn = [sim.reset("libero_object", 1, None, scene_seed=seed) for seed in (5, 5, 6)]
    official = sim.task.init_states
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])
    distance = np.abs(official - drawn[0])
    # joint noise of 0.02 rad and regions of about a centimetre; never the same state to the digit
    assert distance.max(1).min() > 1e-3 and distance[:, :10].max() < 0.2
    assert libero_sim.state_hash(drawn[0]) not in {libero_sim.state_hash(state) for state in official}
    sim.close()


class _Probe(LiberoSim):
    """Draws the same moment with everything and without what is out of view."""

    def hidden_geoms(self):
        return [int(self._out_of_view(camera).sum()) for _, camera in self.render.cameras]

    def with_everything(self):
        self._out_of_view = lambda camera: np.zeros(self.robosuite_env.sim.model._model.ngeom, bool)
        images = self.raw_images()
        del self._out_of_view
        return images


@needs_libero
def test_an_observation_is_two_rotated_cameras_and_eight_numbers():
    render = RenderOptions(image_size=64, jpeg_quality=None, reflections=False)
    make = functools.partial(_Probe, render)
    with LiberoVectorEnv("libero_object", 1, render, make_simulator=make) as env:
        env.reset([0], [0])
        seen, raw = env.observe(), env.ask("raw_images")
        whole, hidden = env.ask("with_everything"), env.ask("hidden_geoms")
        assert env.spec.instructions[0] == "pick up the alphabet soup and place it in the basket"
        assert env.spec.cameras == {"front": (64, 64), "wrist": (64, 64)} and env.spec.episode_length == 280
    assert np.array_equal(seen.images["front"][0], raw["front"][::-1, ::-1])
    # leaving out what is out of view saves time and changes no pixel
    assert hidden[1] > 50 and all(np.array_equal(raw[name], whole[name]) for name in raw)
    assert seen.state.shape == (1, 8) and seen.state.dtype == np.float32
    # open fingers at +-4 cm, gripper upright (half a turn about a horizontal axis)
    assert np.allclose(seen.state[0, 6:], [0.039, -0.039], atol=2e-3)
    assert abs(np.linalg.norm(seen.state[0, 3:6]) - np.pi) < 0.2
