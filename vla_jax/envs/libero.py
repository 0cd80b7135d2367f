"""LIBERO's five suites in parallel worker processes, for policies that act in chunks.

    with LiberoVectorEnv("libero_object", num_workers=4) as env:
        env.reset(tasks=[0, 0, 1, 2], init_states=[0, 1, 0, 0])
        while not env.done.all():
            seen = env.observe()                    # the only place that renders: 0.1 CPU-s per lane
            result = env.step_chunk(actions)        # n h 7; a lane stops at success or at the time limit

Unlike `gymnasium.vector`, a step takes a chunk, renders nothing and resets nothing: rendering every control step would
cost 16 times as much as the physics, and official initial states are assigned, not drawn.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8

from vla_jax.core import errors
from vla_jax.envs import libero_sim
from vla_jax.envs.base import EnvSpec
from vla_jax.envs.libero_sim import RenderOptions
from vla_jax.envs.libero_workers import EpisodeRunner, Simulator, WorkerPool

_OPENVLA = RenderOptions()


@dataclasses.dataclass(frozen=True)
class LiberoObservation:
    """What a policy is given, before tokenizing and normalizing."""

    images: dict[str, UInt8[np.ndarray, "n h w 3"]]  # "front", "wrist"; rotated by 180 degrees
    state: Float32[np.ndarray, "n 8"]  # physical units, libero_sim.STATE_NAMES
    tasks: Int[np.ndarray, "n"]  # index into the suite, and into `spec.instructions`


@dataclasses.dataclass(frozen=True)
class ChunkResult:
    """One executed chunk; a row that was done before it has an all-False mask."""

    rewards: Float32[np.ndarray, "n h"]
    discounts: Float32[np.ndarray, "n h"]  # 0 on the step that succeeds, 1 otherwise, at the time limit too
    action_mask: Bool[np.ndarray, "n h"]  # False: not executed, the episode had ended
    done: Bool[np.ndarray, "n"]
    success: Bool[np.ndarray, "n"]


@dataclasses.dataclass(frozen=True)
class LiberoTasks:
    """What a policy is judged on: tasks of a suite, each from its first official initial states."""

    suite: str = "libero_object"
    tasks: tuple[int, ...] = tuple(range(10))
    num_init_states: int = 50  # per task; the published protocol is all 50
    num_workers: int = 1  # processes of about 2 GB; another number gives a sampling policy other noise
    render: RenderOptions = _OPENVLA  # as the training data were drawn

    def __post_init__(self):
        if self.suite not in libero_sim.SUITES:
            raise errors.ConfigError(
                f"LiberoTasks.suite {self.suite!r}", fix=errors.closest(self.suite, libero_sim.SUITES)
            )
        count = libero_sim.SUITES[self.suite].num_tasks
        if not self.tasks or len(set(self.tasks)) != len(self.tasks) or not set(self.tasks) <= set(range(count)):
            raise errors.ConfigError(
                "LiberoTasks.tasks", expected=f"different ones of 0..{count - 1}", found=self.tasks
            )
        if self.num_init_states < 1 or self.num_workers < 1:
            raise errors.ConfigError(
                "LiberoTasks",
                expected="num_init_states and num_workers >= 1",
                found=f"{self.num_init_states} and {self.num_workers}",
            )

    @property
    def name(self) -> str:
        """The suite, and which of its tasks unless all."""
        whole = len(self.tasks) == libero_sim.SUITES[self.suite].num_tasks
        return self.suite if whole else f"{self.suite}/tasks_{'_'.join(map(str, self.tasks))}"

    @property
    def num_episodes(self) -> int:
        return len(self.tasks) * self.num_init_states

    @property
    def instructions(self) -> tuple[str, ...]:
        """Of the whole suite, in its order. Raises EnvError where LIBERO is not installed."""
        return libero_sim.suite_instructions(self.suite)

    @property
    def spec(self) -> EnvSpec:
        """Without instructions: reading them takes LIBERO, and a machine that only trains does without."""
        return _spec(self.suite, self.render, libero_sim.episode_length(self.suite))

    def make(self) -> "LiberoVectorEnv":
        return LiberoVectorEnv(self.suite, self.num_workers, self.render)


class LiberoVectorEnv:
    """`num_workers` lanes of one suite. Every lane runs its own task and initial state."""

    def __init__(
        self,
        suite: str,
        num_workers: int = 1,
        render: RenderOptions | None = _OPENVLA,
        *,
        episode_length: int | None = None,
        timeout: float = 600.0,
        make_simulator: Callable[[], Simulator] | None = None,
    ):
        """`render=None` is state-only. `episode_length` defaults to the suite's. Raises EnvError when LIBERO or a GL
        library is missing; `make_simulator` (picklable) puts another simulator into the workers."""
        self.suite, self.render = suite, render
        self.episode_length = episode_length or libero_sim.episode_length(suite)
        if make_simulator is None:
            libero_sim.require(render.backend if render else None)
            make_simulator = functools.partial(libero_sim.LiberoSim, render)
        self._tasks = np.zeros(num_workers, np.int64)
        self.done = np.ones(num_workers, bool)  # nothing runs before the first reset
        self.success = np.zeros(num_workers, bool)
        self.env_steps = np.zeros(num_workers, np.int64)
        self._pool = WorkerPool([functools.partial(EpisodeRunner, make_simulator)] * num_workers, timeout)

    @property
    def num_workers(self) -> int:
        return len(self.done)

    @functools.cached_property
    def spec(self) -> EnvSpec:
        return _spec(
            self.suite, self.render, self.episode_length, instructions=libero_sim.suite_instructions(self.suite)
        )

    def __enter__(self) -> "LiberoVectorEnv":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._pool.close()

    def reset(
        self,
        tasks: Sequence[int],
        init_states: Sequence[Any],
        scene_seeds: Sequence[int] | None = None,
        lanes: Sequence[int] | None = None,
    ) -> None:
        """Start episodes in `lanes` (all by default). An initial state is the index of an official one, a simulator
        state, or None to draw one with the scene seed; see `LiberoSim.reset`."""
        lanes = self._lanes(lanes)
        seeds = [0] * len(lanes) if scene_seeds is None else list(scene_seeds)
        if not len(tasks) == len(init_states) == len(seeds) == len(lanes):
            raise errors.EnvError(
                "reset of LiberoVectorEnv",
                expected=f"{len(lanes)} tasks, initial states and seeds, one per lane",
                found=f"{len(tasks)}, {len(init_states)}, {len(seeds)}",
            )
        rows = zip(tasks, init_states, seeds, strict=True)
        arguments = [(self.suite, int(task), init, int(seed), self.episode_length) for task, init, seed in rows]
        self._pool.call(lanes, "reset", arguments)
        self._tasks[lanes] = tasks
        self.done[lanes], self.success[lanes], self.env_steps[lanes] = False, False, 0

    def step_chunk(self, actions: Float[np.ndarray, "n h 7"], lanes: Sequence[int] | None = None) -> ChunkResult:
        """Execute a chunk per lane, in simulator units (`LiberoSim`): no rendering, stops where an episode ends."""
        lanes = self._lanes(lanes)
        actions = np.asarray(actions)
        if actions.ndim != 3 or actions.shape[0] != len(lanes) or actions.shape[2] != len(libero_sim.ACTION_NAMES):
            raise errors.EnvError(
                "step_chunk of LiberoVectorEnv", expected=f"actions [{len(lanes)}, h, 7]", found=list(actions.shape)
            )
        if not np.isfinite(actions).all():
            raise errors.EnvError("step_chunk of LiberoVectorEnv", expected="finite actions", found="NaN or infinity")
        results = self._pool.call(lanes, "run", [(chunk,) for chunk in actions])
        rewards, masks, done, success = (np.array(column) for column in zip(*results, strict=True))
        self.done[lanes], self.success[lanes] = done, success
        self.env_steps[lanes] += masks.sum(1)
        discounts = np.ones_like(rewards)
        for row in np.flatnonzero(success & masks.any(1)):
            discounts[row, masks[row].sum() - 1] = 0.0
        return ChunkResult(rewards, discounts, masks, done, success)

    def observe(self, lanes: Sequence[int] | None = None) -> LiberoObservation:
        """Render the cameras of the lanes, in parallel; without cameras only the states."""
        lanes = self._lanes(lanes)
        if self.render is None:
            images, states = {}, self._pool.call(lanes, "state", [()] * len(lanes))
        else:
            looks = self._pool.call(lanes, "look", [()] * len(lanes))
            images = {name: np.stack([seen[name] for seen, _ in looks]) for name in looks[0][0]}
            states = [state for _, state in looks]
        return LiberoObservation(images, np.stack(states), self._tasks[lanes].copy())

    def ask(self, method: str, *arguments: Any, lane: int = 0) -> Any:
        """A method of one lane's simulator, for diagnostics."""
        return self._pool.call([lane], "ask", [(method, *arguments)])[0]

    def _lanes(self, lanes: Sequence[int] | None) -> list[int]:
        return list(range(self.num_workers)) if lanes is None else [int(lane) for lane in lanes]


def _spec(suite: str, render: RenderOptions | None, episode_length: int, instructions: tuple[str, ...] = ()) -> EnvSpec:
    cameras = {name: (render.output_size,) * 2 for name, _ in render.cameras} if render else {}
    return EnvSpec(
        name=suite,
        instructions=instructions,
        action_names=libero_sim.ACTION_NAMES,
        state_names=libero_sim.STATE_NAMES,
        cameras=cameras,
        episode_length=episode_length,
        control_hz=libero_sim.CONTROL_HZ,
    )
