"""The tasks of the tabletop suite: a scene, what to do in it, and when it is done.

Every scene has objects (and fixtures) of several colours and the instruction names which are meant: the right motion
with the wrong object, or to the wrong target, is not success.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from vla_jax.core.registry import Registry
from vla_jax.envs.mjx.scene import Ball, Bin, Block, Scene, Zone


class View(struct.PyTreeNode):
    """Privileged state of one environment in metres and radians: what success tests and experts look at."""

    objects: Float[Array, "n 3"]
    object_yaw: Float[Array, "n"]
    fixtures: Float[Array, "p 2"]  # of zones or bins, on the table
    hand: Float[Array, "3"]  # the point between the fingertips
    yaw: Float[Array, ""]
    fingers: Float[Array, "2"]  # travel of each, 0 closed
    grip: Float[Array, ""]  # the last command: 1 close, 0 open
    target: Float[Array, "4"]  # x, y, z, yaw the hand is driven to
    goal_object: Int[Array, ""]
    goal_target: Int[Array, ""]  # a fixture, or another object when stacking

    @property
    def object(self) -> Float[Array, "3"]:
        """The object the instruction names."""
        return self.objects[self.goal_object]

    @property
    def fixture(self) -> Float[Array, "2"]:
        """The zone or bin the instruction names."""
        return self.fixtures[self.goal_target]


@dataclasses.dataclass(frozen=True)
class Goal:
    """One instruction and what it means: indices into `Scene.objects` and into fixtures (or objects)."""

    instruction: str
    object: int
    target: int = 0


@dataclasses.dataclass(frozen=True)
class Task:
    name: str
    scene: Scene
    goals: tuple[Goal, ...]
    success: Callable[[View], Bool[Array, ""]]
    distance: Callable[[View], Float[Array, ""]]  # metres still to go; a diagnostic, not a reward
    episode_length: int  # control steps
    spacing: float = 0.09  # metres, least distance between centres at reset
    spread: float = 0.13  # metres, things start within this square


def spread_out(key, num_points: int, spacing: float, half_width: float, candidates: int = 256) -> Float[Array, "n 2"]:
    """Points in a square, no two nearer than `spacing`: the first of `candidates` random sets that is, else the best.

    No rejection loop, so that it vmaps at constant cost.
    """
    sets = jax.random.uniform(key, (candidates, num_points, 2), minval=-half_width, maxval=half_width)
    offsets = sets[:, :, None] - sets[:, None]
    gaps = jnp.linalg.norm(offsets, axis=-1) + 10 * jnp.eye(num_points)[None]
    return sets[jnp.argmax(jnp.minimum(gaps.min((1, 2)), spacing))]


def _is_released(view: View) -> Array:
    return (view.grip < 0.5) & (view.fingers[0] > 0.03)


def _distance_to_fixture(view: View) -> Array:
    return jnp.linalg.norm(view.object[:2] - view.fixture)


def _is_lifted(view: View) -> Array:
    return (view.object[2] > 0.08) & (jnp.linalg.norm(view.object - view.hand) < 0.04)


def _is_placed(view: View) -> Array:
    return (_distance_to_fixture(view) < 0.035) & (view.object[2] < 0.03) & _is_released(view)


def _is_pushed(view: View) -> Array:
    return (_distance_to_fixture(view) < 0.03) & (view.object[2] < 0.03)


def _is_stacked(view: View) -> Array:
    base = view.objects[view.goal_target]
    above = view.object - base
    aligned = jnp.linalg.norm(above[:2]) < 0.025  # within the half size plus a margin for a turned block
    resting = (jnp.abs(above[2] - 0.04) < 0.006) & (base[2] < 0.03)
    return aligned & resting & _is_released(view)


def _is_binned(view: View) -> Array:
    offset = jnp.abs(view.object[:2] - view.fixture).max()
    return (offset < 0.035) & (view.object[2] < 0.03) & _is_released(view)


def _distance_to_base(view: View) -> Array:
    offset = view.object - view.objects[view.goal_target] - jnp.array([0, 0, 0.04])
    return jnp.linalg.norm(offset)


def _goals(words: tuple[str, ...], objects: tuple[str, ...], targets: tuple[str, ...]) -> tuple[Goal, ...]:
    """Every way of saying it, of every object and target."""
    return tuple(
        Goal(sentence.format(color, target), i, j)
        for i, color in enumerate(objects)
        for j, target in enumerate(targets)
        for sentence in words
    )


_OBJECTS, _TARGETS, _THREE = ("red", "blue"), ("green", "yellow"), ("red", "blue", "green")
_ZONES = Scene(tuple(map(Block, _OBJECTS)), tuple(map(Zone, _TARGETS)))

_PLACE = Task(
    name="place",
    scene=_ZONES,
    goals=_goals(("put the {} block on the {} zone",), _OBJECTS, _TARGETS),
    success=_is_placed,
    distance=_distance_to_fixture,
    episode_length=60,
)

_LIFT = Task(
    name="lift",
    scene=Scene(tuple(map(Block, _THREE))),
    goals=_goals(("pick up the {} block", "lift the {} cube"), _THREE, ("",)),
    success=_is_lifted,
    distance=lambda view: jnp.maximum(0.08 - view.object[2], 0.0),
    episode_length=40,
)

_PUSH = Task(
    name="push",
    scene=_ZONES,
    goals=_goals(("push the {} block to the {} zone", "slide the {} block onto the {} zone"), _OBJECTS, _TARGETS),
    success=_is_pushed,
    distance=_distance_to_fixture,
    episode_length=80,
    spacing=0.12,  # room to go behind the block
)

_STACK = Task(
    name="stack",
    scene=Scene(tuple(map(Block, _THREE)), objects_touch=True),
    goals=tuple(
        goal for goal in _goals(("stack the {} block on the {} block",), _THREE, _THREE) if goal.object != goal.target
    ),
    success=_is_stacked,
    distance=_distance_to_base,
    episode_length=70,
    spacing=0.10,
)

_BIN = Task(
    name="bin",
    scene=Scene(tuple(map(Ball, _OBJECTS)), tuple(map(Bin, _TARGETS)), flat_fingers=True),
    goals=_goals(("put the {} ball in the {} bin",), _OBJECTS, _TARGETS),
    success=_is_binned,
    distance=_distance_to_fixture,
    episode_length=70,
    spacing=0.12,
    spread=0.15,
)

TASKS = Registry("tabletop_task", {task.name: task for task in (_PLACE, _LIFT, _PUSH, _STACK, _BIN)})
