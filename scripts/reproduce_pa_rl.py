"""The small reproduction of PA-RL: imitation, a critic, and a hundred episodes in the maze of a point.

    python scripts/reproduce_pa_rl.py --seeds 0 1 2 3 4                         # a diffusion policy, all arms
    python scripts/reproduce_pa_rl.py --policies flow bins discrete_diffusion --arms pa_rl --seeds 0 1 2
    python scripts/reproduce_pa_rl.py --table pa_rl_slow --policies discrete_diffusion --arms pa_rl --seeds 0 1 2
    python scripts/reproduce_pa_rl.py --judge                                   # the differences, from results/

A seed changes demonstrations and all training; every arm of every seed is judged on the same 256 initial states. Each
phase is one compiled program.
"""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
import tyro
from jaxtyping import Array, Bool, Float, Int, Key

import vla_jax  # noqa: F401  (first: sets XLA's CPU flags before jax starts)
from recipes import pa_rl_maze
from recipes.pa_rl_maze import Study
from vla_jax.core import keys, runtime
from vla_jax.core.types import Demonstrations, Params, PromptTable, Transitions
from vla_jax.data import trajectory_sets
from vla_jax.data.replay import device, mixing
from vla_jax.data.trajectories import Trajectories, chunk_starts, chunks_at
from vla_jax.envs.planar import maze
from vla_jax.envs.wrappers import BatchedEnv, ChunkedEnv
from vla_jax.evaluation import manifest, results, statistics
from vla_jax.evaluation.rollouts import Rollout
from vla_jax.learners.imitation import Imitation, ImitationConfig
from vla_jax.learners.pa_rl import IQL, PARL, PARLConfig, PARLState, offline
from vla_jax.losses.returns import monte_carlo_returns

STUDIES = {"pa_rl": pa_rl_maze.study, "pa_rl_slow": pa_rl_maze.slow}  # by their table
EVALUATION_SEED, EPISODES = 1000, 256
PROMPTS = PromptTable(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))
CONSOLE = rich.console.Console(highlight=False)


def _no_ascent(config: PARLConfig) -> PARLConfig:
    return dataclasses.replace(config, ascent=dataclasses.replace(config.ascent, num_steps=0))


ARMS = {
    "pa_rl": lambda config: config,
    "pa_rl_no_ascent": _no_ascent,
    "best_of_n": lambda config: offline(_no_ascent(config)),  # the critic learns on, the policy never does
    "pa_rl_iql": lambda config: dataclasses.replace(config, critic_kind=IQL()),
}


@dataclasses.dataclass(frozen=True)
class Options:
    table: Literal["pa_rl", "pa_rl_slow"] = "pa_rl"  # a key of STUDIES
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    policies: tuple[str, ...] = ("diffusion",)
    arms: tuple[str, ...] = tuple(ARMS)
    results: str = "results"
    judge: bool = False  # print the paper's claims against the results, and run nothing


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.judge:
        return print_verdict(results.load_table(Path(options.results), options.table))
    runtime.enable_compile_cache()
    for seed in options.seeds:
        for policy in options.policies:
            results.append(
                Path(options.results), f"{policy}_seed{seed}", run(options.table, policy, seed, options.arms)
            )


def run(table: str, policy: str, seed: int, arms: tuple[str, ...]) -> list[results.Entry]:
    """All arms of one policy class and seed."""
    study = STUDIES[table](policy)
    env = study.env.make(PROMPTS)
    report = functools.partial(judge, table, study, env, seed)
    demonstrations = as_buffer(study, record(study, env, seed))
    imitation = make_imitation(study)
    began = time.monotonic()
    base = imitate(study, imitation, demonstrations, keys.stream(seed, "imitation"))
    entries = report(f"{policy}_imitation", imitation, base, time.monotonic() - began, 0)
    trained: dict[PARLConfig, PARLState] = {}
    for arm in arms:
        began = time.monotonic()
        learner = make_learner(study, arm)
        critic_config = offline(learner.config)
        if critic_config not in trained:  # arms that differ in their online phase share the one before
            trained[critic_config] = train_critic(study, learner, base, demonstrations, seed)
            if arm == "pa_rl":
                actor = learner.actor(trained[critic_config])
                entries += report(f"{policy}_critic_only", learner, actor, time.monotonic() - began, 0)
        state, env_steps = experience(
            study, env, learner, learner.reset_optimizers(trained[critic_config]), demonstrations, seed
        )
        seconds = time.monotonic() - began
        entries += report(f"{policy}_{arm}", learner, learner.actor(state), seconds, int(env_steps))
    return entries


def make_imitation(study: Study) -> Imitation:
    return Imitation(study.policy.constructor(), optax.adam(study.imitation_lr), ImitationConfig(ema_decay=0.995))


def make_learner(study: Study, arm: str) -> PARL:
    sizes = (pa_rl_maze.ACTION_DIM, pa_rl_maze.STATE_DIM)
    optimizers = (optax.adam(study.critic_lr), optax.adam(study.policy_lr))
    return PARL(study.policy.constructor(), *sizes, *optimizers, ARMS[arm](study.learner))


# --- data -------------------------------------------------------------------------------------------------------------


def record(study: Study, env: maze.MazeEnv, seed: int) -> Trajectories:
    """The demonstrations, each with the return that it reached; of a failure, that of never arriving."""
    key = keys.stream(seed, "demonstrations")
    demos = jax.device_get(maze.demonstrate(env, key, study.num_demonstrations, study.demonstrator))
    episodes = [
        trajectory_sets.Episode(
            jax.tree.map(lambda leaf, i=i, length=length: leaf[i, : length + 1], demos.observation),
            demos.actions[i, :length],
            demos.rewards[i, :length],
            bool(demos.success[i]),
        )
        for i, length in enumerate(demos.acts.sum(axis=1))
    ]
    CONSOLE.print(f"seed {seed}: {demos.success.mean():.1%} of the demonstrations arrive")
    never = -1 / (1 - study.learner.discount)
    return trajectory_sets.with_mc_returns(trajectory_sets.from_episodes(episodes), study.learner.discount, never)


def as_buffer(study: Study, trajectories: Trajectories) -> device.ReplayBuffer:
    """Every chunk of the demonstrations as a row, in a buffer whose size does not depend on the seed: one program for
    all seeds."""
    starts = chunk_starts(trajectories, pa_rl_maze.HORIZON, whole=False)
    rows = chunks_at(trajectories, starts, pa_rl_maze.HORIZON)
    first = jax.tree.map(lambda leaf: leaf[0], rows)
    buffer = device.init(study.num_demonstrations * study.env.episode_length, first)
    return device.insert(buffer, rows, jnp.ones(starts.shape, bool))


# --- phases -----------------------------------------------------------------------------------------------------------


def imitate(study: Study, learner: Imitation, buffer: device.ReplayBuffer, key: Key[Array, ""]) -> Params:
    """Behaviour cloning; the averaged parameters."""

    def demonstrations(key: Key[Array, ""], buffer: device.ReplayBuffer) -> Demonstrations:
        batch = device.sample(buffer, key, (study.imitation_batch,))
        mask = jnp.broadcast_to(batch.action_mask[..., None], batch.actions.shape)
        return Demonstrations(batch.observation, batch.actions, mask, jnp.ones(study.imitation_batch))

    @jax.jit
    def train(state, key, buffer):
        def step(state, key):
            draw_key, update_key = jax.random.split(key)
            return learner.update(state, update_key, demonstrations(draw_key, buffer))[0], None

        return jax.lax.scan(step, state, jax.random.split(key, study.imitation_steps))[0]

    init_key, example_key, train_key = jax.random.split(key, 3)
    state = learner.init(init_key, demonstrations(example_key, buffer))
    return jax.block_until_ready(learner.actor(train(state, train_key, buffer)))  # its seconds are its own


def train_critic(study: Study, learner: PARL, base: Params, buffer: device.ReplayBuffer, seed: int) -> PARLState:
    """A critic around the policy with parameters `base`, on the demonstrations alone. The policy is frozen, so it
    proposes once per row."""
    state = learner.with_base(learner.init(keys.stream(seed, "critic")), base, keys.stream(seed, "adapters"))
    learner = dataclasses.replace(learner, config=offline(learner.config))

    @jax.jit
    def train(state, key, buffer):
        now_key, next_key, train_key = jax.random.split(key, 3)
        rows = buffer.rows
        proposed = {
            "candidates": learner.candidates(state.ema_base, now_key, rows.observation),
            "next_candidates": learner.candidates(state.ema_base, next_key, rows.next_observation),
        }
        buffer = buffer.replace(rows=rows.replace(extras=rows.extras | proposed))

        def step(state, key):
            draw_key, update_key = jax.random.split(key)
            return learner.update_critic(state, update_key, device.sample(buffer, draw_key, (study.batch_size,)))

        return jax.lax.scan(step, state, jax.random.split(train_key, study.offline_steps))

    state, metrics = train(state, keys.stream(seed, "offline"), buffer)
    late = {name: float(values[-200:].mean()) for name, values in metrics.items()}
    CONSOLE.print("  critic: " + ", ".join(f"{name} {value:.3g}" for name, value in late.items()))
    return state


def experience(
    study: Study, env: maze.MazeEnv, learner: PARL, state: PARLState, demos: device.ReplayBuffer, seed: int
) -> tuple[PARLState, Array]:
    """Collect, distil, train the critic, and again; the state and how many control steps were run."""
    buffer = empty_experience(study, env, demos)

    @jax.jit
    def train(state, buffer, demos, key):
        def epoch(carry, key):
            return collect_and_learn(study, env, learner, carry, demos, key)

        return jax.lax.scan(epoch, (state, buffer), jax.random.split(key, study.collections))

    (state, _), (success, env_steps) = train(state, buffer, demos, keys.stream(seed, "experience"))
    CONSOLE.print("  success while collecting: " + " ".join(f"{rate:.2f}" for rate in np.asarray(success)))
    return state, env_steps.sum()


def empty_experience(study: Study, env: maze.MazeEnv, demos: device.ReplayBuffer) -> device.ReplayBuffer:
    """A buffer for all experience, with rows like those of `demos`."""
    decisions = env.spec.episode_length // pa_rl_maze.HORIZON
    first = jax.tree.map(lambda leaf: leaf[0], demos.rows)
    return device.init(study.collections * study.episodes_per_collection * decisions, first)


def collect_and_learn(
    study: Study,
    env: maze.MazeEnv,
    learner: PARL,
    carry: tuple[PARLState, device.ReplayBuffer],
    demos: device.ReplayBuffer,
    key: Key[Array, ""],
) -> tuple[tuple[PARLState, device.ReplayBuffer], tuple[Float[Array, ""], Int[Array, ""]]]:
    """One collection and the updates behind it; success while collecting and control steps run."""
    decisions = env.spec.episode_length // pa_rl_maze.HORIZON
    num_updates = round(study.updates_per_decision * decisions * study.episodes_per_collection)

    def updates(state: PARLState, key: Key[Array, ""], buffers: tuple[device.ReplayBuffer, ...]) -> PARLState:
        samplers = [functools.partial(device.sample, each) for each in buffers]

        def policy_step(state, key):
            draw_key, update_key = jax.random.split(key)
            sizes = [each.size for each in buffers]
            batch = mixing.mix_in_proportion(draw_key, (study.batch_size,), samplers, sizes)
            return learner.update_policy(state, update_key, batch)[0], None

        def critic_step(state, key):
            draw_key, update_key = jax.random.split(key)
            batch = mixing.mix(draw_key, (study.batch_size,), samplers, (0.5, 0.5))
            return learner.update_critic(state, update_key, batch)[0], None

        policy_keys, critic_keys = jax.random.split(key, (2, num_updates))
        if learner.config.policy_updates:
            state, _ = jax.lax.scan(policy_step, state, policy_keys)
        return jax.lax.scan(critic_step, state, critic_keys)[0]

    state, buffer = carry
    collect_key, update_key = jax.random.split(key)
    rows, runs, success = collect(study, env, learner, learner.actor(state), collect_key)
    buffer = device.insert(buffer, rows, runs)
    return (updates(state, update_key, (demos, buffer)), buffer), (success.mean(), rows.action_mask.sum())


def collect(
    study: Study, env: maze.MazeEnv, learner: PARL, actor: Params, key: Key[Array, ""]
) -> tuple[Transitions, Bool[Array, "rows"], Bool[Array, "episodes"]]:
    """Whole episodes side by side: rows of chunks with returns, which of them were run, and success per episode."""
    chunked = ChunkedEnv(BatchedEnv(env))
    reset_key, act_key = jax.random.split(key)
    states = chunked.reset(jax.random.split(reset_key, study.episodes_per_collection))

    def decide(states, key):
        observation = chunked.observe(states)
        actions = learner.explore(actor, key, observation)
        chunk = chunked.step(states, actions)
        after = chunked.observe(chunk.state)
        row = Transitions(observation, actions, chunk.rewards, chunk.discounts, chunk.mask, after, {})
        return chunk.state, row

    decisions = env.spec.episode_length // pa_rl_maze.HORIZON
    last, rows = jax.lax.scan(decide, states, jax.random.split(act_key, decisions))
    # decisions, episodes, steps -> one line of time per episode and back
    timeline = lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)  # noqa: E731
    rewards, discounts = timeline(rows.rewards), timeline(rows.discounts)
    never = jnp.full_like(rewards, -1 / (1 - study.learner.discount))
    returns = monte_carlo_returns(rewards, discounts, jnp.zeros(rewards.shape, bool), study.learner.discount, never)
    first = jnp.moveaxis(returns.reshape(returns.shape[0], decisions, -1)[..., 0], 0, 1)
    rows = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rows.replace(extras={"mc_return": first}))
    return rows, rows.action_mask[:, 0], last.success


# --- results ----------------------------------------------------------------------------------------------------------


def judge(table, study, env, seed, row, learner, actor, seconds, env_steps) -> list[results.Entry]:
    """Success of what acts and, for PA-RL, of one sample of the policy alone."""
    account = manifest.manifest(seeds=(seed,), recipe=study)
    account["cost"] = {"env_steps": env_steps, "train_seconds": round(seconds, 1)}
    acts = {"success_rate": learner.act}
    if isinstance(learner, PARL):
        acts["policy_alone"] = lambda params, key, seen, memory: (
            learner.base.bind(params["base"]).sample(key, seen)[0],
            memory,
        )
    entries = []
    for cell, act in acts.items():
        rollout = Rollout(env, act, pa_rl_maze.HORIZON)
        episodes = rollout.evaluate(actor, jax.random.key(EVALUATION_SEED), EPISODES, EPISODES)
        place = dict(table=table, row=row, cell=cell, seed=seed, env_name=env.spec.name)
        entries.append(results.from_episodes(episodes, **place, manifest=account))
        CONSOLE.print(f"  seed {seed}, {row}: {cell} {entries[-1].mean:.1%}, {seconds:.0f} s, {env_steps} steps")
    return entries


def print_verdict(entries: tuple[results.Entry, ...]) -> None:
    """Differences of success between arms, seed by seed, with their bootstrap intervals over seeds."""
    success = {
        (entry.row, entry.seeds[0]): np.asarray(entry.records["success"], float)
        for entry in entries
        if entry.cell == "success_rate"
    }

    def difference(row: str, other: str) -> None:
        seeds = sorted(seed for name, seed in success if name == row and (other, seed) in success)
        if seeds:
            pairs = [success[row, seed] - success[other, seed] for seed in seeds]
            interval = statistics.bootstrap_seeds(pairs)
            mean = np.mean([pair.mean() for pair in pairs])
            CONSOLE.print(f"{row} - {other}: {mean:+.3f} {interval}, seeds {seeds}")

    for policy in pa_rl_maze.POLICIES:
        for arm in ("critic_only", *ARMS):
            difference(f"{policy}_{arm}", f"{policy}_imitation")
        for other in ("best_of_n", "pa_rl_no_ascent", "pa_rl_iql"):
            difference(f"{policy}_pa_rl", f"{policy}_{other}")


if __name__ == "__main__":
    main()
