"""OGBench's state-based tasks behind the host contract (arXiv 2410.20092; ogbench 1.2.2, an optional extra).

    env = OgbenchConfig("cube-single", goal="oraclerep").make()          # five tasks; the goal is part of the state
    env = OgbenchConfig("cube-single", single_task=2).make()             # one task and its dense reward
    with OgbenchConfig("cube-single").make_lanes(4) as lanes: ...        # for evaluation

`state` is OGBench's observation (scaled as it scales it), then the goal where there is one, `goal_dim(state_names)`
entries. Rewards: with a goal 1 where it is reached, which ends the task; of a single task minus the
number of its unsolved parts in the state that is acted in, and an action in a solved state ends it.
"""

import dataclasses
import functools

from vla_jax.core import errors
from vla_jax.core.types import PromptTable
from vla_jax.envs import ogbench_sim
from vla_jax.envs.gymnasium_env import GymnasiumEnv, GymnasiumLayout, GymnasiumVectorEnv
from vla_jax.envs.ogbench_sim import NUM_TASKS, Goal

_CONTROL_HZ = {"pointmaze": 10.0}  # the others run at 20


@dataclasses.dataclass(frozen=True)
class OgbenchConfig:
    """Which environment, and what its agent is told of the goal."""

    env: str = "cube-single"  # one of ogbench_sim.SCENES
    goal: Goal | None = None  # None: "state" (a whole state as OGBench's own agents get it) unless there is one task
    single_task: int | None = None  # 1 to 5; None: all five, chosen by reset
    episode_length: int | None = None  # control steps; None: OGBench's own

    def __post_init__(self):
        ogbench_sim.scene_of(self.env)
        if self.single_task is not None and not 1 <= self.single_task <= NUM_TASKS:
            raise errors.ConfigError("OgbenchConfig.single_task", expected=f"1 to {NUM_TASKS}", found=self.single_task)
        if self.single_task is None and self.goal == "none":
            raise errors.ConfigError(
                "OgbenchConfig.goal", expected='"state" or "oraclerep" where reset chooses the task', found='"none"'
            )

    @property
    def told_goal(self) -> Goal:
        return self.goal or ("state" if self.single_task is None else "none")

    @property
    def instructions(self) -> tuple[str, ...]:
        """One per task: its name, OGBench has no language."""
        tasks = range(1, NUM_TASKS + 1) if self.single_task is None else (self.single_task,)
        return tuple(f"{self.env} task {task}" for task in tasks)

    @property
    def layout(self) -> GymnasiumLayout:
        return GymnasiumLayout(
            name=f"ogbench/{self.env}" + (f"/task{self.single_task}" if self.single_task else ""),
            state_keys=("observation",) if self.told_goal == "none" else ("observation", "goal"),
            success_key="success",
            episode_length=self.episode_length,
            control_hz=_CONTROL_HZ.get(ogbench_sim.scene_of(self.env).kind, 20.0),
            instructions=self.instructions,
            task_option="task" if len(self.instructions) > 1 else None,
        )

    def make(self, prompts: PromptTable | None = None) -> GymnasiumEnv:
        """One environment in this process. Raises EnvError without OGBench."""
        return GymnasiumEnv(self._make, self.layout, prompts)

    def make_lanes(
        self, num_lanes: int = 1, prompts: PromptTable | None = None, *, timeout: float = 600.0
    ) -> GymnasiumVectorEnv:
        """One environment per worker process. Raises EnvError without OGBench."""
        ogbench_sim.require()
        return GymnasiumVectorEnv(self._make, self.layout, num_lanes, prompts, timeout=timeout)

    @property
    def _make(self):
        return functools.partial(ogbench_sim.make_env, self.env, self.told_goal, self.single_task)


def goal_dim(state_names: tuple[str, ...]) -> int:
    """How many of the last entries of a state are the goal."""
    return sum(name == "goal" or name.startswith("goal_") for name in state_names)
