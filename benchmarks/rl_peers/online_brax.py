"""Peer of online learning: brax's own PPO loop in our scene, through our adapter; run in an environment with brax.

Times are brax's own (`training/sps`: collecting and learning, without evaluation), the median over its epochs without
the first, which compiles. Networks and loss are brax's defaults.
"""

import argparse
import statistics

import jax
import jax.numpy as jnp
import online
import timing
from brax.training.agents.ppo import train as ppo

from vla_jax.core.types import PromptTable
from vla_jax.envs.brax_env import replicated_puts, to_brax
from vla_jax.envs.mjx.pick_cube import PickCubeConfig


def measure(size: online.Size) -> dict:
    prompts = PromptTable(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))
    env = to_brax(PickCubeConfig(arm="slides", episode_length=size.episode_length).make(prompts))
    rates = []

    def progress(step: int, metrics: dict) -> None:
        rates.append(metrics.get("training/sps"))

    with replicated_puts():
        _, params, _ = ppo.train(
            environment=env,
            num_timesteps=(size.blocks + 1) * size.iterations * size.num_envs * size.unroll_length,
            num_evals=size.blocks + 2,
            run_evals=False,
            num_envs=size.num_envs,
            episode_length=size.episode_length,
            discounting=size.discount,
            unroll_length=size.unroll_length,
            batch_size=size.num_envs // size.num_minibatches,
            num_minibatches=size.num_minibatches,
            num_updates_per_batch=size.num_updates_per_batch,
            progress_fn=progress,
        )
    rates = [float(rate) for rate in rates if rate is not None]
    if len(rates) != size.blocks + 1:
        raise RuntimeError(f"brax reported {len(rates)} epochs, expected {size.blocks + 1}")
    gradient_steps = size.num_minibatches * size.num_updates_per_batch
    return dict(
        env_steps_per_s=statistics.median(rates[1:]),
        gradient_steps_per_env_step=gradient_steps / (size.num_envs * size.unroll_length),
        samples_per_env_step=float(size.num_updates_per_batch),
        finite=all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params)),
        num_envs=size.num_envs,
        jax=jax.__version__,
        device=jax.devices()[0].device_kind,
    )


def main() -> None:
    timing.print_result(**measure(online.size_from(argparse.ArgumentParser())))


if __name__ == "__main__":
    main()
