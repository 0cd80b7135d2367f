"""Orientations as numbers that add up, so that turns can be compared with actions dim by dim."""

import dataclasses

import numpy as np
from jaxtyping import Float64

from vla_jax.data.lint.frames import rotations_of_vectors
from vla_jax.data.lint.sample import Sample

_SMALL = 1e-9  # radians


def added_up(sample: Sample, dims: tuple[int, ...] | None) -> Sample:
    """The sample with the rotation vector in these three state dims replaced by the turn since the start of its
    episode: the sum over steps of how far the robot turned about the x, y and z axes of its base.

    A hand that points down has a rotation vector of about (pi, 0, 0): its third number then says little of a turn about
    the vertical, which moves the second one, and by half.
    """
    if dims is None or max(dims) >= sample.states.shape[1] or len(sample.states) < 2:
        return sample
    rotations = rotations_of_vectors(sample.states[:, list(dims)])
    turns = np.zeros((len(rotations), 3))
    turns[1:] = vectors_of_rotations(rotations[1:] @ rotations[:-1].transpose(0, 2, 1))
    turns[sample.starts[:-1]] = 0
    states = sample.states.copy()
    for start, stop in zip(sample.starts[:-1], sample.starts[1:], strict=True):
        states[start:stop, list(dims)] = np.cumsum(turns[start:stop], axis=0)
    return dataclasses.replace(sample, states=states)


def vectors_of_rotations(rotations: Float64[np.ndarray, "n 3 3"]) -> Float64[np.ndarray, "n 3"]:
    """The inverse of `rotations_of_vectors` for turns of less than half a circle."""
    twice_sine = np.stack(
        [
            rotations[:, 2, 1] - rotations[:, 1, 2],
            rotations[:, 0, 2] - rotations[:, 2, 0],
            rotations[:, 1, 0] - rotations[:, 0, 1],
        ],
        axis=1,
    )
    sine = np.linalg.norm(twice_sine, axis=1) / 2
    angle = np.arctan2(sine, (np.trace(rotations, axis1=1, axis2=2) - 1) / 2)
    return twice_sine / 2 * np.where(sine > _SMALL, angle / np.maximum(sine, _SMALL), 1)[:, None]
