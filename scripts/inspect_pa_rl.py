"""Where episodes of PA-RL in the maze fail, and what the critic thinks of its choice there.

    python scripts/inspect_pa_rl.py --policy bins --seed 0 --collections 15 --look-after 10

Trains as `reproduce_pa_rl.py` does, and after every collection runs the 256 initial states by the critic's choice and
by the policy alone. After `look_after` collections it goes to where the first failing episode ended, draws the policy's
samples there and prints, for each, what every head says and the return that running it and acting on really gives; and
how often the critic's choice among more or fewer samples arrives.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float, Key

from recipes import pa_rl_maze
from recipes.pa_rl_maze import Study
from scripts import reproduce_pa_rl
from scripts.reproduce_pa_rl import CONSOLE, EPISODES, EVALUATION_SEED, PROMPTS
from vla_jax.core import keys, runtime
from vla_jax.core.types import Params
from vla_jax.data.replay import device
from vla_jax.envs.planar import maze
from vla_jax.envs.wrappers import BatchedEnv, ChunkedEnv
from vla_jax.evaluation.rollouts import initial_keys
from vla_jax.learners.pa_rl import PARL

BOX = 0.1  # "near" a position: within this along both axes


@dataclasses.dataclass(frozen=True)
class Options:
    policy: str = "bins"
    seed: int = 0
    collections: int = 15
    look_after: int = 10  # collections


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    runtime.enable_compile_cache()
    study = dataclasses.replace(pa_rl_maze.study(options.policy), collections=options.collections)
    env = study.env.make(PROMPTS)
    demos = reproduce_pa_rl.as_buffer(study, reproduce_pa_rl.record(study, env, options.seed))
    imitation, learner = reproduce_pa_rl.make_imitation(study), reproduce_pa_rl.make_learner(study, "pa_rl")
    base = reproduce_pa_rl.imitate(study, imitation, demos, keys.stream(options.seed, "imitation"))
    state = reproduce_pa_rl.train_critic(study, learner, base, demos, options.seed)

    @jax.jit
    def epoch(carry, demos, key):
        return reproduce_pa_rl.collect_and_learn(study, env, learner, carry, demos, key)

    carry = (learner.reset_optimizers(state), reproduce_pa_rl.empty_experience(study, env, demos))
    for number, key in enumerate(jax.random.split(keys.stream(options.seed, "experience"), options.collections), 1):
        carry, (collected, _) = epoch(carry, demos, key)
        actor = learner.actor(carry[0])
        chosen, alone = (run(env, learner, by_critic, actor) for by_critic in (True, False))
        CONSOLE.print(
            f"{number} collections (success {collected:.0%}): the critic's choice {chosen[0].mean():.1%}, "
            f"the policy alone {alone[0].mean():.1%}"
        )
        if number == options.look_after and not chosen[0].all():
            look(study, env, learner, actor, chosen, (demos, carry[1]))


def decide(learner: PARL, actor: Params, by_critic: bool, key: Key[Array, ""], observation) -> Float[Array, "b h a"]:
    if by_critic:
        return learner.explore(actor, key, observation)
    return learner.base.bind(actor["base"]).sample(key, observation)[0]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def run(env: maze.MazeEnv, learner: PARL, by_critic: bool, actor: Params) -> tuple[Array, Float[Array, "b 2"]]:
    """Success and last position of every evaluation episode."""
    chunked, key = ChunkedEnv(BatchedEnv(env)), jax.random.key(EVALUATION_SEED)
    states = chunked.reset(initial_keys(key, jnp.arange(EPISODES)))

    def step(states, key):
        actions = decide(learner, actor, by_critic, key, chunked.observe(states))
        return chunked.step(states, actions).state, None

    decisions = env.spec.episode_length // pa_rl_maze.HORIZON
    last, _ = jax.lax.scan(step, states, jax.random.split(key, decisions))
    return last.success, last.physics


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def true_returns(
    study: Study,
    env: maze.MazeEnv,
    learner: PARL,
    actor: Params,
    position: Float[Array, "2"],
    chunks: Float[Array, "n h a"],
    key: Key[Array, ""],
) -> Float[Array, "n"]:
    """The discounted return of running each chunk at a position and then what the critic chooses, for one episode's
    length; not arriving in it counts as never."""
    chunked, discount = ChunkedEnv(BatchedEnv(env)), study.learner.discount
    states = chunked.reset(jax.random.split(key, chunks.shape[0]))
    states = states.replace(physics=jnp.broadcast_to(position, states.physics.shape))
    first = chunked.step(states, chunks)

    def step(states, key):
        chunk = chunked.step(states, decide(learner, actor, True, key, chunked.observe(states)))
        return chunk.state, chunk.rewards

    decisions = env.spec.episode_length // pa_rl_maze.HORIZON
    last, later = jax.lax.scan(step, first.state, jax.random.split(key, decisions - 1))
    rewards = jnp.concatenate([first.rewards, jnp.moveaxis(later, 0, 1).reshape(chunks.shape[0], -1)], axis=1)
    returns = (rewards * discount ** jnp.arange(rewards.shape[1])[None]).sum(axis=1)
    return jnp.where(last.success, returns, -1 / (1 - discount))


def look(study, env, learner, actor, episodes, buffers: tuple[device.ReplayBuffer, device.ReplayBuffer]) -> None:
    """Print how failing episodes end, what data is near, and the samples at one such place, best value first."""
    success, last = map(np.asarray, episodes)
    ends, place = last[~success], last[~success][0]
    CONSOLE.print(f"  {len(ends)} fail, at {ends.mean(axis=0).round(2)} with deviations {ends.std(axis=0).round(2)}")
    for name, buffer in zip(("demonstrations", "experience"), buffers, strict=True):
        rows = np.asarray(buffer.rows.observation.state)[: int(buffer.size)]
        near = (np.abs(rows - place) < BOX).all(axis=1).sum()
        CONSOLE.print(f"  {near} of {len(rows)} rows of {name} are within {BOX} of {place.round(2)}")
    key = jax.random.key(EVALUATION_SEED)
    states = BatchedEnv(env).reset(key[None]).replace(physics=jnp.asarray(place)[None])
    observation = BatchedEnv(env).observe(states)
    chunks = learner.candidates(actor["base"], key, observation)
    heads = np.asarray(learner.ensemble.q_values(actor["critic"], observation.state, chunks))[:, 0]
    returns = np.asarray(true_returns(study, env, learner, actor, jnp.asarray(place), chunks[0], key))
    for index in np.argsort(-heads.mean(axis=0)):
        chunk = np.asarray(chunks[0, index], float).round(2).tolist()
        CONSOLE.print(f"  {chunk}: values {heads[:, index].round(2)}, return {returns[index]:.2f}")
    for count in (2, 4, 16, 64):
        ascent = dataclasses.replace(learner.config.ascent, num_kept=min(count, learner.config.ascent.num_kept))
        config = dataclasses.replace(learner.config, num_samples=count, ascent=ascent)
        rate = run(env, dataclasses.replace(learner, config=config), True, actor)[0].mean()
        CONSOLE.print(f"  the critic's choice among {count} samples: {rate:.1%}")


if __name__ == "__main__":
    main()
