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
