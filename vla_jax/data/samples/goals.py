"""Hindsight goals: a frame that the episode did reach later becomes the goal, and the rewards are told anew.

frames       3 4 5 6 7 | 8         an episode of frames 3 to 7
uniform      from 4: each of 5, 6, 7 with 1/3
geometric    from 4: 5 with 1 - g, 6 with g (1 - g), 7 with what is left: farther than the end is the end
final        from 4: 7
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt64

from vla_jax.core import errors
from vla_jax.data.samples import draws


@dataclasses.dataclass(frozen=True)
class GoalConfig:
    """How goals are drawn (three probabilities) and what reaching one is worth."""

    uniform: float = 0.0  # any later frame of the episode
    geometric: float = 1.0  # near ones more often: the discounted future of the data
    final: float = 0.0  # the last frame
    geometric_discount: float = 0.99  # probability, at every step, that the goal lies still further
    goal_reward: float = 1.0  # of the step that reaches the goal, which ends the task
    step_reward: float = 0.0  # of every step before; -1 with a goal_reward of 0 counts steps

    def __post_init__(self):
        chances = (self.uniform, self.geometric, self.final)
        if min(chances) < 0 or abs(sum(chances) - 1) > 1e-6:
            raise errors.ConfigError(
                "GoalConfig.uniform, geometric and final", expected="probabilities that add up to 1", found=chances
            )
        if not 0 <= self.geometric_discount < 1:
            raise errors.ConfigError(
                "GoalConfig.geometric_discount", expected="a value in [0, 1)", found=self.geometric_discount
            )


def draw_goals(
    frames: Int64[np.ndarray, "b"],
    episode_stops: Int64[np.ndarray, "b"],
    keys: UInt64[np.ndarray, "b"],
    config: GoalConfig,
) -> Int64[np.ndarray, "b"]:
    """The goal frame of every sample, later in its episode; the last frame of an episode is its own goal."""
    left = episode_stops - 1 - frames
    near = 1 + draws.integers(keys, "uniform goal", np.maximum(left, 1))
    with np.errstate(divide="ignore"):  # a discount of 0 means the next frame: log 0 is minus infinity, as it should
        steps = np.log1p(-draws.uniform(keys, "geometric goal")) / np.log(config.geometric_discount)
    discounted = 1 + np.minimum(np.floor(steps), left).astype(np.int64)
    which = draws.uniform(keys, "kind of goal")
    distance = np.where(
        which < config.uniform, near, np.where(which < config.uniform + config.geometric, discounted, left)
    )
    return frames + np.minimum(distance, left)


def relabel(
    frames: Int64[np.ndarray, "b"], goals: Int64[np.ndarray, "b"], num_steps: int, config: GoalConfig
) -> tuple[Float32[np.ndarray, "b n"], Float32[np.ndarray, "b n"], Bool[np.ndarray, "b n"]]:
    """Rewards, discounts and mask of the next steps under the goals.

    Step `k` leads to frame `frames + k + 1`; where that is the goal it earns `goal_reward`, its discount is 0, and the
    steps after it were not run.
    """
    arrives = frames[:, None] + 1 + np.arange(num_steps)
    target = np.maximum(goals, frames + 1)[:, None]
    reaches, is_run = arrives == target, arrives <= target
    rewards = np.where(reaches, config.goal_reward, config.step_reward) * is_run
    return rewards.astype(np.float32), (~reaches & is_run).astype(np.float32), is_run
