"""One Gymnasium environment in plain numpy: action chunks in, rewards and ends out, pictures only where somebody looks.

    sim = GymnasiumSim(functools.partial(make_env, "Pendulum-v1"), GymnasiumLayout(episode_length=200))
    sim.reset(seed=0, task=0)
    rewards, discounts, mask, done, truncated, success = sim.run(actions)      # "h a" in [-1, 1]
    state, images = sim.state(), sim.images()

This file imports no JAX, so that a worker process starts in a second. `gymnasium_env.py` makes it one lane or many.
"""

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, UInt8

from vla_jax.core import errors

if TYPE_CHECKING:
    import gymnasium

MakeEnv = Callable[[], "gymnasium.Env"]
RunResult = tuple[np.ndarray, np.ndarray, np.ndarray, bool, bool, bool]
RENDER = "render()"  # a camera of this key is what `env.render()` draws: only where somebody looks
BOX_KEY = "observation"  # what an observation that is no Dict is called


@dataclasses.dataclass(frozen=True)
class GymnasiumLayout:
    """What of an environment's spaces is the state, what a picture, and what its info says of success."""

    name: str = ""  # for people and reports; "": the id it was registered under
    state_keys: tuple[str, ...] = (BOX_KEY,)  # joined in this order; "robot/joints" is inside nested Dict spaces
    cameras: tuple[tuple[str, str], ...] = ()  # our name, key of a uint8 [height, width, 3] Box, or RENDER
    success_key: str | None = None  # in the info of a step; None: nobody knows, success is always False
    episode_length: int | None = None  # control steps; None: the limit the environment was registered with
    control_hz: float = 20.0
    instructions: tuple[str, ...] = ("",)  # one per task
    task_option: str | None = None  # the option of reset that takes the number of a task, 0 first

    def __post_init__(self):
        names = [name for name, _ in self.cameras]
        if len(set(names)) != len(names):
            raise errors.ConfigError("GymnasiumLayout.cameras", expected="each of our names once", found=names)
        if not self.state_keys and not self.cameras:
            raise errors.ConfigError("GymnasiumLayout", expected="a state or a camera", found="neither")
        if self.episode_length is not None and self.episode_length < 1:
            raise errors.ConfigError("GymnasiumLayout.episode_length", expected=">= 1", found=self.episode_length)
        if not self.instructions or (len(self.instructions) > 1) != (self.task_option is not None):
            raise errors.ConfigError(
                "GymnasiumLayout.instructions",
                expected="one, or several and the task_option that chooses among them",
                found=f"{len(self.instructions)} and task_option={self.task_option!r}",
            )


@dataclasses.dataclass(frozen=True)
class Description:
    """What a simulator found its environment to be."""

    name: str
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    cameras: Mapping[str, tuple[int, int]]  # (height, width)
    episode_length: int


def make_env(env_id: str, modules: tuple[str, ...] = (), **kwargs: Any) -> "gymnasium.Env":
    """`gymnasium.make`, after importing the `modules` that register `env_id`. Raises EnvError without Gymnasium."""
    require()
    import gymnasium

    for module in modules:
        importlib.import_module(module)
    return gymnasium.make(env_id, **kwargs)


def require() -> None:
    """Raises EnvError where Gymnasium is not installed."""
    if importlib.util.find_spec("gymnasium") is None:
        raise errors.EnvError("Gymnasium is not installed", fix='pip install "vla-jax[gymnasium]"')


class GymnasiumSim:
    """An environment, its step counter and the end of the episode."""

    def __init__(self, make: MakeEnv, layout: GymnasiumLayout):
        """`make` must be picklable to run in a worker. Raises EnvError for spaces that the layout does not fit."""
        self._layout = layout
        self.env = make()
        self._spaces = _flat_spaces(self.env.observation_space)
        self.description = _describe(self.env, self._spaces, layout)
        space = self.env.action_space
        self._low, self._high = np.asarray(space.low, np.float64), np.asarray(space.high, np.float64)
        self._observation: Mapping[str, np.ndarray] = {}
        self._steps = 0
        self._done, self._truncated, self._success = True, False, False

    def describe(self) -> Description:
        return self.description

    def reset(self, seed: int, task: int = 0) -> None:
        """A fresh episode of a task. Raises EnvError for a task that is not there."""
        if not 0 <= task < len(self._layout.instructions):
            raise errors.EnvError(
                f"reset of {self.description.name}", expected=f"task < {len(self._layout.instructions)}", found=task
            )
        options = None if self._layout.task_option is None else {self._layout.task_option: task}
        observation, _ = self.env.reset(seed=int(seed), options=options)
        self._observation = _flatten(observation)
        self._steps, self._done, self._truncated, self._success = 0, False, False, False

    def run(self, actions: Float32[np.ndarray, "h a"]) -> RunResult:
        """Execute a chunk in [-1, 1] until the episode ends; an ended one stays as it is, its mask all False.

        Returns rewards, discounts, mask of executed steps (all "h"), done, truncated, success. Truncated by the
        environment or by `episode_length`, unless the same step also terminated.
        """
        rewards, discounts = np.zeros(len(actions), np.float32), np.ones(len(actions), np.float32)
        mask = np.zeros(len(actions), bool)
        for i, action in enumerate(actions):
            if self._done:
                break
            scaled = self._low + (np.clip(action, -1.0, 1.0) + 1.0) / 2.0 * (self._high - self._low)
            space = self.env.action_space
            observation, reward, terminated, cut, info = self.env.step(scaled.astype(space.dtype).reshape(space.shape))
            self._observation = _flatten(observation)
            self._steps += 1
            rewards[i], discounts[i], mask[i] = reward, not terminated, True
            self._success |= self._succeeded(info)
            self._truncated = not terminated and (bool(cut) or self._steps >= self.description.episode_length)
            self._done = bool(terminated) or self._truncated
        return rewards, discounts, mask, self._done, self._truncated, self._success

    def state(self) -> Float32[np.ndarray, "s"]:
        """The state keys' values, flattened and joined in their declared order."""
        parts = [np.asarray(self._observation[key], np.float32).ravel() for key in self._layout.state_keys]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def images(self) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """Every camera's picture, by our names."""
        pictures = {}
        for name, key in self._layout.cameras:
            picture = self.env.render() if key == RENDER else self._observation[key]
            pictures[name] = _checked_picture(np.asarray(picture), self.description, name)
        return pictures

    def look(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        return self.images(), self.state()

    def close(self) -> None:
        self.env.close()

    def _succeeded(self, info: Mapping[str, Any]) -> bool:
        key = self._layout.success_key
        if key is None:
            return False
        if key not in info:
            raise errors.EnvError(
                f"{self.description.name}: the info of a step has no {key!r}",
                fix=errors.closest(key, map(str, info)) + "; set GymnasiumLayout.success_key",
            )
        return bool(info[key])


def _describe(env: "gymnasium.Env", spaces: Mapping[str, Any], layout: GymnasiumLayout) -> Description:
    name = layout.name or (env.spec.id if env.spec else type(env.unwrapped).__name__)
    length = layout.episode_length or (env.spec.max_episode_steps if env.spec else None)
    if length is None:
        raise errors.EnvError(
            f"{name} has no time limit", expected="a number of control steps", fix="set GymnasiumLayout.episode_length"
        )
    states = []
    for key in layout.state_keys:
        size = int(np.prod(_box(spaces, key, name).shape))
        states += [key] if size == 1 else [f"{key}_{i}" for i in range(size)]
    cameras = {ours: _picture_size(env, spaces, key, name) for ours, key in layout.cameras}
    return Description(name, tuple(states), _action_names(env.action_space, name), cameras, length)


def _action_names(space: Any, name: str) -> tuple[str, ...]:
    import gymnasium

    if not isinstance(space, gymnasium.spaces.Box) or not (
        np.isfinite(space.low).all() and np.isfinite(space.high).all()
    ):
        raise errors.EnvError(
            f"the action space of {name}",
            expected="a Box with finite bounds, which [-1, 1] is scaled to",
            found=space,
            fix="wrap the environment: bound its actions or make them continuous",
        )
    return tuple(f"action_{i}" for i in range(int(np.prod(space.shape))))


def _picture_size(env: "gymnasium.Env", spaces: Mapping[str, Any], key: str, name: str) -> tuple[int, int]:
    if key == RENDER:
        if env.render_mode != "rgb_array":
            raise errors.EnvError(
                f"a camera of {name} is what it renders", expected='render_mode="rgb_array"', found=env.render_mode
            )
        env.reset(seed=0)
        shape, dtype = np.shape(env.render()), np.dtype(np.uint8)
    else:
        shape, dtype = _box(spaces, key, name).shape, spaces[key].dtype
    if len(shape) != 3 or shape[-1] != 3 or dtype != np.uint8:
        raise errors.EnvError(f"{key!r} of {name}", expected="uint8 [height, width, 3]", found=f"{dtype} {list(shape)}")
    return shape[0], shape[1]


def _checked_picture(picture: np.ndarray, description: Description, camera: str) -> np.ndarray:
    expected = (*description.cameras[camera], 3)
    if picture.dtype != np.uint8 or picture.shape != expected:
        raise errors.EnvError(
            f"camera {camera!r} of {description.name}",
            expected=f"uint8 {list(expected)}",
            found=f"{picture.dtype} {list(picture.shape)}",
        )
    return picture


def _box(spaces: Mapping[str, Any], key: str, name: str) -> Any:
    import gymnasium

    if key not in spaces:
        raise errors.EnvError(f"{name} observes no {key!r}", fix=errors.closest(key, spaces))
    if not isinstance(spaces[key], gymnasium.spaces.Box):
        raise errors.EnvError(f"{key!r} of {name}", expected="a Box", found=spaces[key])
    return spaces[key]


def _flat_spaces(space: Any) -> dict[str, Any]:
    """Spaces by path; one that is no Dict is called BOX_KEY."""
    return _paths(space.spaces) if hasattr(space, "spaces") and isinstance(space.spaces, Mapping) else {BOX_KEY: space}


def _flatten(observation: Any) -> dict[str, Any]:
    return _paths(observation) if isinstance(observation, Mapping) else {BOX_KEY: observation}


def _paths(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        inner = value.spaces if isinstance(getattr(value, "spaces", None), Mapping) else value
        flat |= _paths(inner, f"{prefix}{key}/") if isinstance(inner, Mapping) else {f"{prefix}{key}": value}
    return flat
