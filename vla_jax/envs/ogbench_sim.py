"""OGBench's state-based environments as Gymnasium ones whose episodes are functions of the seed.

    env = OgbenchSimEnv("cube-single", goal="oraclerep")        # five tasks, chosen by the option "task", 0 first
    env = OgbenchSimEnv("cube-single", single_task=2)           # one task, 1 first, with OGBench's reward for it

Observations are {"observation": state} and, with a goal, "goal" beside it. This file imports no JAX. Facts about tasks
and layouts are those of ogbench 1.2.2 (arXiv 2410.20092).
"""

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from vla_jax.core import errors
from vla_jax.envs import gymnasium_sim

Kind = Literal["cube", "scene", "puzzle", "pointmaze"]
Goal = Literal["state", "oraclerep", "none"]
NUM_TASKS = 5


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is in an environment."""

    kind: Kind
    num_cubes: int = 0
    num_buttons: int = 0


SCENES: dict[str, Scene] = {
    "cube-single": Scene("cube", 1),
    "cube-double": Scene("cube", 2),
    "cube-triple": Scene("cube", 3),
    "cube-quadruple": Scene("cube", 4),
    "cube-octuple": Scene("cube", 8),
    "scene": Scene("scene", 1, 2),
    "puzzle-3x3": Scene("puzzle", 0, 9),
    "puzzle-4x4": Scene("puzzle", 0, 16),
    "puzzle-4x5": Scene("puzzle", 0, 20),
    "puzzle-4x6": Scene("puzzle", 0, 24),
    "pointmaze-medium": Scene("pointmaze"),
    "pointmaze-large": Scene("pointmaze"),
    "pointmaze-giant": Scene("pointmaze"),
}


def require() -> None:
    """Raises EnvError where OGBench is not installed."""
    gymnasium_sim.require()
    if importlib.util.find_spec("ogbench") is None:
        raise errors.EnvError("OGBench is not installed", fix='pip install "vla-jax[ogbench]"')


def scene_of(name: str) -> Scene:
    """Raises ConfigError for an environment that is not known."""
    if name not in SCENES:
        raise errors.ConfigError(f"no OGBench environment {name!r}", fix=errors.closest(name, SCENES))
    return SCENES[name]


@contextlib.contextmanager
def numpy_seeded(seed: int) -> Iterator[None]:
    """NumPy's global generator at a seed, for code that draws from it; as it was before, afterwards."""
    before = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(before)


def make_simulator(name: str, **options: Any) -> tuple[Any, int]:
    """OGBench's own environment without Gymnasium's wrappers, and how many control steps its episodes have.

    `options` go to its constructor over those it is registered with. Raises EnvError without OGBench.
    """
    scene_of(name)
    require()
    import gymnasium
    from gymnasium.envs.registration import load_env_creator

    single = "-singletask" if "reward_task_id" in options else ""
    importlib.import_module("ogbench.locomaze" if name.startswith("pointmaze") else "ogbench.manipspace")
    spec = gymnasium.spec(f"{name}{single}-v0")
    creator = load_env_creator(spec.entry_point)
    if isinstance(creator, type):
        creator = _with_lasting_action_space(creator)
    return creator(**{**spec.kwargs, **options}), spec.max_episode_steps


@functools.cache
def _with_lasting_action_space(env_class: type) -> type:
    """OGBench makes a new action space whenever one is asked for, so what it draws from it cannot be seeded."""

    class Lasting(env_class):
        @functools.cached_property
        def action_space(self):
            return super().action_space

    return Lasting


def make_env(name: str, goal: Goal, single_task: int | None) -> Any:
    """An `OgbenchSimEnv`; a function, so that it can be pickled and this module imported without Gymnasium."""
    require()
    return _env_class()(name, goal, single_task)


@functools.cache
def _env_class() -> type:
    import gymnasium
    from gymnasium import spaces

    class OgbenchSimEnv(gymnasium.Env):
        """See the module."""

        def __init__(self, name: str, goal: Goal, single_task: int | None):
            options = {} if single_task is None else {"reward_task_id": single_task}
            self._simulator, limit = make_simulator(name, use_oracle_rep=goal == "oraclerep", **options)
            self.spec = gymnasium.envs.registration.EnvSpec(name, max_episode_steps=limit)
            self._name, self._has_goal, self._goal = name, goal != "none", np.zeros(0)
            self._num_tasks = NUM_TASKS if single_task is None else 1
            self.action_space = self._simulator.action_space
            first, _ = self.reset(seed=0)
            self.observation_space = spaces.Dict(
                {key: spaces.Box(-np.inf, np.inf, value.shape, np.float64) for key, value in first.items()}
            )

        @property
        def simulator(self) -> Any:
            """OGBench's environment."""
            return self._simulator

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
            """`options["task"]`: 0 to 4."""
            super().reset(seed=seed)
            task = (options or {}).get("task", 0)
            if not 0 <= task < self._num_tasks:
                raise errors.EnvError(f"reset of {self._name}", expected=f"task < {self._num_tasks}", found=task)
            drawn = int(self.np_random.integers(2**31))
            self._simulator.action_space.seed(drawn)
            with numpy_seeded(drawn):  # where it draws tasks and noise from
                observation, info = self._simulator.reset(seed=drawn, options={"task_id": task + 1})
            self._goal = np.asarray(info["goal"], np.float64)
            return self._seen(observation), info

        def step(self, action):
            observation, reward, terminated, truncated, info = self._simulator.step(action)
            return self._seen(observation), float(reward), bool(terminated), bool(truncated), info

        def close(self) -> None:
            self._simulator.close()

        def _seen(self, observation: np.ndarray) -> dict[str, np.ndarray]:
            seen = {"observation": np.asarray(observation, np.float64)}
            return {**seen, "goal": self._goal} if self._has_goal else seen

    return OgbenchSimEnv
