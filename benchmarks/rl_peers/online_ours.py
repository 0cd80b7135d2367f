"""Our side of online learning: RLPD in the pick-cube scene, a decision of every environment and its updates in turn.

This is the loop of `training/fit.py` without logging and checkpoints. On an accelerator the decisions of a block and
their updates are one program (`scan_updates`); on a CPU, whose simulator and updates want other kernels, two that take
turns.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import online
import optax
import timing

from vla_jax.core.types import PromptTable
from vla_jax.envs.mjx.pick_cube import PickCubeConfig
from vla_jax.learners.rlpd import RLPD, RLPDConfig
from vla_jax.training import feeding, sharding, step
from vla_jax.training.online import ReplayConfig, ReplaySource


def make(size: online.Size) -> tuple[step.TrainStep, ReplaySource]:
    prompts = PromptTable(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))
    env = PickCubeConfig(arm="slides", episode_length=size.episode_length).make(prompts)
    config = RLPDConfig(discount=size.discount)
    learner = RLPD(env.spec.action_dim, env.spec.state_dim, optax.adam(3e-4), config)
    collect = ReplayConfig(
        num_envs=size.num_envs,
        capacity=size.capacity,
        warmup_decisions=size.warmup_decisions,
        critic_updates=size.critic_updates,
        batch_size=size.batch_size,
    )
    abstract = jax.eval_shape(lambda key: learner.actor(learner.init(key)), jax.random.key(0))
    source, mesh = ReplaySource(env, learner, abstract, collect), sharding.make_mesh(sharding.MeshConfig())
    source.use_mesh(mesh)
    scan = 1 if jax.default_backend() == "cpu" else size.decisions
    return step.build(learner, source.example(), mesh, scan_updates=scan), source


def measure(size: online.Size) -> dict:
    """Environment steps per second, the median over blocks; the first block compiles and is left out."""
    train_step, source = make(size)
    feed, carry = feeding.feed(source, train_step), train_step.init(train_step.example)
    start, rates, compile_s = time.perf_counter(), [], 0.0
    for block in range(size.blocks + 1):
        taken = []
        for first in range(block * size.decisions, (block + 1) * size.decisions, train_step.scan_updates):
            carry, _, said = feed.advance(carry, first)
            taken += [values["collect/env_steps"] * train_step.scan_updates for values in said]
        steps = float(sum(jax.block_until_ready(taken)))
        jax.block_until_ready(carry)
        now = time.perf_counter()
        if block:
            rates.append(steps / (now - start))
        else:
            compile_s = now - start
        start = now
    finite = int(carry.bad_step) < 0
    return dict(
        env_steps_per_s=statistics.median(rates),
        gradient_steps_per_env_step=(size.critic_updates + 1) / size.num_envs,
        samples_per_env_step=(size.critic_updates + 1) * size.batch_size / size.num_envs,
        first_block_s=compile_s,
        finite=finite,
        num_envs=size.num_envs,
        jax=jax.__version__,
        device=jax.devices()[0].device_kind,
    )


def main() -> None:
    timing.print_result(**measure(online.size_from(argparse.ArgumentParser())))


if __name__ == "__main__":
    main()
