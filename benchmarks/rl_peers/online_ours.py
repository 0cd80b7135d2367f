"""Our side of online learning: RLPD in the pick-cube scene, a decision of every environment and its updates in turn.

This is the loop of `training/fit.py` without logging and checkpoints: `ReplaySource.next` acts, steps the simulator,
stores and samples; one compiled update follows.
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
from vla_jax.learners.rlpd import RLPD, RLPDConfig, RLPDState
from vla_jax.training.online import ReplayConfig, ReplaySource


def make(size: online.Size) -> tuple[RLPD, ReplaySource, RLPDState]:
    prompts = PromptTable(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))
    env = PickCubeConfig(arm="slides", episode_length=size.episode_length).make(prompts)
    config = RLPDConfig(discount=size.discount)
    learner = RLPD(env.spec.action_dim, env.spec.state_dim, optax.adam(3e-4), config)
    state = jax.jit(learner.init)(jax.random.key(0))
    collect = ReplayConfig(
        num_envs=size.num_envs,
        capacity=size.capacity,
        warmup_decisions=size.warmup_decisions,
        critic_updates=size.critic_updates,
        batch_size=size.batch_size,
    )
    abstract = jax.eval_shape(learner.actor, state)
    return learner, ReplaySource(env, learner, abstract, collect), state


def measure(size: online.Size) -> dict:
    """Environment steps per second, the median over blocks; the first block compiles and is left out."""
    learner, source, state = make(size)
    update = jax.jit(learner.update, donate_argnums=0)
    start, rates, compile_s, step = time.perf_counter(), [], 0.0, 0
    for block in range(size.blocks + 1):
        taken = []
        for _ in range(size.decisions):
            batch, metrics = source.next(step, learner.actor(state))
            state, _ = update(state, jax.random.fold_in(jax.random.key(1), step), batch)
            taken.append(metrics["collect/env_steps"])
            step += 1
        steps = float(sum(jax.block_until_ready(taken)))
        jax.block_until_ready(state)
        now = time.perf_counter()
        if block:
            rates.append(steps / (now - start))
        else:
            compile_s = now - start
        start = now
    finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state.params))
    return dict(
        env_steps_per_s=statistics.median(rates),
        gradient_steps_per_env_step=(size.critic_updates + 1) / size.num_envs,
        samples_per_env_step=(size.critic_updates + 1) * size.batch_size / size.num_envs,
        first_block_s=compile_s,
        finite=finite,
        jax=jax.__version__,
    )


def main() -> None:
    argparse.ArgumentParser().parse_args()
    timing.print_result(**measure(online.SIZE))


if __name__ == "__main__":
    main()
