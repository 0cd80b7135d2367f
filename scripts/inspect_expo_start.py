"""How EXPO's reproduction on finer goals gets off the ground: how often what acts touches a goal before anything is
known about goals, and when the first reward comes. Into results/expo_start; ten minutes of one CPU core for five seeds.

    python scripts/inspect_expo_start.py --seeds 0 1 2 3 4

With rewards hidden, in demonstrations and in collection, critics and edits train as always and have nothing to learn.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import tyro
from jaxtyping import Array, Bool, Float, Key, Shaped

import vla_jax  # noqa: F401  (first: sets XLA's CPU flags before jax starts)
from recipes import expo_reach
from scripts import reproduce_expo
from vla_jax.core import runtime
from vla_jax.envs.planar.reach import ReachEnv
from vla_jax.envs.wrappers import BatchedEnv, ChunkedEnv
from vla_jax.evaluation import manifest, results, statistics

TABLE = "expo_start"
EPISODES = 1024
PER = 100  # steps per count of hits
ARMS: dict[str, dict[str, Any]] = {
    "fine_best_of_8": {"edited": False},
    "fine_best_of_16": {"edited": False, "num_base_samples": 16},
    "fine_expo": {},
}
MEASURES = ("before", "hidden", "first_hit")  # the first takes a minute, the others, with learning, ten
CONSOLE = rich.console.Console(highlight=False)


@dataclasses.dataclass(frozen=True)
class Options:
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    arms: tuple[str, ...] = tuple(ARMS)
    measures: tuple[str, ...] = MEASURES
    results: str = "results"


class Unrewarded(ReachEnv):
    """The same task; touching a goal ends the episode and pays nothing."""

    def judge(self, physics, following):
        return super().judge(physics, following).replace(reward=jnp.zeros(()))


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    runtime.enable_compile_cache()
    keys = jax.vmap(jax.random.key)(jnp.asarray(options.seeds))
    for arm in options.arms:
        found = jax.tree.map(np.asarray, of_seeds(arm, options.measures, expo_reach.fine(), keys))
        for i, seed in enumerate(options.seeds):
            account = manifest.manifest(seeds=(seed,), recipe=expo_reach.fine())
            entries = [_entry(arm, cell, seed, values[i], account) for cell, values in found.items()]
            results.append(Path(options.results), f"seed{seed}", entries)


def of_seeds(
    arm: str, measures: tuple[str, ...], experiment: expo_reach.Experiment, keys: Key[Array, "n"]
) -> dict[str, Shaped[Array, "n ..."]]:
    """By cell, what was measured of each seed."""
    hidden = dataclasses.replace(experiment, env_steps=experiment.env_steps // 2)
    known = {
        "before": functools.partial(before, experiment),
        "hidden": lambda changes, key: {"hidden": hits(Unrewarded, hidden, changes, key)},
        "first_hit": lambda changes, key: {"first_hit": first_hit(hits(ReachEnv, experiment, changes, key))},
    }
    if arm not in reproduce_expo.ARMS:  # has no run to begin
        del known["first_hit"]
    found = {}
    for name, measure in known.items():
        if name in measures:
            found |= jax.jit(jax.vmap(functools.partial(measure, ARMS[arm])))(keys)
    return found


def before(
    experiment: expo_reach.Experiment, changes: dict[str, Any], key: Key[Array, ""]
) -> dict[str, Bool[Array, "episodes"]]:
    """Success before learning: of one base sample, of its edit, and of what a critic that knows nothing chooses."""
    env = ChunkedEnv(BatchedEnv(experiment.env.make(reproduce_expo.PROMPTS)))
    keys = jax.random.split(key, 6)
    learner, _, (_, state) = reproduce_expo.begin(env, experiment, changes, keys)
    actor = learner.actor(state)

    def sample(key, observation):
        return learner.embed(actor["base"], key, observation).candidates[:, 0]

    def edited(key, observation):
        embedded = learner.embed(actor["base"], key, observation)
        features = learner.look(actor["encoder"], embedded)
        return learner.candidates(actor["edit"], key, features, embedded.candidates)[:, learner.config.num_base_samples]

    def chosen(key, observation):
        view, _ = learner.observe(actor, key, observation)
        return learner.explore(actor, key, view)

    ways = {"sample": sample, "chosen": chosen} | ({"edited": edited} if learner.config.edited else {})
    return {name: reproduce_expo.play(env, act, keys[3], EPISODES).success for name, act in ways.items()}


def hits(
    task: type[ReachEnv], experiment: expo_reach.Experiment, changes: dict[str, Any], key: Key[Array, ""]
) -> Bool[Array, "steps"]:
    """Which of the collected steps touched a goal, in order, those of the table's run with the same key."""
    env = ChunkedEnv(BatchedEnv(task(experiment.env, reproduce_expo.PROMPTS)))
    keys = jax.random.split(key, 6)
    learner, demonstrations, carry = reproduce_expo.begin(env, experiment, changes, keys)

    def part(carry, key):
        learn_key, _ = jax.random.split(key)
        return reproduce_expo.learn(env, experiment, learner, demonstrations, carry, learn_key), None

    carry, _ = jax.lax.scan(part, carry, jax.random.split(keys[4], experiment.num_evaluations))
    (_, buffer), _ = carry
    touched = (buffer.rows.discounts[:, 0] == 0) & (jnp.arange(buffer.capacity) < buffer.size)
    return touched[: experiment.env_steps]


def first_hit(touched: Bool[Array, "steps"]) -> Float[Array, "1"]:
    """Steps until the first; all of them where there was none."""
    return jnp.where(touched.any(), touched.argmax() + 1, touched.size)[None].astype(jnp.float32)


def _entry(arm: str, cell: str, seed: int, values: Shaped[np.ndarray, "n"], account) -> results.Entry:
    if cell == "first_hit":
        shown = values
    elif cell == "hidden":  # per 1,000 steps
        shown = 1000 * values.reshape(-1, PER).mean(1)
    else:
        shown = values.astype(int)
    interval, records = statistics.bootstrap_mean(shown.astype(float)), {cell: shown.tolist()}
    if values.size == EPISODES:
        interval = statistics.wilson(int(values.sum()), values.size)
    CONSOLE.print(f"  {arm}, seed {seed}: {cell} {shown.mean():.4g}")
    return results.Entry(TABLE, arm, cell, (seed,), shown.size, float(shown.mean()), interval, account, cell, records)


if __name__ == "__main__":
    main()
