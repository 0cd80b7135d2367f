"""franka_sim's pick-cube on the gripper with slides, and the impedance law that drives it."""

import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from vla_jax.core import errors
from vla_jax.core.types import PromptTable
from vla_jax.envs.mjx import experts, impedance, panda, pick_cube
from vla_jax.envs.mjx.pick_cube import PickCubeConfig

SLIDES = PickCubeConfig(arm="slides", lift_height=0.1, action_scale=0.05, episode_length=30)
PROMPTS = PromptTable(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))


@pytest.fixture(scope="module")
def dense():
    """The expert's episodes under the dense reward, every step of them; the compiler takes most of the time."""
    env = SLIDES.make(PROMPTS)

    def episode(key):
        def step(state, _):
            state = env.step(state, experts.expert(env, state))
            return state, (state, env._robot_state(state))

        return jax.lax.scan(step, env.reset(key), None, SLIDES.episode_length)[1]

    program = jax.jit(jax.vmap(episode))
    return env, program(jax.random.split(jax.random.key(0), 8))


def test_the_expert_lifts_the_cube_and_the_reward_says_so(dense):
    _, (states, _) = dense
    assert states.success[:, -1].mean() >= 0.85
    lift = jnp.clip((states.physics.qpos[..., 2] - 0.02) / 0.1, 0, 1)
    hand = states.physics.qpos[..., 7:10]
    near = jnp.exp(-20 * jnp.linalg.norm(states.physics.qpos[..., :3] - hand, axis=-1))
    np.testing.assert_allclose(states.reward, 0.3 * near + 0.7 * lift, atol=1e-4)
    np.testing.assert_array_equal(states.success, jnp.cumsum(lift >= 1, axis=1) > 0)


def test_under_the_dense_reward_only_time_ends_an_episode(dense):
    _, (states, _) = dense
    assert (states.discount == 1).all()
    assert states.done[:, -1].all() and not states.done[:, :-1].any()


def test_the_state_is_in_the_frame_of_the_arms_base(dense):
    env, (states, observed) = dense
    assert observed.shape[-1] == env.spec.state_dim == 10
    np.testing.assert_allclose(observed[..., 7:], states.physics.qpos[..., :3] + jnp.array([[[0.5, 0, 0]]]), atol=1e-6)
    low, high = jnp.array([[0.25, -0.25]]), jnp.array([[0.55, 0.25]])
    first = observed[:, 0, 7:9]
    assert ((first > low - 0.01) & (first < high + 0.01)).all()
    moved = jnp.diff(observed[..., :3], axis=1)  # metres per 0.05 s
    assert jnp.corrcoef(moved.ravel(), observed[:, 1:, 3:6].ravel())[0, 1] > 0.9


def test_success_ends_an_episode_of_the_sparse_reward():
    env = dataclasses.replace(SLIDES, reward="sparse").make(PROMPTS)
    state = env.reset(jax.random.key(1))
    lifted = state.physics.qpos.at[2].set(0.2)
    step = jax.jit(env.step)
    here = step(state, jnp.zeros(4))
    there = step(state.replace(physics=state.physics.replace(qpos=lifted)), jnp.zeros(4))
    assert (float(here.reward), float(here.discount), bool(here.done)) == (0.0, 1.0, False)
    assert (float(there.reward), float(there.discount), bool(there.done)) == (1.0, 0.0, True)


def test_targets_stay_in_the_workspace():
    env = SLIDES.make(PROMPTS)
    corner = env._move(jnp.array([0.0, 0.0, 0.1]), jnp.array([100.0, -100.0, 100.0, 0]))
    np.testing.assert_allclose(corner + jnp.array(pick_cube.BASE), [0.6, -0.3, 0.5], atol=1e-6)


def test_the_arm_reports_the_velocity_of_its_fingertips():
    """Against a difference of its own forward kinematics."""
    env = PickCubeConfig().make(PROMPTS)
    physics = jax.eval_shape(env.reset, jax.random.key(0)).physics
    joints, rates = jnp.asarray(panda._HOME, jnp.float32), jnp.linspace(-0.5, 0.5, 7)
    qpos = jnp.zeros(physics.qpos.shape).at[7:14].set(joints)
    qvel = jnp.zeros(physics.qvel.shape).at[6:13].set(rates)
    measured = env._hand_velocity(physics.replace(qpos=qpos, qvel=qvel))
    moved = (panda.forward(joints + 1e-2 * rates)[0] - panda.forward(joints - 1e-2 * rates)[0]) / 2e-2
    np.testing.assert_allclose(measured, moved, atol=2e-3)


def test_a_commanded_step_of_a_metre_pulls_no_harder_than_the_limit():
    """2000 N/m held to 3 mm is 6 N, wherever the target is."""
    zero, stiffness, limit = jnp.zeros(3), jnp.full(3, 2000.0), jnp.full(3, 0.003)
    exerted = impedance.force(zero, zero, jnp.array([1.0, -1.0, 0.001]), stiffness, jnp.full(3, 89.0), limit)
    np.testing.assert_allclose(exerted, [6.0, -6.0, 2.0], rtol=1e-5)


@hypothesis.given(st.floats(-1, 1), st.floats(-1, 1), st.floats(1e-4, 0.1), st.floats(-1, 1))
@hypothesis.settings(max_examples=30)
def test_the_force_is_bounded_at_any_speed_the_limit_allows(position, target, limit, share):
    """At most 2 limits per control step of 0.1 s is what the bound counts with."""
    velocity = share * 2 * limit * 10.0
    one = jnp.ones(1)
    exerted = impedance.force(position * one, velocity * one, target * one, 2000 * one, 89 * one, limit * one)
    assert abs(float(exerted[0])) <= impedance.contact_force_bound(2000.0, 89.0, limit, 10.0) * (1 + 1e-3) + 1e-3


@pytest.mark.parametrize("wrong", [{"arm": "crane"}, {"lift_height": 0.0}, {"block_low": (0.6, 0.0)}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(errors.ConfigError):
        PickCubeConfig(**wrong)
