"""brax's own PPO or SAC on a task of the tabletop suite, through `vla_jax.envs.brax_env`: state in, no pictures.

    python scripts/brax_tabletop.py --agent ppo --task push --steps 200000

The reward is shaped (nearer to the object, the object nearer to its goal, 10 at success); the success rates it prints
are the environment's own, of brax's evaluator before and after, with Wilson's 95 % interval.
"""

import dataclasses
import functools
import sys
import time
from typing import Any, Literal

import jax
import numpy as np
import tyro

from vla_jax.core import errors, runtime
from vla_jax.core.types import PromptTable
from vla_jax.envs import brax_env
from vla_jax.envs.base import EnvState
from vla_jax.envs.mjx.tabletop import TabletopConfig
from vla_jax.evaluation import statistics


@dataclasses.dataclass(frozen=True)
class Config:
    agent: Literal["ppo", "sac"] = "ppo"
    task: str = "push"
    steps: int = 200_000  # environment steps
    num_envs: int = 64
    eval_episodes: int = 128
    seed: int = 0


def shaped(before: EnvState, after: EnvState) -> jax.Array:
    """Progress in decimetres, and 10 at success."""
    nearer = before.info["hand_distance"] - after.info["hand_distance"]
    closer = before.info["goal_distance"] - after.info["goal_distance"]
    return 10 * (nearer + 2 * closer) + 10 * after.success


def train(config: Config) -> list[dict[str, Any]]:
    """Rows of brax's evaluations, the first before any update."""
    brax_env.require()
    from brax.training.agents.ppo import networks as ppo_networks
    from brax.training.agents.ppo import train as ppo
    from brax.training.agents.sac import networks as sac_networks
    from brax.training.agents.sac import train as sac

    tabletop = TabletopConfig(config.task, image_size=8)
    nothing = np.zeros((len(tabletop.instructions), 1), np.int32)
    ours = tabletop.make(PromptTable(tokens=nothing, mask=nothing.astype(bool)))
    env = brax_env.to_brax(ours, observe=ours.env_state, reward=shaped)
    started, rows = time.monotonic(), []

    def progress(steps: int, metrics: dict[str, Any]) -> None:
        success, reward = float(metrics["eval/episode_success"]), float(metrics["eval/episode_reward"])
        low, high = statistics.wilson(round(success * config.eval_episodes), config.eval_episodes)
        rows.append({"steps": steps, "success": success, "interval": (low, high), "reward": reward})
        seconds = time.monotonic() - started
        print(f"{seconds:6.0f} s {steps:8d} steps: success {success:.3f} [{low:.3f}, {high:.3f}], return {reward:.2f}")

    nets: dict[str, Any] = {
        "ppo": functools.partial(ppo_networks.make_ppo_networks, policy_hidden_layer_sizes=(64, 64))
    }
    nets["sac"] = functools.partial(sac_networks.make_sac_networks, hidden_layer_sizes=(128, 128))
    shared = {
        "environment": env,
        "num_timesteps": config.steps,
        "episode_length": env.episode_length,
        "num_envs": config.num_envs,
        "num_eval_envs": config.eval_episodes,
        "num_evals": 4,
        "seed": config.seed,
        "max_devices_per_host": 1,
        "normalize_observations": True,
        "discounting": 0.97,
        "network_factory": nets[config.agent],
        "progress_fn": progress,
    }
    with brax_env.replicated_puts():
        if config.agent == "ppo":
            own = {"unroll_length": 16, "batch_size": config.num_envs, "num_minibatches": 8, "num_updates_per_batch": 4}
            ppo.train(**shared, **own, learning_rate=1e-3, entropy_cost=1e-3, num_resets_per_eval=4)
        else:
            own = {"min_replay_size": 5_000, "max_replay_size": 200_000, "grad_updates_per_step": 16}
            sac.train(**shared, **own, batch_size=256, learning_rate=1e-3)
    return rows


def main() -> None:
    runtime.enable_compile_cache()
    try:
        train(tyro.cli(Config, description=__doc__))
    except errors.VlaError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
