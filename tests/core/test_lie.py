"""Rotations against their defining properties; the frame matrices against the velocities they should carry."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_jax.core import lie

numbers = st.floats(-1, 1, width=32)
vectors = st.tuples(numbers, numbers, numbers).map(lambda v: jnp.array(v, jnp.float32))
quaternions = st.tuples(numbers, numbers, numbers, st.floats(0.1, 1)).map(lambda q: jnp.array(q, jnp.float32))
poses = st.builds(lambda p, q: lie.pose(p, lie.from_quaternion(q)), vectors, quaternions)
EXAMPLES = settings(max_examples=25, deadline=None)


@EXAMPLES
@given(poses)
def test_poses_are_rigid_and_their_inverse_undoes_them(pose):
    turn = lie.rotation(pose)
    np.testing.assert_allclose(turn @ turn.T, jnp.eye(3), atol=1e-5)
    assert abs(float(jnp.linalg.det(turn)) - 1) < 1e-4
    np.testing.assert_allclose(lie.inverse(pose) @ pose, jnp.eye(4), atol=1e-5)
    columns = lie.from_columns(2 * turn[:, 0], turn[:, 1] + 0.3 * turn[:, 0])
    np.testing.assert_allclose(columns, turn, atol=1e-5)


def test_a_quarter_turn_about_z():
    half = np.pi / 4
    turn = lie.from_quaternion(3 * jnp.array([0, 0, np.sin(half), np.cos(half)]))
    np.testing.assert_allclose(turn, [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-6)


@EXAMPLES
@given(poses, poses, poses)
def test_a_relative_pose_does_not_depend_on_the_frame_both_are_told_in(frame, start, now):
    np.testing.assert_allclose(lie.relative(start, start), jnp.eye(4), atol=1e-5)
    np.testing.assert_allclose(lie.relative(frame @ start, frame @ now), lie.relative(start, now), atol=1e-5)


@EXAMPLES
@given(poses, vectors, vectors)
def test_every_frame_matrix_has_its_inverse(pose, linear, angular):
    twist = jnp.concatenate([linear, angular])
    for compat in (False, True):
        matrix = lie.frame_matrix(pose, serl_compat=compat)
        np.testing.assert_allclose(jnp.linalg.inv(matrix) @ (matrix @ twist), twist, atol=1e-4)


@EXAMPLES
@given(poses, vectors)
def test_a_translation_turns_nothing_but_in_compat_mode_by_the_quirk(pose, linear):
    twist = jnp.concatenate([linear, jnp.zeros(3)])
    moved = lie.frame_matrix(pose) @ twist
    np.testing.assert_allclose(moved, jnp.concatenate([lie.rotation(pose) @ linear, jnp.zeros(3)]), atol=1e-5)
    quirk = lie.frame_matrix(pose, serl_compat=True) @ twist
    np.testing.assert_allclose(quirk[:3], moved[:3], atol=1e-5)
    expected = jnp.cross(lie.position(pose), lie.rotation(pose) @ linear)
    np.testing.assert_allclose(quirk[3:], expected, atol=1e-5)


def test_the_adjoint_carries_a_body_twist_to_the_base():
    """Every point of the tool has the velocity that the base-frame twist says."""
    pose = lie.pose(jnp.array([0.3, -0.2, 0.5]), lie.from_quaternion(jnp.array([0.2, -0.4, 0.1, 0.9])))
    linear, angular = jnp.array([0.3, 0.1, -0.2]), jnp.array([0.5, -0.7, 0.2])
    point = jnp.array([0.1, 0.4, -0.3])  # in the tool's frame
    velocity = lie.rotation(pose) @ (linear + jnp.cross(angular, point))
    carried = lie.adjoint(pose) @ jnp.concatenate([linear, angular])
    in_base = lie.rotation(pose) @ point + lie.position(pose)
    np.testing.assert_allclose(carried[:3] + jnp.cross(carried[3:], in_base), velocity, atol=1e-5)


def test_poses_batch_and_differentiate():
    positions, quaternions_ = jnp.ones((2, 3)), jnp.tile(jnp.array([[0.1, 0.2, 0.3, 0.9]]), (2, 1))
    batch = lie.pose(positions, lie.from_quaternion(quaternions_))
    assert lie.adjoint(batch).shape == lie.serl_matrix(batch).shape == (2, 6, 6)
    slope = jax.grad(lambda p: lie.position(lie.inverse(lie.pose(p, jnp.eye(3))))[0])(jnp.zeros(3))
    np.testing.assert_allclose(slope, [-1, 0, 0])
