"""How far the imitated base of EXPO's reproduction spreads where demonstrations rest, and what that puts in reach.

    python scripts/inspect_expo.py --seeds 0 1 2

Nothing is learned here but imitation. The spread is that of base samples at the place beside a goal where noiseless
demonstrations without a range of aims end, in action entries; hits are samples that would end on the goal from there.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import tyro
from jaxtyping import Array, Float, Key

import vla_jax  # noqa: F401  (first: sets XLA's CPU flags before jax starts)
from recipes import expo_reach
from scripts import reproduce_expo
from vla_jax.core import runtime
from vla_jax.envs.planar import reach
from vla_jax.envs.wrappers import BatchedEnv, ChunkedEnv

SETTINGS = {name: getattr(expo_reach, name) for name in ("study", "fine", "sharp", "sharp_in_small_strides")}
SAMPLED_STATES = 64  # copies of the one place, each with as many samples as EXPO draws


@dataclasses.dataclass(frozen=True)
class Options:
    seeds: tuple[int, ...] = (0, 1, 2)
    settings: tuple[str, ...] = tuple(SETTINGS)


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    runtime.enable_compile_cache()
    keys = jax.vmap(jax.random.key)(jnp.asarray(options.seeds))
    for name in options.settings:
        found = jax.jit(jax.vmap(functools.partial(inspect, SETTINGS[name]())))(keys)
        shown = {quantity: np.asarray(values).round(3).tolist() for quantity, values in found.items()}
        rich.console.Console(highlight=False, soft_wrap=True).print(f"{name}: {shown}")


def inspect(experiment: expo_reach.Experiment, key: Key[Array, ""]) -> dict[str, Float[Array, "..."]]:
    env = ChunkedEnv(BatchedEnv(experiment.env.make(reproduce_expo.PROMPTS)))
    demonstrate_key, learner_key, sample_key, play_key = jax.random.split(key, 4)
    rows = reach.demonstrate(env.env.env, demonstrate_key, experiment.num_demonstrations, experiment.demonstrator)
    demonstrations = reproduce_expo.as_buffer(rows.replace(extras={}))
    learner, state = reproduce_expo.make_learner(experiment, {}, demonstrations, learner_key)
    stride, goal = experiment.env.stride, jnp.array(experiment.env.goal)
    rest = goal - stride * jnp.array(experiment.demonstrator.shift) * jnp.sign(goal)
    observation = env.observe(env.reset(jax.random.split(sample_key, SAMPLED_STATES)))
    observation = observation.replace(state=jnp.broadcast_to(rest, observation.state.shape))
    samples = learner.embed(learner.actor(state)["base"], sample_key, observation).candidates.reshape(-1, 2)
    ends = rest[None] + stride * samples
    alone = dataclasses.replace(learner, config=dataclasses.replace(learner.config, edited=False))
    return {
        "mean": samples.mean(axis=0),
        "spread": samples.std(axis=0),
        "hits": (jnp.linalg.norm(ends - goal[None], axis=-1) < experiment.env.radius).mean(),
        "within_reach_of_choice": reproduce_expo.within_reach(env, alone, state, play_key).mean(),
        "within_reach_of_edits": reproduce_expo.within_reach(env, learner, state, play_key).mean(),
    }


if __name__ == "__main__":
    main()
