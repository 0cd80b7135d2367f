"""Episodes of OGBench's scripted oracles: play and noisy manipulation, and navigation of a point through a maze.

    record = Recorder("cube-single", "play").episode(seed=0, number=3)

The oracles and environments are ogbench's (1.2.2); what happens around them follows what is known of how its datasets
were made (arXiv 2410.20092, and the settings of its published commands):

- play: an open-loop plan with smoothed noise; a new target whenever one is done.
- noisy: a closed-loop oracle, per episode Gaussian noise of std xi, uniform in [0, 0.1], on x, y and z, 3 xi on yaw and
  10 xi on the grip, and with probability 0.1 (puzzle: 0.2) a random action instead.
- navigate: towards the next cell on the shortest way to a goal, with Gaussian noise of std 0.5; a new goal among the
  corners and crossings whenever one is reached.

Episode `number` of a `seed` is the same whoever makes it, in whatever order.
"""

import dataclasses
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float32, Int64

from data_pipelines.ogbench_tasks import States
from vla_jax.core import errors
from vla_jax.envs import ogbench_sim

Mode = Literal["play", "noisy", "navigate"]
_PLAN_NOISE, _PLAN_SMOOTHING = 0.1, 0.5
_XI_MAX, _MIN_NORM = 0.1, 0.4
_NOISE_SCALE = np.array([1.0, 1.0, 1.0, 3.0, 10.0])  # of xi, per action entry
_RANDOM_ACTION = {"cube": 0.1, "scene": 0.1, "puzzle": 0.2}
_NAVIGATION_NOISE = 0.5
_STACKING = {  # range of the probability that a cube's target is on top of another cube, drawn per episode
    "cube-single": (0.0, 0.0),
    "cube-double": (0.0, 0.25),
    "cube-triple": (0.05, 0.35),
    "cube-quadruple": (0.1, 0.5),
    "cube-octuple": (0.0, 0.35),
}
_MAX_ATTEMPTS = 50
MODES: dict[str, tuple[Mode, ...]] = {
    "cube": ("play", "noisy"),
    "scene": ("play", "noisy"),
    "puzzle": ("play", "noisy"),
    "pointmaze": ("navigate",),
}


@dataclasses.dataclass(frozen=True)
class OracleEpisode:
    """Row i is what was seen before action i; what the last action led to is not recorded."""

    number: int
    state: Float32[np.ndarray, "t s"]
    actions: Float32[np.ndarray, "t a"]
    qpos: Float32[np.ndarray, "t q"]
    qvel: Float32[np.ndarray, "t v"]
    button_states: Int64[np.ndarray, "t k"]
    attempts: int  # 1 unless a cube of an earlier one went where it cannot be seen

    @property
    def simulator_states(self) -> States:
        return States(self.qpos, self.button_states)


class Recorder:
    """One simulator and its oracles."""

    def __init__(self, name: str, mode: Mode):
        """Raises EnvError without OGBench, ConfigError for a mode that the environment has not."""
        self._scene = ogbench_sim.scene_of(name)
        if mode not in MODES[self._scene.kind]:
            raise errors.ConfigError(f"mode {mode!r} of {name}", expected=MODES[self._scene.kind], found=mode)
        self._name, self._mode = name, mode
        is_maze = self._scene.kind == "pointmaze"
        options: dict[str, Any] = {} if is_maze else {"mode": "data_collection"}
        self._simulator, _ = ogbench_sim.make_simulator(name, terminate_at_goal=False, **options)
        self._oracles = {} if is_maze else _oracles(self._simulator, self._scene.kind, mode)

    def episode(self, seed: int, number: int, num_rows: int) -> OracleEpisode:
        """`num_rows` states and the actions taken in them."""
        for attempt in range(_MAX_ATTEMPTS):
            draws = np.random.SeedSequence([seed, number, attempt]).generate_state(2)
            rng = np.random.default_rng(draws[0])
            with ogbench_sim.numpy_seeded(int(draws[1])):  # the oracles draw from NumPy's global generator
                if self._scene.kind == "pointmaze":
                    columns = self._navigate(rng, num_rows)
                else:
                    columns = self._manipulate(rng, num_rows)
            if self._scene.kind != "scene" or _cube_in_sight(columns["qpos"]):
                return OracleEpisode(number=number, attempts=attempt + 1, **columns)
        raise errors.EnvError(
            f"episode {number} of {self._name}", expected="the cube in sight in one attempt", found=f"{_MAX_ATTEMPTS}"
        )

    def _manipulate(self, rng: np.random.Generator, num_rows: int) -> dict[str, np.ndarray]:
        low, high = _STACKING.get(self._name, (0.5, 0.5))
        stacking, xi = rng.uniform(low, high), rng.uniform(0, _XI_MAX)
        seen, info = self._simulator.reset(seed=int(rng.integers(2**31)))
        oracle = self._oracles[info["privileged/target_task"]]
        oracle.reset(seen, info)
        log = _Log()
        for _ in range(num_rows):
            if self._mode == "noisy" and rng.uniform() < _RANDOM_ACTION[self._scene.kind]:
                action = rng.uniform(-1, 1, 5)
            else:
                action = np.asarray(oracle.select_action(seen, info), np.float64)
                if self._mode == "noisy":
                    action = action + xi * _NOISE_SCALE * rng.normal(size=5)
            action = np.clip(action, -1, 1).astype(np.float32)
            before = seen
            seen, _, _, _, info = self._simulator.step(action)
            log.add(before, action, info)
            if oracle.done:
                target_seen, target_info = self._simulator.set_new_target(p_stack=stacking)
                oracle = self._oracles[target_info["privileged/target_task"]]
                oracle.reset(target_seen, target_info)
        return log.columns()

    def _navigate(self, rng: np.random.Generator, num_rows: int) -> dict[str, np.ndarray]:
        simulator = self._simulator
        free, corners = _cells(np.asarray(simulator.maze_map))
        simulator.action_space.seed(int(rng.integers(2**31)))
        start, goal = (cells[rng.integers(len(cells))] for cells in (free, corners))
        task = {"task_info": {"init_ij": start, "goal_ij": goal}}
        seen, _ = simulator.reset(seed=int(rng.integers(2**31)), options=task)
        log = _Log()
        for _ in range(num_rows):
            place = simulator.get_xy()
            ahead, _ = simulator.get_oracle_subgoal(place, simulator.cur_goal_xy)
            direction = (ahead - place) / (np.linalg.norm(ahead - place) + 1e-6)
            action = direction + _NAVIGATION_NOISE * rng.normal(size=2)
            action = np.clip(action, -1, 1).astype(np.float32)
            before = seen
            seen, _, _, _, info = simulator.step(action)
            log.add(before, action, info)
            if info["success"]:
                chosen = corners[rng.integers(len(corners))]
                simulator.set_goal(goal_xy=simulator.add_noise(simulator.ij_to_xy(chosen)))
        return log.columns()


class _Log:
    def __init__(self):
        self._rows: list[tuple[np.ndarray, ...]] = []

    def add(self, before: np.ndarray, action: np.ndarray, info: dict[str, Any]) -> None:
        buttons = info.get("prev_button_states", np.zeros(0, np.int64))
        self._rows.append((before.copy(), action, info["prev_qpos"].copy(), info["prev_qvel"].copy(), buttons.copy()))

    def columns(self) -> dict[str, np.ndarray]:
        names = ("state", "actions", "qpos", "qvel", "button_states")
        columns = dict(zip(names, (np.stack(column) for column in zip(*self._rows, strict=True)), strict=True))
        return {
            name: column.astype(np.int64 if name == "button_states" else np.float32) for name, column in columns.items()
        }


def _oracles(simulator: Any, kind: str, mode: Mode) -> dict[str, Any]:
    """One per kind of target."""
    if mode == "play":
        from ogbench.manipspace.oracles.plan import button_plan, cube_plan, drawer_plan, window_plan

        options = {"env": simulator, "noise": _PLAN_NOISE, "noise_smoothing": _PLAN_SMOOTHING}
        cube, button = cube_plan.CubePlanOracle, button_plan.ButtonPlanOracle
        drawer, window = drawer_plan.DrawerPlanOracle, window_plan.WindowPlanOracle
    else:
        from ogbench.manipspace.oracles.markov import button_markov, cube_markov, drawer_markov, window_markov

        options = {"env": simulator, "min_norm": _MIN_NORM}
        cube, button = cube_markov.CubeMarkovOracle, button_markov.ButtonMarkovOracle
        drawer, window = drawer_markov.DrawerMarkovOracle, window_markov.WindowMarkovOracle
    if kind == "cube":
        return {"cube": cube(**options)}
    if kind == "puzzle":
        return {"button": button(**options, gripper_always_closed=True)}
    patience = {} if mode == "play" else {"max_step": 100}
    return {
        "cube": cube(**options, **patience),
        "button": button(**options),
        "drawer": drawer(**options),
        "window": window(**options),
    }


def _cube_in_sight(qpos: Float[np.ndarray, "t q"]) -> bool:
    """Whether the scene's cube neither leaves the table at one end nor lies behind the drawer at the other."""
    y, z = qpos[:, 15], qpos[:, 16]
    lost_right = y >= 0.29
    lost_left = (y <= -0.3) & ((z < 0.06) | (z > 0.08))  # in the drawer it is between
    return not (lost_right | lost_left).any()


def _cells(maze: Int64[np.ndarray, "r c"]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Free cells, and those of them that are not straight hallways."""
    free = [(int(i), int(j)) for i, j in np.argwhere(maze == 0)]

    def is_hallway(i: int, j: int) -> bool:
        vertical = maze[i - 1, j] == maze[i + 1, j] == 0 and maze[i, j - 1] == maze[i, j + 1] == 1
        horizontal = maze[i, j - 1] == maze[i, j + 1] == 0 and maze[i - 1, j] == maze[i + 1, j] == 1
        return bool(vertical or horizontal)

    return free, [cell for cell in free if not is_hallway(*cell)]
