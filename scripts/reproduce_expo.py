"""The small reproduction of EXPO: success over online steps by arm, into results/expo. See docs/expo.md.

    python scripts/reproduce_expo.py --seeds 0 1 2 3 4

Each arm is one compiled program for all seeds side by side: demonstrations, imitation, then collection and learning.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
import tyro
from jaxtyping import Array, Bool, Float, Key

import vla_jax  # noqa: F401  (first: sets XLA's CPU flags before jax starts)
from recipes import expo_reach
from vla_jax.core import runtime
from vla_jax.core.types import Demonstrations, Params, PromptTable, Transitions
from vla_jax.data.replay import device, mixing
from vla_jax.envs.planar import reach
from vla_jax.envs.wrappers import BatchedEnv, ChunkedEnv, reset_where
from vla_jax.evaluation import manifest, results, statistics
from vla_jax.learners.expo import EXPO
from vla_jax.learners.imitation import Imitation, ImitationConfig
from vla_jax.learners.rlpd import RLPD, RLPDConfig
from vla_jax.nets.critics import CriticConfig
from vla_jax.nets.state_mlp import StateMLP
from vla_jax.policies.diffusion import DiffusionPolicy
from vla_jax.samplers.best_of import best_of

TABLE, FINAL_EPISODES = "expo", 128
EARLY = 1000  # env steps
# The experiment, and changes to EXPO's config; None: another learner
ARMS: dict[str, tuple[Callable[[], expo_reach.Experiment], dict[str, Any] | None]] = {
    "rlpd": (expo_reach.study, None),
    "best_of_8": (expo_reach.study, {"edited": False}),
    "no_lookahead": (expo_reach.study, {"backup": "one_sample"}),
    "expo": (expo_reach.study, {}),
    "fine_rlpd": (expo_reach.fine, None),
    "fine_best_of_8": (expo_reach.fine, {"edited": False}),
    "fine_expo": (expo_reach.fine, {}),
    "sharp_best_of_8": (expo_reach.sharp, {"edited": False}),
    "sharp_expo": (expo_reach.sharp, {}),
    "long_rlpd": (expo_reach.long, None),
    "long_best_of_8": (expo_reach.long, {"edited": False}),
    "long_expo": (expo_reach.long, {}),
    "fine_long_best_of_8": (expo_reach.fine_long, {"edited": False}),
    "fine_long_expo": (expo_reach.fine_long, {}),
}
PROMPTS = PromptTable(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))
CONSOLE = rich.console.Console(highlight=False)


@dataclasses.dataclass(frozen=True)
class Options:
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    arms: tuple[str, ...] = tuple(ARMS)
    env_steps: int | None = None  # None: as the recipe has it
    results: str = "results"


class Outcome(NamedTuple):
    curve: Bool[Array, "points episodes"]  # success before learning, then after every part of it
    final: Bool[Array, "episodes"]
    base_side: Bool[Array, "episodes"]  # which goal the base alone heads for in the end
    within_reach: Bool[Array, "episodes"]  # success before learning, if choice and edit knew where the goals are
    demonstrated: Float[Array, ""]  # success of the demonstrations


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    runtime.enable_compile_cache()
    for arm in options.arms:
        recipe, changes = ARMS[arm]
        experiment = recipe()
        if options.env_steps is not None:
            experiment = dataclasses.replace(experiment, env_steps=options.env_steps)
        run = jax.jit(jax.vmap(functools.partial(run_arm, experiment, changes)))
        keys = jax.vmap(jax.random.key)(jnp.asarray(options.seeds))
        compiled, start = run.lower(keys).compile(), time.monotonic()
        outcomes = jax.device_get(compiled(keys))
        seconds = (time.monotonic() - start) / len(options.seeds)
        CONSOLE.print(f"{arm}: {seconds:.0f} s per seed, demonstrations {outcomes.demonstrated.mean():.0%}")
        for i, seed in enumerate(options.seeds):
            outcome = jax.tree.map(lambda leaf, i=i: leaf[i], outcomes)
            results.append(Path(options.results), f"seed{seed}", _entries(arm, outcome, experiment, seed, seconds))
        for name in ("curve", "final", "base_side", "within_reach"):
            shown = getattr(outcomes, name).mean(-1)
            CONSOLE.print(f"  {name}: {np.round(shown.mean(0), 2)}, by seed {np.round(shown, 2).tolist()}")


def run_arm(experiment: expo_reach.Experiment, changes: dict[str, Any] | None, key: Key[Array, ""]) -> Outcome:
    env = ChunkedEnv(BatchedEnv(experiment.env.make(PROMPTS)))
    keys = jax.random.split(key, 6)
    learner, demonstrations, carry = begin(env, experiment, changes, keys)
    _, state = carry

    def part(carry, key):
        learn_key, judge_key = jax.random.split(key)
        carry = learn(env, experiment, learner, demonstrations, carry, learn_key)
        return carry, judge(env, learner, carry[1], judge_key, experiment.evaluation_episodes)

    before = judge(env, learner, state, keys[3], experiment.evaluation_episodes)
    reachable = within_reach(env, learner, state, keys[3]) if isinstance(learner, EXPO) else before
    (_, state), after = jax.lax.scan(part, carry, jax.random.split(keys[4], experiment.num_evaluations))
    curve, final = jnp.concatenate([before[None], after]), judge(env, learner, state, keys[5], FINAL_EPISODES)
    side = _base_side(env, learner, state, keys[5]) if isinstance(learner, EXPO) else final
    demonstrated = demonstrations.rows.rewards.sum() / experiment.num_demonstrations
    return Outcome(curve, final, side, reachable, demonstrated)


def begin(env: ChunkedEnv, experiment: expo_reach.Experiment, changes: dict[str, Any] | None, keys: Key[Array, "n"]):
    """Learner, demonstrations, and what goes on between decisions: environments with a buffer, the learner's state."""
    rows = reach.demonstrate(env.env.env, keys[0], experiment.num_demonstrations, experiment.demonstrator)
    demonstrations = as_buffer(rows.replace(extras={}))
    learner, state = make_learner(experiment, changes, demonstrations, keys[1])
    return learner, demonstrations, (_collector(env, experiment, learner, state, keys[2]), state)


def learn(env: ChunkedEnv, experiment: expo_reach.Experiment, learner, demonstrations, carry, key: Key[Array, ""]):
    """Collection and learning up to the next evaluation."""
    decisions = experiment.env_steps // experiment.num_envs // experiment.num_evaluations
    step = functools.partial(_decide_and_learn, env, experiment, learner, demonstrations)
    return jax.lax.scan(step, carry, jax.random.split(key, decisions))[0]


# --- demonstrations and learners --------------------------------------------------------------------------------------


def as_buffer(rows: Transitions) -> device.ReplayBuffer:
    """The steps of the demonstrations that were run."""
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rows)
    buffer = device.init(flat.rewards.shape[0], jax.tree.map(lambda leaf: leaf[0], flat))
    return device.insert(buffer, flat, flat.action_mask[:, 0])


def make_learner(experiment: expo_reach.Experiment, changes, demonstrations: device.ReplayBuffer, key: Key[Array, ""]):
    optimizer, config = experiment.optimizer.build(), experiment.learner
    init_key, imitate_key, base_key = jax.random.split(key, 3)
    if changes is None:
        critic = CriticConfig(config.hidden_dims)
        rlpd = RLPDConfig(
            num_critics=config.num_critics,
            num_min_critics=config.num_min_critics,
            critic=critic,
            actor_dims=config.hidden_dims,
            actor_activation="relu",
            discount=config.discount,
            target_update_rate=config.target_update_rate,
            initial_temperature=config.initial_temperature,
        )
        learner = RLPD(expo_reach.ACTION_DIM, expo_reach.STATE_DIM, optimizer, rlpd)
        return learner, learner.init(init_key)

    def policy(rngs):
        return DiffusionPolicy(experiment.decoder, StateMLP(experiment.backbone, rngs), rngs)

    base_optimizer = experiment.base_optimizer.build()
    feature_dim = experiment.backbone.feature_dim + expo_reach.STATE_DIM
    config = dataclasses.replace(config, **changes)
    learner = EXPO(policy, expo_reach.ACTION_DIM, feature_dim, optimizer, base_optimizer, config)
    base = _imitate(experiment, policy, base_optimizer, demonstrations, imitate_key)
    return learner, learner.with_base(learner.init(init_key), base, base_key)


def _imitate(
    experiment: expo_reach.Experiment,
    policy: Callable,
    optimizer: optax.GradientTransformation,
    demonstrations: device.ReplayBuffer,
    key: Key[Array, ""],
) -> Params:
    imitation = Imitation(policy, optimizer, ImitationConfig())

    def draw(key):
        batch = device.sample(demonstrations, key, (experiment.batch_size,))
        weight = jnp.ones(experiment.batch_size)
        return Demonstrations(batch.observation, batch.actions, jnp.ones(batch.actions.shape, bool), weight)

    def update(state, key):
        draw_key, update_key = jax.random.split(key)
        return imitation.update(state, update_key, draw(draw_key))[0], None

    state = imitation.init(key, draw(key))
    state, _ = jax.lax.scan(update, state, jax.random.split(key, experiment.imitation_updates))
    return imitation.actor(state)


# --- collection and learning ------------------------------------------------------------------------------------------


def _collector(env: ChunkedEnv, experiment: expo_reach.Experiment, learner, state, key: Key[Array, ""]):
    """Environments and a buffer with the first decisions in it."""
    reset_key, decide_key = jax.random.split(key)
    states = env.reset(jax.random.split(reset_key, experiment.num_envs))
    row = jax.eval_shape(lambda: _decide(env, learner, states, learner.actor(state), key)[1])
    row = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), row)
    capacity = experiment.env_steps + experiment.num_envs * experiment.warmup_decisions
    collector = (states, device.init(capacity, row))
    collect = functools.partial(_collect, env, learner, learner.actor(state))
    return jax.lax.scan(collect, collector, jax.random.split(decide_key, experiment.warmup_decisions))[0]


def _collect(env: ChunkedEnv, learner, actor, collector, key: Key[Array, ""]):
    states, buffer = collector
    states, row = _decide(env, learner, states, actor, key)
    return (states, device.insert(buffer, row, row.action_mask[:, 0])), None


def _decide(env: ChunkedEnv, learner, states, actor, key: Key[Array, ""]):
    """One control step in every environment, finished ones replaced first."""
    reset_key, observe_key, explore_key = jax.random.split(key, 3)
    states = reset_where(env, states, jax.random.split(reset_key, states.done.shape[0]))
    observation = env.observe(states)
    view, _ = learner.observe(actor, observe_key, observation)
    actions = learner.explore(actor, explore_key, view)
    chunk = env.step(states, actions)
    following = env.observe(chunk.state)
    row = Transitions(observation, actions, chunk.rewards, chunk.discounts, chunk.mask, following, {})
    return chunk.state, row


def _decide_and_learn(env: ChunkedEnv, experiment: expo_reach.Experiment, learner, demonstrations, carry, key):
    collector, state = carry
    collect_key, sample_key, update_key = jax.random.split(key, 3)
    collector, _ = _collect(env, learner, learner.actor(state), collector, collect_key)
    shape = (experiment.num_envs, experiment.critic_updates, experiment.batch_size)
    samplers = [functools.partial(device.sample, buffer) for buffer in (demonstrations, collector[1])]
    share = experiment.demonstration_fraction
    batch = mixing.mix(sample_key, shape, samplers, (share, 1 - share))
    return (collector, learner.update(state, update_key, batch)[0]), None


# --- judgement --------------------------------------------------------------------------------------------------------


def judge(env: ChunkedEnv, learner, state, key: Key[Array, ""], num_episodes: int) -> Bool[Array, "episodes"]:
    actor = learner.actor(state)
    act = lambda key, observation: learner.act(actor, key, observation, ())[0]  # noqa: E731
    return play(env, act, key, num_episodes).success


def _base_side(env: ChunkedEnv, learner: EXPO, state, key: Key[Array, ""]) -> Bool[Array, "episodes"]:
    base = learner.actor(state)["base"]
    act = lambda key, observation: learner.embed(base, key, observation).candidates[:, 0]  # noqa: E731
    return play(env, act, key, FINAL_EPISODES).physics[:, 0] > 0


def within_reach(env: ChunkedEnv, learner: EXPO, state, key: Key[Array, ""]) -> Bool[Array, "episodes"]:
    """Success of the base's samples, with the best edits where the learner edits, chosen by the distance to a goal."""
    base, task, scale = learner.actor(state)["base"], env.env.env, learner.config.edit_scale

    def distance(position, action):
        return task.judge(position, task.move(position, jnp.clip(action, -1, 1))).info["goal_distance"]

    def act(key, observation):
        candidates, positions = learner.embed(base, key, observation).candidates, observation.state
        if learner.config.edited:
            wanted = jax.vmap(task.straight)(positions)[:, None, None]
            candidates = candidates + jnp.clip(wanted - candidates, -scale, scale)
        distances = jax.vmap(jax.vmap(distance, (None, 0)))(positions, candidates[:, :, 0])
        return best_of(candidates, -distances)

    return play(env, act, key, FINAL_EPISODES).success


def play(env: ChunkedEnv, act: Callable, key: Key[Array, ""], num_episodes: int):
    """The last states of whole episodes."""
    reset_key, act_key = jax.random.split(key)
    states = env.reset(jax.random.split(reset_key, num_episodes))

    def step(states, key):
        return env.step(states, act(key, env.observe(states))).state, None

    return jax.lax.scan(step, states, jax.random.split(act_key, env.spec.episode_length))[0]


def _entries(arm: str, outcome: Outcome, experiment: expo_reach.Experiment, seed: int, seconds: float):
    """Success over the run, its beginning and at its end, which way the base goes, what was within reach; the cost."""
    account = manifest.manifest(seeds=(seed,), recipe=experiment)
    account["cost"] = {"env_steps": experiment.env_steps, "seconds": round(seconds, 1)}
    found = {"area": outcome.curve.ravel(), "final": outcome.final}
    early = min(EARLY * experiment.num_evaluations // experiment.env_steps, experiment.num_evaluations)
    if early >= 10:  # enough points for an area
        found["early"] = outcome.curve[: early + 1].ravel()
    if not arm.endswith("rlpd"):
        found |= {"base_right": outcome.base_side, "within_reach": outcome.within_reach}
    for cell, values in found.items():
        interval = statistics.wilson(int(values.sum()), values.size)
        records = {cell: values.astype(int).tolist()}
        share = float(values.mean())
        yield results.Entry(TABLE, arm, cell, (seed,), values.size, share, interval, account, cell, records)


if __name__ == "__main__":
    main()
