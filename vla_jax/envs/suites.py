"""Environments by name, and the suites they form.

    config = ENVS["tabletop/place"]                          # a frozen config; dataclasses.replace overrides fields
    prompts = PromptTable(...tokenize(config.instructions))
    env = make(config, prompts)                              # or make("tabletop/place", prompts)

Packages add environments through the entry-point group `vla_jax.env`; the object is such a config.
"""

from typing import Protocol

from vla_jax.core.registry import Registry
from vla_jax.core.types import PromptTable
from vla_jax.envs.base import Env
from vla_jax.envs.mjx.panda import PandaConfig
from vla_jax.envs.mjx.pick_cube import PickCubeConfig
from vla_jax.envs.mjx.tabletop import TabletopConfig
from vla_jax.envs.mjx.tasks import TASKS
from vla_jax.envs.planar.maze import MazeConfig
from vla_jax.envs.planar.reach import ReachConfig


class EnvConfig(Protocol):
    """What a registered environment is: instructions to tokenize, then a constructor."""

    @property
    def instructions(self) -> tuple[str, ...]: ...

    def make(self, prompts: PromptTable) -> Env: ...


ENVS: Registry[EnvConfig] = Registry(
    "env",
    {
        **{f"tabletop/{task}": TabletopConfig(task) for task in TASKS},
        "panda/pick_place": PandaConfig(),
        "panda/pick_cube": PickCubeConfig(),
        "planar/reach": ReachConfig(),
        "planar/maze": MazeConfig(),
    },
)

SUITES: dict[str, tuple[str, ...]] = {
    "tabletop": ("tabletop/push", "tabletop/lift", "tabletop/place", "tabletop/stack"),
    "panda": ("panda/pick_place", "panda/pick_cube"),
    "planar": ("planar/reach", "planar/maze"),
}


def make(env: str | EnvConfig, prompts: PromptTable) -> Env:
    """The environment of a name or a config; `prompts` has one row per instruction of it."""
    config = ENVS[env] if isinstance(env, str) else env
    return config.make(prompts)
