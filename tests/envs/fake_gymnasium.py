"""A Gymnasium environment without physics: a point on a line, nested observations, one picture, three tasks.

The point moves by the first action entry, whose bounds are -2 and 2. It succeeds, and the task ends, past its task's
number plus one; past -3 it fails, and the task ends too. A reset starts it at the seed modulo 10, in tenths.
"""

import gymnasium
import numpy as np
from gymnasium import spaces


class LineEnv(gymnasium.Env):
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (Gymnasium's own name and kind)

    def __init__(self, size: int = 8, ends: bool = True):
        self.render_mode, self._ends, self._size = "rgb_array", ends, size
        self.observation_space = spaces.Dict(
            {
                "robot": spaces.Dict(
                    {"place": spaces.Box(-9, 9, (1,), np.float64), "speed": spaces.Box(-9, 9, (2,), np.float32)}
                ),
                "eye": spaces.Box(0, 255, (size, size, 3), np.uint8),
                "kind": spaces.Discrete(3),
            }
        )
        self.action_space = spaces.Box(np.array([-2, 0], np.float32), np.array([2, 1], np.float32))
        self.actions = []
        self._place, self._task = 0.0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._place, self._task = (seed or 0) % 10 / 10, (options or {}).get("task", 0)
        return self._observation(np.zeros(2)), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.actions.append(action)
        self._place += float(action[0])
        success = self._place >= self._task + 1
        terminated = self._ends and (success or self._place < -3)
        return self._observation(action), float(success), terminated, False, {"is_success": success}

    def render(self):
        return np.full((self._size, 2 * self._size, 3), 7, np.uint8)

    def _observation(self, action):
        shade = np.full((self._size, self._size, 3), round(10 * self._place) % 256, np.uint8)
        robot = {"place": np.array([self._place]), "speed": action.astype(np.float32)}
        return {"robot": robot, "eye": shade, "kind": 1}


class BoxEnv(gymnasium.Env):
    """A plain vector and no bounds on time; its actions have none either, unless asked for."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)

    def __init__(self, bounded: bool = True):
        bound = 1.0 if bounded else np.inf
        self.action_space = spaces.Box(-bound, bound, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.normal(size=3), {}

    def step(self, action):
        return np.ones(3), 0.5, False, False, {}


class GoalEnv(gymnasium.Env):
    """A point in a plane that begins at the origin and is told where to go, in the order (y, x): one of five places on
    the unit circle. It arrives within 0.3, which ends the task; a step is 0.2 at most."""

    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    observation_space = spaces.Dict(
        {"observation": spaces.Box(-9, 9, (3,), np.float64), "goal": spaces.Box(-9, 9, (2,), np.float64)}
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        angle = 2 * np.pi * (options or {}).get("task", 0) / 5
        self._place, self._goal = np.zeros(2), np.array([np.cos(angle), np.sin(angle)])
        return self._observation(), {}

    def step(self, action):
        self._place = self._place + 0.2 * action
        success = bool(np.linalg.norm(self._goal - self._place) < 0.3)
        return self._observation(), float(success), success, False, {"success": success}

    def _observation(self):
        return {"observation": np.array([*self._place, 7.0]), "goal": self._goal[::-1]}
