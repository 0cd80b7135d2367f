"""A simulator with LiberoSim's interface and no physics, for workers that must start in a second.

The "gripper" sums the first action entry; the episode succeeds when the sum reaches the task's number plus one. An
initial state that is a number is the sum to start from.
"""

import os
import time

import numpy as np


class FakeSimulator:
    def __init__(self, size: int = 16):
        self.size, self.closed = size, False
        self.task = self.travelled = 0

    def reset(self, suite, task, init_state, scene_seed):
        self.task = task
        self.travelled = float(np.asarray(init_state).ravel()[0]) + scene_seed

    def step(self, action):
        self.travelled += float(action[0])
        success = self.travelled >= self.task + 1
        return float(success), success

    def state(self):
        return np.full(8, self.travelled, np.float32)

    def images(self):
        shade = np.full((self.size, self.size, 3), round(10 * self.travelled) % 256, np.uint8)
        return {"front": shade, "wrist": 255 - shade}

    def raw_images(self):
        return self.images()

    def fail(self):
        raise RuntimeError("the arm fell off")

    def die(self):
        os._exit(7)

    def sleep(self, seconds):
        time.sleep(seconds)
