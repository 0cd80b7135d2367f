"""Are translations given in the robot's base frame or in the tool's?"""

import numpy as np
from jaxtyping import Float64

from vla_jax.data.lint import matching
from vla_jax.data.lint.report import Notes
from vla_jax.data.lint.sample import Sample

_BETTER = 0.2  # of explained movement that a rotation by the tool must gain
_TURNED = 0.2  # radians by which orientations must spread, or frames cannot be told apart


def check(sample: Sample, notes: Notes) -> bool:
    """For states that begin with a position and an orientation (rotation vector or xyz Euler angles) and actions that
    begin with a translation. True when the actions are in the tool's frame."""
    rows = sample.steps(1)
    if sample.states.shape[1] < 6 or sample.actions.shape[1] < 3 or len(rows) < 8:
        return False
    orientation, moved = sample.states[rows, 3:6], sample.movements(rows)[:, :3]
    if orientation.std(0).max() < _TURNED:
        return False
    acted = sample.actions[rows, :3]
    shares = {
        "base frame": _explained(acted, moved),
        "tool frame (rotation vector)": _explained(_turned(rotations_of_vectors(orientation), acted), moved),
        "tool frame (xyz Euler angles)": _explained(_turned(rotations_of_euler(orientation), acted), moved),
    }
    best = max(shares, key=shares.get)
    if best == "base frame" or shares[best] < shares["base frame"] + _BETTER or shares[best] < matching.MATCHED**2:
        return False
    notes.error(
        "action frame",
        f"translations fit the movement in the {best}, where they explain {shares[best]:.0%} of it; in the base frame "
        f"{shares['base frame']:.0%}",
        "rotate the first three action dims by the orientation of the state, if base-frame actions are wanted",
    )
    return True


def rotations_of_vectors(vectors: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n 3 3"]:
    """Rodrigues' formula; the length is the angle in radians."""
    angle = np.linalg.norm(vectors, axis=1)
    x, y, z = (vectors / np.maximum(angle, 1e-12)[:, None]).T
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)
    sin, cos = np.sin(angle)[:, None, None], np.cos(angle)[:, None, None]
    return np.eye(3) + sin * cross + (1 - cos) * (cross @ cross)


def rotations_of_euler(angles: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n 3 3"]:
    """Turns about the fixed x, then y, then z axis, in radians."""
    about = [rotations_of_vectors(angles[:, [axis]] * np.eye(3)[axis]) for axis in range(3)]
    return about[2] @ about[1] @ about[0]


def _turned(rotations: Float64[np.ndarray, "n 3 3"], vectors: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n 3"]:
    return np.einsum("nij,nj->ni", rotations, vectors)


def _explained(acted: Float64[np.ndarray, "n 3"], moved: Float64[np.ndarray, "n 3"]) -> float:
    """Share of the movement that one factor times the action explains: axes may not be exchanged for each other."""
    energy = float((acted**2).sum())
    factor = float((acted * moved).sum()) / energy if energy > 0 else 0.0
    return 1 - float(((moved - factor * acted) ** 2).sum()) / max(float((moved**2).sum()), 1e-12)
