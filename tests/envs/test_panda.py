"""The arm's own kinematics against MuJoCo's, and inverse kinematics against both."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from vla_jax.envs.mjx import panda, scene


@pytest.fixture(scope="module")
def model():
    return mujoco.MjModel.from_xml_string(scene.mjcf(scene.Scene((scene.Block("red"),)), panda.PANDA, with_zones=True))


def _random_joints(seed):
    return np.random.default_rng(seed).uniform([link.low for link in panda.LINKS], [link.high for link in panda.LINKS])


@pytest.mark.parametrize("seed", range(3))
def test_forward_kinematics_and_jacobian_are_those_of_mujoco(model, seed):
    data = mujoco.MjData(model)
    data.qpos[7:14] = _random_joints(seed)
    mujoco.mj_forward(model, data)
    body = model.body("tips").id
    linear, angular = np.zeros((3, model.nv)), np.zeros((3, model.nv))
    mujoco.mj_jacBody(model, data, linear, angular, body)
    position, rotation, jacobian = jax.jit(panda.forward)(jnp.asarray(data.qpos[7:14], jnp.float32))
    np.testing.assert_allclose(position, data.xpos[body], atol=2e-6)
    np.testing.assert_allclose(rotation, data.xmat[body].reshape(3, 3), atol=2e-6)
    np.testing.assert_allclose(jacobian, np.concatenate([linear, angular])[:, 6:13], atol=2e-6)


def test_inverse_kinematics_reaches_poses_over_the_table():
    home = jnp.asarray(panda._HOME, jnp.float32)
    poses = [(x, y, z, yaw) for x in (-0.15, 0.15) for y in (-0.15, 0.15) for z in (0.02, 0.15) for yaw in (-0.3, 0.3)]
    positions = jnp.array([pose[:3] for pose in poses])
    rotations = jax.vmap(lambda yaw: panda.turn(jnp.array([0.0, 0, 1]) * yaw))(jnp.array([pose[3] for pose in poses]))
    solve = jax.jit(jax.vmap(lambda position, rotation: panda.solve_inverse(home, position, rotation, 30)))
    reached, attitudes, _ = jax.vmap(panda.forward)(solve(positions, rotations))
    assert jnp.abs(reached - positions).max() < 2e-3
    assert jnp.abs(attitudes - rotations).max() < 2e-2


def test_rotation_vector_undoes_turn():
    for vector in ([0.0, 0.0, 0.0], [0.3, -0.2, 0.1], [1.0, 2.0, -0.5]):
        np.testing.assert_allclose(panda.rotation_vector(panda.turn(jnp.array(vector))), vector, atol=2e-3)


def test_joint_limits_hold_however_far_the_target():
    home = jnp.asarray(panda._HOME, jnp.float32)
    joints = panda.solve_inverse(home, jnp.array([2.0, 0, 3]), jnp.eye(3), 10)
    for joint, link in zip(joints.tolist(), panda.LINKS, strict=True):
        assert link.low - 1e-5 <= joint <= link.high + 1e-5
