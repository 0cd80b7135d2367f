"""Actions as they are recorded, as targets, or as movements: conversions of whole chunks and their exact inverses.

    recorded targets     --"delta"-->     each step relative to the state at the start of the chunk
    recorded movements   --"absolute"-->  the targets they add up to, from the state at the start of the chunk

Only the dims of `relative_dims` are converted: pairs (action dim, state dim it is measured from). Others, such as a
gripper command, pass through. The dims must be ones that add: positions and joint angles do, rotations given as angles
do only while they are small. Everything works on numpy arrays and on traced ones, with any leading dims, on physical
units: before normalization on the way in, after it is undone on the way out.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Array, Float

from vla_jax.core import errors

ActionKind = Literal["as recorded", "delta", "absolute"]
RelativeDims = tuple[tuple[int, int], ...]  # (action dim, state dim)
Chunk = Float[Array, "*b h a"]
State = Float[Array, "*b s"]


def convert(kind: ActionKind, actions: Chunk, state: State, relative_dims: RelativeDims) -> Chunk:
    """From what is recorded to what a policy learns; `state` is that of the first step of the chunk."""
    return _FORWARD[kind](actions, state, relative_dims)


def invert(kind: ActionKind, actions: Chunk, state: State, relative_dims: RelativeDims) -> Chunk:
    """From what a policy predicts to what the robot takes: the inverse of `convert` at the same state."""
    return _BACKWARD[kind](actions, state, relative_dims)


def to_chunk_delta(actions: Chunk, state: State, relative_dims: RelativeDims) -> Chunk:
    """Targets become distances from the state at the start of the chunk. Source: openpi's delta actions."""
    return actions - _base(actions, state, relative_dims)


def from_chunk_delta(actions: Chunk, state: State, relative_dims: RelativeDims) -> Chunk:
    return actions + _base(actions, state, relative_dims)


def to_step_delta(actions: Chunk, state: State, relative_dims: RelativeDims) -> Chunk:
    """Targets become movements from one target to the next, the first from the state."""
    first = actions[..., :1, :] - _base(actions, state, relative_dims)
    before = actions[..., :-1, :] * _mask(actions, relative_dims)
    return _join(actions, [first, actions[..., 1:, :] - before])


def from_step_delta(actions: Chunk, state: State, relative_dims: RelativeDims) -> Chunk:
    """Movements become the targets they add up to."""
    mask = _mask(actions, relative_dims)
    return (actions * mask).cumsum(axis=-2) + actions * (1 - mask) + _base(actions, state, relative_dims)


def check(kind: ActionKind, relative_dims: RelativeDims, action_dim: int, state_dim: int, place: str) -> None:
    """Raise ConfigError unless the dims exist, each action dim once, and a conversion has any to convert."""
    action_dims = [action for action, _ in relative_dims]
    if len(set(action_dims)) != len(action_dims) or not all(
        0 <= action < action_dim and 0 <= state < state_dim for action, state in relative_dims
    ):
        raise errors.ConfigError(
            f"{place}.relative_dims",
            expected=f"pairs of an action dim below {action_dim}, each once, and a state dim below {state_dim}",
            found=relative_dims,
        )
    if (kind != "as recorded") != bool(relative_dims):
        raise errors.ConfigError(
            f"{place}: action_kind and relative_dims go together",
            expected='both, or action_kind="as recorded" without relative_dims',
            found=f"{kind!r} with {relative_dims}",
        )


def _same(actions: Chunk, state: State, relative_dims: RelativeDims) -> Chunk:
    return actions


def _base(actions: Chunk, state: State, relative_dims: RelativeDims) -> Float[Array, "*b 1 a"]:
    """The state in the layout of an action, 0 where actions are not relative."""
    source = np.zeros(actions.shape[-1], np.int64)
    for action_dim, state_dim in relative_dims:
        source[action_dim] = state_dim
    return state[..., None, source] * _mask(actions, relative_dims)


def _mask(actions: Chunk, relative_dims: RelativeDims) -> np.ndarray:
    """1 for relative dims, of the rank of `actions`: rank promotion is an error in this house."""
    mask = np.isin(np.arange(actions.shape[-1]), [action for action, _ in relative_dims])
    return mask.astype(actions.dtype).reshape((1,) * (actions.ndim - 1) + mask.shape)


def _join(like: Chunk, parts: list[Chunk]) -> Chunk:
    return like.__array_namespace__().concatenate(parts, axis=-2)


_FORWARD: dict[str, Callable] = {"as recorded": _same, "delta": to_chunk_delta, "absolute": from_step_delta}
_BACKWARD: dict[str, Callable] = {"as recorded": _same, "delta": from_chunk_delta, "absolute": to_step_delta}
