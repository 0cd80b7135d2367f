"""Poses as 4x4 matrices, and the 6x6 matrices that carry velocities and small motions between frames.

All of it is differentiable and takes leading axes. A twist is `(v, w)`: three linear entries (metres per second, or
metres), then three angular ones. For a pose `T = (R, p)` of a tool in the base frame:

    tool_rotation(T)   [[R, 0], [0, R]]       motion of the tool's own point, told in its axes -> in the base's axes
    adjoint(T)         [[R, [p]R], [0, R]]    twist of the body, about the tool's origin -> about the base's origin
    serl_matrix(T)     [[R, 0], [[p]R, R]]    what SERL's code applies to (v, w); right for (w, v)

Source of the last: SERL (arXiv 2401.16013), its relative frame; see `frame_matrix`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def pose(position: Float[Array, "*b 3"], rotation: Float[Array, "*b 3 3"]) -> Float[Array, "*b 4 4"]:
    """The homogeneous matrix of a position and a rotation."""
    top = jnp.concatenate([rotation, position[..., None]], axis=-1)
    bottom = jnp.broadcast_to(jnp.array([0.0, 0, 0, 1], top.dtype), (*top.shape[:-2], 4))
    return jnp.concatenate([top, bottom[..., None, :]], axis=-2)


def position(matrix: Float[Array, "*b 4 4"]) -> Float[Array, "*b 3"]:
    return matrix[..., :3, 3]


def rotation(matrix: Float[Array, "*b 4 4"]) -> Float[Array, "*b 3 3"]:
    return matrix[..., :3, :3]


def from_quaternion(quaternion: Float[Array, "*b 4"]) -> Float[Array, "*b 3 3"]:
    """The rotation of a quaternion `(x, y, z, w)`, of any length but 0."""
    x, y, z, w = jnp.moveaxis(quaternion / jnp.linalg.norm(quaternion, axis=-1, keepdims=True), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def from_columns(first: Float[Array, "*b 3"], second: Float[Array, "*b 3"]) -> Float[Array, "*b 3 3"]:
    """The rotation whose first two columns are these, made orthogonal. Source: Zhou et al. (arXiv 1812.07035)."""
    x = first / jnp.linalg.norm(first, axis=-1, keepdims=True)
    y = second - (x * second).sum(-1, keepdims=True) * x
    y = y / jnp.linalg.norm(y, axis=-1, keepdims=True)
    return jnp.stack([x, y, jnp.cross(x, y)], axis=-1)


def inverse(matrix: Float[Array, "*b 4 4"]) -> Float[Array, "*b 4 4"]:
    """Of a pose, without solving anything."""
    back = jnp.swapaxes(rotation(matrix), -1, -2)
    return pose(-jnp.einsum("...ij,...j->...i", back, position(matrix)), back)


def relative(start: Float[Array, "*b 4 4"], now: Float[Array, "*b 4 4"]) -> Float[Array, "*b 4 4"]:
    """`now` as seen from `start`: the identity where they are equal, whatever frame both are told in."""
    return inverse(start) @ now


def cross_matrix(vector: Float[Array, "*b 3"]) -> Float[Array, "*b 3 3"]:
    """`[v]` with `[v] u = v x u`."""
    x, y, z = jnp.moveaxis(vector, -1, 0)
    zero = jnp.zeros_like(x)
    rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def tool_rotation(matrix: Float[Array, "*b 4 4"]) -> Float[Array, "*b 6 6"]:
    turn = rotation(matrix)
    return _blocks(turn, jnp.zeros_like(turn), jnp.zeros_like(turn), turn)


def adjoint(matrix: Float[Array, "*b 4 4"]) -> Float[Array, "*b 6 6"]:
    turn = rotation(matrix)
    return _blocks(turn, cross_matrix(position(matrix)) @ turn, jnp.zeros_like(turn), turn)


def serl_matrix(matrix: Float[Array, "*b 4 4"]) -> Float[Array, "*b 6 6"]:
    """With it a pure translation `v` in the tool's axes also turns the tool, by `[p] R v`."""
    turn = rotation(matrix)
    return _blocks(turn, jnp.zeros_like(turn), cross_matrix(position(matrix)) @ turn, turn)


def frame_matrix(matrix: Float[Array, "*b 4 4"], *, serl_compat: bool = False) -> Float[Array, "*b 6 6"]:
    """Actions `(v, w)` in the tool's axes to the base's.

    The default turns both and mixes nothing, which is right for displacements of the tool's point. `serl_compat` takes
    the released code's matrix, for policies and data that were made with it.
    """
    return serl_matrix(matrix) if serl_compat else tool_rotation(matrix)


def _blocks(a, b, c, d) -> Float[Array, "*b 6 6"]:
    return jnp.concatenate([jnp.concatenate([a, b], axis=-1), jnp.concatenate([c, d], axis=-1)], axis=-2)
