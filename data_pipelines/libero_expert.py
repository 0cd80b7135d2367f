"""A scripted pick-and-place expert for LIBERO tasks that reads the simulator's poses and collision geometry.

    goal ("in", can, basket) -> grasp (across the narrow side, or over a rim) -> hover, down, close, lift, carry,
    lower until contact, open, retreat;  each phase servoes robosuite's OSC_POSE deltas

No tuning per object. It serves goals made of "on" and "in" (libero_object, parts of the goal and spatial suites) and
refuses the others by name. What it makes are scripted demonstrations on the official tasks, never the official ones.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import mujoco
import numpy as np
from jaxtyping import Float

from vla_jax.core import errors
from vla_jax.envs.libero_sim import LiberoSim

Vector = Float[np.ndarray, "3"]
Rotation = Float[np.ndarray, "3 3"]
Phase = Iterator[Float[np.ndarray, "7"]]  # yields actions; what it returns is its outcome

OPEN, CLOSE = -1.0, 1.0
_POSITION_UNIT, _ROTATION_UNIT = 0.05, 0.5  # m and rad per control step at action 1
_WIDEST_GRASP = 0.07  # m; the Panda's fingers open 8 cm
_FINGER_DEPTH = 0.035  # m from an object's top to the grasp point
_UP = np.array([0.0, 0.0, 1.0])
_CUBE = np.stack(np.meshgrid(*3 * [[-1.0, 1.0]]), -1).reshape(-1, 3)
_LATTICE = np.stack(np.meshgrid(*3 * [np.linspace(-1.0, 1.0, 7)]), -1).reshape(-1, 3)


@dataclasses.dataclass(frozen=True)
class ExpertOptions:
    gain: float = 1.5  # action per unit of error; above 2 the arm overshoots
    action_noise: float = 0.1  # largest standard deviation on the six motion entries; each episode draws its own
    waypoint_noise: float = 0.01  # m; standard deviation of the hover points, so that episodes take different ways

    def __post_init__(self):
        if not (0 < self.gain <= 3 and 0 <= self.action_noise < 1 and 0 <= self.waypoint_noise < 0.05):
            raise errors.ConfigError(
                "ExpertOptions",
                expected="gain in (0, 3], action_noise in [0, 1), waypoint_noise in [0, 0.05)",
                found=self,
            )


@dataclasses.dataclass(frozen=True)
class Grasp:
    kind: str  # "centre" or "rim"
    closing_axis: Vector  # horizontal unit vector along which the fingers close
    position: Vector  # of the gripper's site


class Scene:
    """What the expert asks of the simulator: poses now, collision geometry, contacts."""

    def __init__(self, sim: LiberoSim):
        self.env = sim.robosuite_env
        self.model, self.data = self.env.sim.model._model, self.env.sim.data._data
        names = {mujoco.mj_id2name(self.model, mujoco.mjtObj.mjOBJ_BODY, i) or "": i for i in range(self.model.nbody)}
        self._left, self._right = (
            next(i for name, i in names.items() if name.endswith(finger)) for finger in ("leftfinger", "rightfinger")
        )
        self._site = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_SITE, "gripper0_grip_site")

    @property
    def goals(self) -> list[tuple[str, ...]]:
        return [tuple(goal) for goal in self.env.parsed_problem["goal_state"]]

    def gripper(self) -> tuple[Vector, Rotation]:
        return self.data.site_xpos[self._site].copy(), self.data.site_xmat[self._site].reshape(3, 3).copy()

    def closing_axis(self) -> Vector:
        axis = self.data.xpos[self._left] - self.data.xpos[self._right]
        axis[2] = 0
        return axis / np.linalg.norm(axis)

    def finger_gap(self) -> float:
        return float(np.linalg.norm(self.data.xpos[self._left] - self.data.xpos[self._right]))

    def is_body(self, name: str) -> bool:
        return name in self.env.obj_body_id

    def position(self, name: str) -> Vector:
        return self.data.xpos[self.env.obj_body_id[name]].copy()

    def points(self, name: str) -> Float[np.ndarray, "n 3"]:
        """Corners of the collision geometry: mesh vertices, and the bounding boxes of primitives."""
        clouds = []
        for geom in self._geoms(self.env.obj_body_id[name]):
            mesh = self.model.geom_dataid[geom]
            if self.model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH:
                start = self.model.mesh_vertadr[mesh]
                local = self.model.mesh_vert[start : start + self.model.mesh_vertnum[mesh]]
            else:
                local = self._in_box(geom, _CUBE)
            clouds.append(self._to_world(geom, local))
        return np.concatenate(clouds)

    def obstacles(self, besides: str) -> Float[np.ndarray, "n 3"]:
        """A lattice of points inside the bounding boxes of everything that can be bumped into but `besides`."""
        names = [n for n in (*self.env.objects_dict, *self.env.fixtures_dict) if n != besides and self.is_body(n)]
        geoms = [geom for name in names for geom in self._geoms(self.env.obj_body_id[name])]
        clouds = [self._to_world(geom, self._in_box(geom, _LATTICE)) for geom in geoms]
        return np.concatenate(clouds) if clouds else np.zeros((0, 3))

    def touching(self, first: str, second: str) -> bool:
        return bool(self.env.check_contact(self.env.get_object(first), self.env.get_object(second)))

    def target(self, name: str) -> tuple[Vector, float, str]:
        """Where an object put on or into `name` belongs, the height to clear there, and the body that carries it."""
        if self.is_body(name):
            return self.position(name), self.points(name)[:, 2].max(), name
        position = self.data.site_xpos[self.env.sim.model.site_name2id(name)].copy()
        site = self.env.object_sites_dict.get(name)
        body = site.parent_name if site is not None else name
        if not self.is_body(body):
            return position, position[2], body
        points = self.points(body)
        near = points[np.linalg.norm(points[:, :2] - position[:2], axis=1) < 0.12]
        return position, (near if len(near) else points)[:, 2].max(), body

    def _geoms(self, body: int) -> list[int]:
        found = []
        for geom in range(self.model.ngeom):
            owner = self.model.geom_bodyid[geom]
            while owner not in (0, body):
                owner = self.model.body_parentid[owner]
            if owner == body and (self.model.geom_contype[geom] or self.model.geom_conaffinity[geom]):
                found.append(geom)
        return found

    def _in_box(self, geom: int, unit_points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        return unit_points * self.model.geom_aabb[geom, 3:] + self.model.geom_aabb[geom, :3]

    def _to_world(self, geom: int, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        return points @ self.data.geom_xmat[geom].reshape(3, 3).T + self.data.geom_xpos[geom]


def plan_grasp(scene: Scene, name: str) -> Grasp:
    """Across the narrow side if the fingers span it, else over the rim; turning little, the hand's footprint free."""
    points, obstacles = scene.points(name), scene.obstacles(besides=name)
    low, high, axis = points.min(0), points.max(0), scene.closing_axis()
    heading = np.arctan2(axis[1], axis[0])
    height = max(high[2] - _FINGER_DEPTH, low[2] + 0.01)
    middle = np.array([*((low + high) / 2)[:2], height])
    best_cost, best = np.inf, None
    for turn in np.linspace(-np.pi / 2, np.pi / 2, 37)[:-1]:
        closing = _horizontal(heading + turn)
        across = points @ closing
        width = across.max() - across.min()
        cost = width + 0.01 * abs(turn) + 0.02 * _collision_cost(obstacles, middle, closing)
        if width < _WIDEST_GRASP and cost < best_cost:
            along = points @ _horizontal(heading + turn + np.pi / 2)
            flat = closing * (across.max() + across.min()) / 2
            flat = flat + _horizontal(heading + turn + np.pi / 2) * (along.max() + along.min()) / 2
            best_cost, best = cost, Grasp("centre", closing, np.array([flat[0], flat[1], height]))
    return best or _rim_grasp(low, high, heading, obstacles)


def _rim_grasp(low: Vector, high: Vector, heading: float, obstacles: Float[np.ndarray, "n 3"]) -> Grasp:
    centre, radius = (low + high) / 2, min(high[0] - low[0], high[1] - low[1]) / 2
    best_cost, best = np.inf, None
    for turn in np.linspace(-np.pi, np.pi, 25)[:-1]:
        closing = _horizontal(heading + turn)
        position = centre + closing * (radius - 0.004)
        position[2] = high[2] - 0.012
        wrist_turn = abs((turn + np.pi / 2) % np.pi - np.pi / 2)
        cost = 0.03 * wrist_turn + 0.02 * _collision_cost(obstacles, position, closing)
        if cost < best_cost:
            best_cost, best = cost, Grasp("rim", closing, position)
    return best


def _collision_cost(obstacles: Float[np.ndarray, "n 3"], position: Vector, closing: Vector) -> float:
    """0 when nothing is inside the swept boxes of hand and fingers; up to 4 when both are full."""
    offset = obstacles - position
    across, along = np.abs(offset @ closing), np.abs(offset @ np.array([-closing[1], closing[0], 0.0]))
    up = offset[:, 2]
    hand = (across < 0.115) & (along < 0.045) & (up > 0.045)
    fingers = (across < 0.06) & (along < 0.016) & (up > -0.005) & (up <= 0.045)
    return 2.0 * hand.any() + 1.0 * fingers.any() + min(1.0, 0.02 * hand.sum())


class ScriptedExpert:
    """`actions()` yields one action per control step and expects the simulator to take it before the next is asked.

    It runs until its plan ends; the caller stops earlier on success or at the time limit, and may add noise.
    """

    def __init__(self, sim: LiberoSim, options: ExpertOptions, rng: np.random.Generator):
        self.scene, self.options, self.rng = Scene(sim), options, rng
        unsupported = [goal for goal in self.scene.goals if goal[0] not in ("on", "in") or len(goal) != 3]
        if unsupported:
            raise errors.EnvError(
                f"{sim.task.suite} task {sim.task.index}, {sim.task.instruction!r}, needs more than pick-and-place",
                expected='goals ("on", object, place) or ("in", object, place)',
                found=unsupported,
                fix="choose tasks of the table in docs/libero.md, or import the official demonstrations",
            )

    def actions(self) -> Phase:
        for relation, name, place in self.scene.goals:
            yield from self._pick_and_place(relation, name, place)

    def _pick_and_place(self, relation: str, name: str, place: str) -> Phase:
        grasp = plan_grasp(self.scene, name)
        rotation = self._tool_down(grasp.closing_axis)
        yield from self._pick(grasp, rotation)
        target, top, carrier = self.scene.target(place)
        gripper, _ = self.scene.gripper()
        before = self.scene.position(name)[2]
        safe = max(top - self._hang(name) + 0.05, gripper[2] + 0.10)
        yield from self._servo(np.array([gripper[0], gripper[1], safe]), rotation, CLOSE, tolerance=0.03)
        if self.scene.position(name)[2] < before + 0.03:
            return  # lost on the way up: the episode fails and is drawn again
        for _ in range(2):  # the object may swing in the fingers on the way
            flat = self._above(target, name)
            waypoint = np.array([flat[0], flat[1], safe])
            yield from self._servo(waypoint, rotation, CLOSE, tolerance=0.012, limit=80, speed=0.8)
        yield from self._lower(relation, name, carrier, target, top, rotation)
        gripper, _ = self.scene.gripper()
        yield from self._hold(6, OPEN, rotation, gripper)
        yield from self._servo(gripper + 0.1 * _UP, rotation, OPEN, tolerance=0.03, limit=25)
        yield from self._hold(10, OPEN, rotation, self.scene.gripper()[0])

    def _pick(self, grasp: Grasp, rotation: Rotation) -> Phase:
        hover = grasp.position + 0.08 * _UP
        high = hover.copy()
        high[:2] += self.rng.normal(0, self.options.waypoint_noise, 2)
        high[2] = max(self.scene.gripper()[0][2] - 0.05, hover[2])
        yield from self._servo(high, rotation, OPEN, tolerance=0.03, rotation_tolerance=0.2)
        yield from self._servo(hover, rotation, OPEN, tolerance=0.015)
        yield from self._servo(grasp.position, rotation, OPEN, tolerance=0.006, limit=35, speed=0.6)
        yield from self._close(rotation, grasp.position)

    def _lower(self, relation: str, name: str, carrier: str, target: Vector, top: float, rotation: Rotation) -> Phase:
        flat, lowest = self._above(target, name), -self._hang(name)
        if relation == "in":
            goal, stop = np.array([flat[0], flat[1], top + lowest + 0.01]), None
        else:
            goal = np.array([flat[0], flat[1], target[2] + lowest - 0.03])
            stop = functools.partial(self.scene.touching, name, carrier) if self.scene.is_body(carrier) else None
        yield from self._servo(goal, rotation, CLOSE, tolerance=0.008, speed=0.4, stop=stop)

    def _above(self, target: Vector, name: str) -> Vector:
        """Where the gripper must be for the held object's origin to be over `target`."""
        return target - (self.scene.position(name) - self.scene.gripper()[0])

    def _hang(self, name: str) -> float:
        """Height of the held object's lowest point over the gripper, negative (m)."""
        return self.scene.points(name)[:, 2].min() - self.scene.gripper()[0][2]

    def _servo(
        self,
        position: Vector,
        rotation: Rotation,
        gripper: float,
        tolerance: float,
        rotation_tolerance: float = 0.06,
        limit: int = 60,
        speed: float = 1.0,
        stop: Callable[[], bool] | None = None,
    ) -> Phase:
        for _ in range(limit):
            here, facing = self.scene.gripper()
            error, turn = position - here, _rotation_between(facing, rotation)
            if np.linalg.norm(error) < tolerance and np.linalg.norm(turn) < rotation_tolerance:
                return
            if stop is not None and stop():
                return
            yield self._towards(error, turn, gripper, speed)

    def _close(self, rotation: Rotation, position: Vector) -> Phase:
        """Close until the fingers rest: at once on a can, after 10 steps on the rim of a bowl."""
        gap = np.inf
        for step in range(14):
            previous, gap = gap, self.scene.finger_gap()
            if step >= 6 and previous - gap < 5e-4:
                return
            yield from self._hold(1, CLOSE, rotation, position)

    def _hold(self, steps: int, gripper: float, rotation: Rotation, position: Vector) -> Phase:
        for _ in range(steps):
            here, facing = self.scene.gripper()
            yield self._towards(position - here, _rotation_between(facing, rotation), gripper, 1.0)

    def _towards(self, error: Vector, turn: Vector, gripper: float, speed: float) -> Float[np.ndarray, "7"]:
        move = np.clip(error / _POSITION_UNIT * self.options.gain, -speed, speed)
        spin = np.clip(turn / _ROTATION_UNIT * self.options.gain, -0.6, 0.6)
        return np.concatenate([move, spin, [gripper]])

    def _tool_down(self, closing: Vector) -> Rotation:
        """The tool pointing straight down with its fingers closing along `closing` (or its opposite, if nearer)."""
        _, facing = self.scene.gripper()
        now = self.scene.closing_axis()
        tilt = np.cross(facing[:, 2], -_UP)
        upright = _axis_angle_matrix(tilt, np.arcsin(np.clip(np.linalg.norm(tilt), 0, 1))) @ facing
        turn = np.arctan2(closing[1], closing[0]) - np.arctan2(now[1], now[0])
        turn = (turn + np.pi / 2) % np.pi - np.pi / 2
        return _axis_angle_matrix(_UP, turn) @ upright


def run(sim: LiberoSim, options: ExpertOptions, seed: int, limit: int) -> tuple[Float[np.ndarray, "t 7"], bool]:
    """Drive `sim`, freshly reset, to success or to `limit` control steps. Returns the executed actions, success."""
    rng = np.random.default_rng(seed)
    noise = rng.uniform(0, options.action_noise)
    taken: list[np.ndarray] = []
    for action in ScriptedExpert(sim, options, rng).actions():
        moved = np.clip(action[:6] + noise * rng.normal(size=6) * (1, 1, 1, 0.3, 0.3, 0.3), -1, 1)
        taken.append(np.concatenate([moved, action[6:]]).astype(np.float32))
        _, success = sim.step(taken[-1])
        if success or len(taken) == limit:
            return np.stack(taken), success
    return np.stack(taken), False


def _horizontal(angle: float) -> Vector:
    return np.array([np.cos(angle), np.sin(angle), 0.0])


def _rotation_between(start: Rotation, end: Rotation) -> Vector:
    """World-frame axis times angle that turns `start` into `end`."""
    quaternion, turn = np.zeros(4), np.zeros(3)
    mujoco.mju_mat2Quat(quaternion, (end @ start.T).ravel())
    mujoco.mju_quat2Vel(turn, quaternion, 1.0)
    return turn


def _axis_angle_matrix(axis: Vector, angle: float) -> Rotation:
    length = np.linalg.norm(axis)
    if length < 1e-9:
        return np.eye(3)
    quaternion, matrix = np.zeros(4), np.zeros(9)
    mujoco.mju_axisAngle2Quat(quaternion, axis / length, angle)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return matrix.reshape(3, 3)
