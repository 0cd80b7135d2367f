"""What OGBench's tasks want, as numbers, and the rewards and goals that recorded simulator states give for them.

    goal = task_goals(simulator)[1]                          # task 2; kept in the metadata of a generated set
    rewards, discounts = relabel(scene, states, goal)        # of the single-task variant
    representation = oracle_representation(scene, states)    # what its "oraclerep" environments give as a goal

Only `task_goals` needs OGBench. Source of the rules: ogbench 1.2.2 (arXiv 2410.20092), `compute_success` and
`_compute_successes` of its environments. Letters: t steps, q positions, k buttons.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from vla_jax.core import errors
from vla_jax.envs.ogbench_sim import Scene

_OBJECTS = 14  # positions of the arm (6) and the gripper (8) come first
_CUBE_SIZE = 7  # a cube's position (3) and quaternion (4)
_TOLERANCE = 0.04  # metres, of cubes, drawer and window
_MAZE_TOLERANCE = 1.0  # of the point; a cell of the maze is 4 wide
_CENTER, _SCALE = np.array([0.425, 0.0, 0.0]), 10.0  # of positions in observations
_DRAWER_SCALE, _WINDOW_SCALE = 18.0, 15.0


@dataclasses.dataclass(frozen=True)
class States:
    """Simulator states, one per step."""

    qpos: Float[np.ndarray, "t q"]
    button_states: Int[np.ndarray, "t k"]  # k 0 where there are no buttons

    def __post_init__(self):
        if len(self.qpos) != len(self.button_states):
            raise errors.DataError(
                "simulator states", expected="as many of each", found=(len(self.qpos), len(self.button_states))
            )


@dataclasses.dataclass(frozen=True)
class TaskGoal:
    """Where everything must be for a task to be solved; what the scene lacks is empty."""

    cubes: tuple[tuple[float, float, float], ...] = ()  # metres
    buttons: tuple[int, ...] = ()
    drawer: float | None = None
    window: float | None = None
    place: tuple[float, float] | None = None  # of the point in the maze

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TaskGoal":
        return cls(
            cubes=tuple(tuple(cube) for cube in values["cubes"]),
            buttons=tuple(values["buttons"]),
            drawer=values["drawer"],
            window=values["window"],
            place=None if values["place"] is None else tuple(values["place"]),
        )


def task_goals(simulator: Any) -> tuple[TaskGoal, ...]:
    """The goals of an OGBench environment in task mode, in the order of its tasks."""
    return tuple(_goal_of(info) for info in simulator.task_infos)


def _goal_of(info: Mapping[str, Any]) -> TaskGoal:
    if "goal_ij" in info:
        return TaskGoal(place=tuple(float(x) for x in info["goal_xy"]))
    if "goal_xyzs" in info:
        return TaskGoal(cubes=_triples(info["goal_xyzs"]))
    if "goal_button_states" in info:
        return TaskGoal(buttons=tuple(int(state) for state in info["goal_button_states"]))
    goal = info["goal"]
    return TaskGoal(
        cubes=_triples(goal["block_xyzs"]),
        buttons=tuple(int(state) for state in goal["button_states"]),
        drawer=float(goal["drawer_pos"]),
        window=float(goal["window_pos"]),
    )


def _triples(places: np.ndarray) -> tuple[tuple[float, float, float], ...]:
    return tuple(tuple(float(x) for x in place) for place in places)


def successes(scene: Scene, states: States, goal: TaskGoal) -> Bool[np.ndarray, "t parts"]:
    """Which parts of the task are solved in every state: cubes, buttons, drawer, window; or the place in the maze."""
    _check(scene, states)
    if scene.kind == "pointmaze":
        return (np.linalg.norm(states.qpos[:, :2] - np.array(goal.place), axis=-1) <= _MAZE_TOLERANCE)[:, None]
    parts = []
    if scene.num_cubes:
        distance = np.linalg.norm(_cubes(scene, states) - np.array(goal.cubes), axis=-1)
        parts.append(distance <= _TOLERANCE)
    if scene.num_buttons:
        parts.append(states.button_states == np.array(goal.buttons))
    if scene.kind == "scene":
        slides = _slides(scene, states) - np.array([goal.drawer, goal.window])
        parts.append(np.abs(slides) <= _TOLERANCE)
    return np.concatenate(parts, axis=-1)


def relabel(scene: Scene, states: States, goal: TaskGoal) -> tuple[Float32[np.ndarray, "t"], Float32[np.ndarray, "t"]]:
    """Rewards and discounts of acting in these states, as the single-task environments count them.

    The reward is minus the number of unsolved parts in the state the action is taken in, so 0 where the task is solved;
    the discount is 0 there: the task has ended.
    """
    solved = successes(scene, states, goal)
    rewards = solved.sum(axis=-1) - solved.shape[-1]
    return rewards.astype(np.float32), 1 - solved.all(axis=-1).astype(np.float32)


def oracle_representation(scene: Scene, states: States) -> Float32[np.ndarray, "t g"]:
    """What a goal-conditioned agent may be told of a state as its goal: where the objects are, nothing of the robot."""
    _check(scene, states)
    if scene.kind == "pointmaze":
        return states.qpos[:, :2].astype(np.float32)
    parts = []
    if scene.num_cubes:
        parts.append(((_cubes(scene, states) - _CENTER) * _SCALE).reshape(len(states.qpos), -1))
    if scene.num_buttons:
        parts.append(states.button_states.astype(np.float64))
    if scene.kind == "scene":
        parts.append(_slides(scene, states) * np.array([_DRAWER_SCALE, _WINDOW_SCALE]))
    return np.concatenate(parts, axis=-1).astype(np.float32)


def _cubes(scene: Scene, states: States) -> Float[np.ndarray, "t n 3"]:
    stop = _OBJECTS + scene.num_cubes * _CUBE_SIZE
    return states.qpos[:, _OBJECTS:stop].reshape(len(states.qpos), scene.num_cubes, _CUBE_SIZE)[..., :3]


def _slides(scene: Scene, states: States) -> Float[np.ndarray, "t 2"]:
    """Positions of drawer and window, which follow the cubes and the buttons' own joints."""
    start = _OBJECTS + scene.num_cubes * _CUBE_SIZE + scene.num_buttons
    return states.qpos[:, start : start + 2]


def _check(scene: Scene, states: States) -> None:
    width = 2
    if scene.kind != "pointmaze":
        width = _OBJECTS + scene.num_cubes * _CUBE_SIZE + scene.num_buttons + 2 * (scene.kind == "scene")
    if states.qpos.shape[1] != width or states.button_states.shape[1] != scene.num_buttons:
        raise errors.DataError(
            f"simulator states of {scene}",
            expected=f"{width} positions and {scene.num_buttons} buttons",
            found=f"{states.qpos.shape[1]} and {states.button_states.shape[1]}",
        )
