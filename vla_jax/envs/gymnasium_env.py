"""Gymnasium environments behind the host contract: one in this process, or many in worker processes.

    make = functools.partial(make_env, "Pendulum-v1")
    layout = GymnasiumLayout(episode_length=200)
    env = GymnasiumEnv(make, layout)                               # a HostEnv: for an actor that owns one
    with GymnasiumVectorEnv(make, layout, num_lanes=4) as lanes:   # a HostVectorEnv: for evaluation
        lanes.reset(seeds=[0, 1, 2, 3])
        while not lanes.done.all():
            chunk = lanes.step(actions)                            # "n h a" in [-1, 1]
            observation = lanes.observe()

Unlike `gymnasium.vector`, a step takes a chunk and resets nothing, and pictures cross the process boundary once per
chunk. Terminated and truncated stay apart: a discount is 0 only where the task ended.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from vla_jax.core.types import Observation, PromptTable
from vla_jax.envs import host
from vla_jax.envs.base import EnvSpec
from vla_jax.envs.gymnasium_sim import BOX_KEY as BOX_KEY
from vla_jax.envs.gymnasium_sim import RENDER as RENDER
from vla_jax.envs.gymnasium_sim import Description, GymnasiumSim, MakeEnv, require
from vla_jax.envs.gymnasium_sim import GymnasiumLayout as GymnasiumLayout
from vla_jax.envs.gymnasium_sim import make_env as make_env
from vla_jax.envs.host import HostChunk, VectorChunk
from vla_jax.envs.libero_workers import WorkerPool


class GymnasiumEnv:
    """One environment in this process: a `HostEnv`."""

    def __init__(self, make: MakeEnv, layout: GymnasiumLayout, prompts: PromptTable | None = None):
        """`prompts` has one row per instruction of the layout; without it the policy is told nothing. Raises EnvError
        without Gymnasium, and for spaces that the layout does not fit."""
        require()
        self._sim = GymnasiumSim(make, layout)
        self.spec = _spec(self._sim.description, layout)
        self._prompts = host.checked_prompts(prompts, self.spec)
        self._task = 0
        self._runs, self._is_closed = False, False

    def reset(self, seed: int, task: int | None = None) -> Observation:
        """A fresh episode. The task, unless it is given, is drawn from the seed."""
        self._task = _task_of(seed, self.spec) if task is None else task
        self._sim.reset(seed, self._task)
        self._runs = True
        return self._observe()

    def step(self, actions: Float[np.ndarray, "h a"]) -> HostChunk:
        host.check_runs(self._runs, self.spec)
        rewards, discounts, mask, done, truncated, success = self._sim.run(host.check_chunk(actions, self.spec))
        self._runs = not done
        return HostChunk(rewards, discounts, mask, done, truncated, success, self._observe())

    @property
    def unwrapped(self) -> Any:
        """The Gymnasium environment itself, for diagnostics."""
        return self._sim.env.unwrapped

    def close(self) -> None:
        if not self._is_closed:
            self._sim.close()
        self._runs, self._is_closed = False, True

    def _observe(self) -> Observation:
        images, state = self._sim.look()
        return host.observation(images, state, np.asarray(self._task), self._prompts)


class GymnasiumVectorEnv:
    """`num_lanes` environments, each in a process of its own: a `HostVectorEnv`."""

    def __init__(
        self,
        make: MakeEnv,
        layout: GymnasiumLayout,
        num_lanes: int = 1,
        prompts: PromptTable | None = None,
        *,
        timeout: float = 600.0,
    ):
        """`make` must be picklable: a module's function or a partial of one. `timeout`: seconds that a call may take
        before its worker counts as stuck. Raises EnvError as `GymnasiumEnv` does."""
        require()
        self.done = np.ones(num_lanes, bool)  # nothing runs before the first reset
        self.success = np.zeros(num_lanes, bool)
        self.env_steps = np.zeros(num_lanes, np.int64)
        self._tasks = np.zeros(num_lanes, np.int64)
        self._pool = WorkerPool([functools.partial(GymnasiumSim, make, layout)] * num_lanes, timeout)
        try:
            self.spec = _spec(self._pool.call([0], "describe", [()])[0], layout)
            self._prompts = host.checked_prompts(prompts, self.spec)
        except BaseException:
            self._pool.close()
            raise

    @property
    def num_lanes(self) -> int:
        return len(self.done)

    def __enter__(self) -> "GymnasiumVectorEnv":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._pool.close()

    def reset(
        self, seeds: Sequence[int], tasks: Sequence[int] | None = None, lanes: Sequence[int] | None = None
    ) -> None:
        """Start an episode in every one of `lanes` (all by default); tasks not given are drawn from the seeds."""
        lanes = host.checked_lanes(lanes, self.num_lanes)
        chosen = [_task_of(seed, self.spec) for seed in seeds] if tasks is None else [int(task) for task in tasks]
        host.check_rows("reset", self.spec, lanes, seeds=seeds, tasks=chosen)
        self._pool.call(lanes, "reset", [(int(seed), task) for seed, task in zip(seeds, chosen, strict=True)])
        self._tasks[lanes] = chosen
        self.done[lanes], self.success[lanes], self.env_steps[lanes] = False, False, 0

    def step(self, actions: Float[np.ndarray, "n h a"], lanes: Sequence[int] | None = None) -> VectorChunk:
        """Execute a chunk per lane; a lane whose episode has ended does nothing, its mask is all False."""
        lanes = host.checked_lanes(lanes, self.num_lanes)
        host.check_rows("step", self.spec, lanes, actions=actions)
        results = self._pool.call(lanes, "run", [(host.check_chunk(chunk, self.spec),) for chunk in actions])
        rewards, discounts, mask, done, truncated, success = (np.array(c) for c in zip(*results, strict=True))
        self.done[lanes], self.success[lanes] = done, success
        self.env_steps[lanes] += mask.sum(1)
        return VectorChunk(rewards, discounts, mask, done, truncated, success)

    def observe(self, lanes: Sequence[int] | None = None) -> Observation:
        """What the policy sees in these lanes: leaves have a leading axis `n`."""
        lanes = host.checked_lanes(lanes, self.num_lanes)
        looks = self._pool.call(lanes, "look", [()] * len(lanes))
        images = {name: np.stack([pictures[name] for pictures, _ in looks]) for name in self.spec.cameras}
        return host.observation(images, np.stack([state for _, state in looks]), self._tasks[lanes], self._prompts)


def _task_of(seed: int, spec: EnvSpec) -> int:
    return int(np.random.default_rng(seed).integers(len(spec.instructions)))


def _spec(description: Description, layout: GymnasiumLayout) -> EnvSpec:
    return EnvSpec(
        name=description.name,
        instructions=layout.instructions,
        action_names=description.action_names,
        state_names=description.state_names,
        cameras=description.cameras,
        episode_length=description.episode_length,
        control_hz=layout.control_hz,
    )
