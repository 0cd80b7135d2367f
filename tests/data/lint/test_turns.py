import numpy as np
from scipy.spatial.transform import Rotation

from vla_jax.data.lint import turns
from vla_jax.data.lint.frames import rotations_of_vectors
from vla_jax.data.lint.sample import Sample


def test_vectors_and_rotations_are_each_others_inverse():
    vectors = np.random.default_rng(0).normal(size=(50, 3))
    vectors[0] = 0
    vectors[1] *= 1e-10
    vectors[2] *= 3.1 / np.linalg.norm(vectors[2])
    short = vectors[np.linalg.norm(vectors, axis=1) < np.pi]
    np.testing.assert_allclose(turns.vectors_of_rotations(rotations_of_vectors(short)), short, atol=1e-6)


def test_turns_about_the_axes_of_the_base_add_up_whatever_the_hand_points_at():
    """Two episodes of small turns about fixed axes, begun with the hand pointing down, where rotation vectors jump."""
    rng = np.random.default_rng(1)
    steps = rng.normal(size=(2, 20, 3)) * 0.02 + [0.1, 0, 0]
    states = np.zeros((40, 5))
    for episode in range(2):
        rotation = Rotation.from_rotvec([np.pi - 0.5, 0, 0])
        for step in range(20):
            rotation = Rotation.from_rotvec(steps[episode, step]) * rotation if step else rotation
            states[20 * episode + step, 1:4] = rotation.as_rotvec()
    sample = Sample(states, np.zeros((40, 1)), np.array([0, 20, 40]), np.arange(40))
    assert np.abs(np.diff(states[:20, 1])).max() > 3  # as a rotation vector it jumps from pi to -pi
    steps[:, 0] = 0
    found = turns.added_up(sample, (1, 2, 3))
    np.testing.assert_allclose(found.states[:, 1:4], steps.cumsum(axis=1).reshape(40, 3), atol=1e-6)
    np.testing.assert_array_equal(found.states[:, [0, 4]], states[:, [0, 4]])
    assert turns.added_up(sample, None) is sample
