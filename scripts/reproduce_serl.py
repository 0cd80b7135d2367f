"""The small reproduction of SERL's learner: pick up a cube, with 20 demonstrations. Two minutes per arm of three seeds.

    python scripts/reproduce_serl.py --seeds 0 1 2

Four arms with the same networks, update ratio and budget: SAC alone; SAC whose buffer starts with the demonstrations;
RLPD, whose every batch is half demonstrations; and RLPD without LayerNorm. Two more ask whether the frame of the tool
carries over to another place, one gives the grip to HIL-SERL's DQN, and one sees the cube in pictures. The task is the
suite's pick-cube, with the gripper on slides and the sparse reward. Demonstrations are scripted, with jitter on every
action. The seeds of an arm run side by side in one program, which costs little more than one of them; those with
pictures, whose convolutions would not, run one after the other.
"""

import dataclasses
import functools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import tyro
from flax import struct
from jaxtyping import Array, Float, Key

import vla_jax  # noqa: F401  (first: sets XLA's CPU flags before jax starts)
from recipes import serl_pick_cube
from vla_jax.core import runtime
from vla_jax.core.types import Observation, PromptTable, Transitions
from vla_jax.data.replay import device as replay
from vla_jax.data.replay import mixing
from vla_jax.envs.base import EnvState
from vla_jax.envs.mjx import experts
from vla_jax.envs.wrappers import BatchedEnv, ChunkedEnv, reset_where
from vla_jax.evaluation import manifest, results, statistics
from vla_jax.learners.hil_serl import HilSerl, HilSerlState
from vla_jax.learners.rlpd import RLPD, RLPDState

TABLE = "serl"
_ONCE = {"xla_backend_optimization_level": 0}  # of what runs once and takes longer to compile
CONSOLE = rich.console.Console(highlight=False)


@dataclasses.dataclass(frozen=True)
class Options:
    seeds: tuple[int, ...] = (0, 1, 2)
    arms: tuple[str, ...] = tuple(serl_pick_cube.ARMS)
    results: str = "results"
    env_steps: int | None = None  # None: the recipe's


class Run(struct.PyTreeNode):
    """What goes on between two decisions."""

    learner: RLPDState | HilSerlState
    env: EnvState
    online: replay.ReplayBuffer


class Demonstrations(struct.PyTreeNode):
    buffer: replay.ReplayBuffer
    mean: Float[Array, "s"]  # of their states, with which all states are normalized
    std: Float[Array, "s"]


@dataclasses.dataclass(frozen=True, eq=False)  # by identity: jit caches on it
class Trainer:
    """One arm; every function is of one seed."""

    recipe: serl_pick_cube.PickCubeRecipe
    env: ChunkedEnv
    shifted_env: ChunkedEnv
    learner: RLPD | HilSerl

    @classmethod
    def of(cls, recipe: serl_pick_cube.PickCubeRecipe) -> "Trainer":
        prompts = PromptTable(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))
        configs = recipe.env, recipe.shifted_env or recipe.env
        envs = [ChunkedEnv(BatchedEnv(recipe.make(config, prompts))) for config in configs]
        return cls(recipe, *envs, recipe.learner(envs[0].spec.action_dim, envs[0].spec.state_dim))

    def demonstrate(self, key: Key[Array, ""]) -> Demonstrations:
        """The steps of the first successful ones of twice as many scripted episodes."""
        recipe = self.recipe
        reset_key, scale_key, noise_key = jax.random.split(key, 3)
        states = self.env.reset(jax.random.split(reset_key, 2 * recipe.num_demonstrations))
        jitter = recipe.jitter * jax.random.uniform(scale_key, (2 * recipe.num_demonstrations, 1))

        def step(states, key):
            actions = jax.vmap(self._expert)(states)
            actions = jnp.clip(actions + jitter * jax.random.normal(key, actions.shape), -1, 1)
            chunk = self.env.step(states, actions[:, None])
            return chunk.state, self._row(states, actions[:, None], chunk)

        states, rows = jax.lax.scan(step, states, jax.random.split(noise_key, self.env.spec.episode_length))
        chosen = states.success & (jnp.cumsum(states.success) <= recipe.num_demonstrations)
        valid = (rows.action_mask[..., 0] & chosen[None]).ravel()
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rows)
        row = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), flat)
        buffer = replay.insert(replay.init(valid.size, row), flat, valid)
        weight = valid[:, None] / valid.sum()
        state = _state_of(flat.observation)
        mean = (state * weight).sum(0)
        std = jnp.sqrt((jnp.square(state - mean[None]) * weight).sum(0))
        return Demonstrations(buffer, mean, jnp.maximum(std, 0.02))

    def start(self, key: Key[Array, ""], demos: Demonstrations) -> Run:
        learner_key, reset_key = jax.random.split(key)
        states = self.env.reset(jax.random.split(reset_key, self.recipe.num_envs))
        rows, capacity = demos.buffer.rows, demos.buffer.capacity
        row = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), rows)
        online = replay.init(self.recipe.env_steps + capacity, row)
        if self.recipe.demonstrations == "prefill":
            online = replay.insert(online, rows, jnp.arange(capacity) < demos.buffer.size)
        return Run(self.learner.init(learner_key), states, online)

    def block(self, run: Run, demos: Demonstrations, key: Key[Array, ""]):
        """Decisions in all environments, each followed by its updates."""

        def decide(run: Run, key):
            explore_key, reset_key, sample_key, update_key = jax.random.split(key, 4)
            actor, finished = self.learner.actor(run.learner), run.env.done
            view, _ = self.learner.observe(actor, explore_key, _normalized(demos, self._look(run.env)))
            actions = self.learner.explore(actor, explore_key, view)
            chunk = self.env.step(run.env, actions)
            online = replay.insert(run.online, self._row(run.env, actions, chunk), ~finished)
            states = reset_where(self.env, chunk.state, jax.random.split(reset_key, self.recipe.num_envs), finished)
            batch = self._sample(sample_key, online, demos.buffer)
            batch = batch.replace(
                observation=_normalized(demos, batch.observation),
                next_observation=_normalized(demos, batch.next_observation),
            )
            learner, metrics = self.learner.update(run.learner, update_key, batch)
            return Run(learner, states, online), metrics

        num_decisions = self.recipe.eval_every // self.recipe.num_envs
        run, metrics = jax.lax.scan(decide, run, jax.random.split(key, num_decisions))
        return run, jax.tree.map(jnp.mean, metrics)

    def evaluate(self, run: Run, demos: Demonstrations, key: Key[Array, ""], *, shifted: bool) -> tuple[Array, Array]:
        """Success and length of episodes under the policy's mode."""
        env, actor = self.shifted_env if shifted else self.env, self.learner.actor(run.learner)
        states = env.reset(jax.random.split(key, self.recipe.eval_episodes))

        def step(states, _):
            actions, _ = self.learner.act(actor, key, _normalized(demos, self._look(states)), ())
            return env.step(states, actions).state, None

        states, _ = jax.lax.scan(step, states, None, env.spec.episode_length)
        return states.success, states.env_step

    def _sample(self, key: Key[Array, ""], online: replay.ReplayBuffer, demos: replay.ReplayBuffer) -> Transitions:
        shape = (self.recipe.rounds, self.recipe.critic_updates, self.recipe.batch_size)
        if self.recipe.demonstrations != "half":
            return replay.sample(online, key, shape)
        samplers = [lambda key, shape, b=buffer: replay.sample(b, key, shape) for buffer in (demos, online)]
        return mixing.mix(key, shape, samplers, (0.5, 0.5))

    def _expert(self, state: EnvState) -> Float[Array, "a"]:
        env = self.env.env.env
        if not self.recipe.relative_frame:
            return experts.expert(env, state)
        return env.to_tool(state, experts.expert(env.env, env.unwrapped(state)))

    def _look(self, states: EnvState) -> Observation | Float[Array, "b s"]:
        return self.recipe.sees(self.env.observe(states))  # pictures not asked for are left out by the compiler

    def _row(self, states: EnvState, actions, chunk) -> Transitions:
        after = self._look(chunk.state)
        return Transitions(self._look(states), actions, chunk.rewards, chunk.discounts, chunk.mask, after, {})


def _state_of(seen: Observation | Float[Array, "*b s"]) -> Float[Array, "*b s"]:
    return seen.state if isinstance(seen, Observation) else seen


def _normalized(demos: Demonstrations, seen: Observation | Float[Array, "*b s"]):
    """What was seen, with its state normalized."""
    state = _state_of(seen)
    ones = (1,) * (state.ndim - 1)
    normal = (state - demos.mean.reshape(*ones, -1)) / demos.std.reshape(*ones, -1)
    return seen.replace(state=normal) if isinstance(seen, Observation) else normal


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    runtime.enable_compile_cache()
    for arm in options.arms:
        recipe = serl_pick_cube.ARMS[arm]()
        if options.env_steps is not None:
            recipe = dataclasses.replace(recipe, env_steps=options.env_steps)
        trainer = Trainer.of(recipe)
        together = [options.seeds] if recipe.pixels is None else [(seed,) for seed in options.seeds]
        for seeds in together:
            train(arm, trainer, dataclasses.replace(options, seeds=seeds))


def train(arm: str, trainer: Trainer, options: Options) -> None:
    """All seeds of an arm, the leading axis of everything."""
    recipe, began = trainer.recipe, time.monotonic()
    keys = jnp.stack([jax.random.key(seed) for seed in options.seeds])
    fold = jax.vmap(jax.random.fold_in, (0, None))
    demos = jax.jit(jax.vmap(trainer.demonstrate))(fold(keys, 0))
    run = jax.jit(jax.vmap(trainer.start), compiler_options=_ONCE)(fold(keys, 1), demos)
    block = jax.jit(jax.vmap(trainer.block), donate_argnums=0)
    evaluate = jax.jit(jax.vmap(functools.partial(trainer.evaluate, shifted=False)))
    curves = []
    for i in range(recipe.env_steps // recipe.eval_every):
        run, metrics = block(run, demos, fold(keys, 100 + i))
        success, lengths = evaluate(run, demos, fold(keys, 10_000))
        curves.append(np.asarray(success).mean(1))
        values = ", ".join(f"{name} {float(value.mean()):.3g}" for name, value in metrics.items())
        CONSOLE.print(f"{arm}, {(i + 1) * recipe.eval_every} steps: {curves[-1].round(2)} | {values}", soft_wrap=True)
    judged = {"success_rate": (success, lengths)}
    if recipe.shifted_env is not None:
        moved = jax.jit(jax.vmap(functools.partial(trainer.evaluate, shifted=True)))
        judged["shifted_success_rate"] = moved(run, demos, fold(keys, 10_000))
        CONSOLE.print(f"{arm}, shifted: {np.asarray(judged['shifted_success_rate'][0]).mean(1).round(2)}")
    seconds = round(time.monotonic() - began, 1)
    for i, seed in enumerate(options.seeds):
        account = manifest.manifest(seeds=(seed,), recipe=recipe)
        account["cost"] = {
            "env_steps": recipe.env_steps,
            "critic_updates": recipe.env_steps // recipe.num_envs * recipe.rounds * recipe.critic_updates,
            "seconds_of_all_seeds_together": seconds,
            "seeds_together": list(options.seeds),
            "demonstration_steps": int(demos.buffer.num_inserted[i]),
        }
        entries = [_rate(arm, cell, seed, s[i], n[i], account) for cell, (s, n) in judged.items()]
        entries.append(_area(arm, seed, [float(curve[i]) for curve in curves], account))
        results.append(Path(options.results), f"seed{seed}", entries)


def _rate(arm: str, cell: str, seed: int, success, lengths, account) -> results.Entry:
    """A share of episodes with its Wilson interval and the record of every episode."""
    solved = np.asarray(success)
    records = {"success": solved.astype(int).tolist(), "length": np.asarray(lengths).tolist()}
    interval = statistics.wilson(int(solved.sum()), solved.size)
    share = float(solved.mean())
    return results.Entry(TABLE, arm, cell, (seed,), solved.size, share, interval, account, records=records)


def _area(arm: str, seed: int, curve: list[float], account) -> results.Entry:
    """The mean success over the evaluations of a run, as many as it had."""
    cell, mean, interval = "curve_area", float(np.mean(curve)), statistics.bootstrap_mean(np.asarray(curve))
    return results.Entry(TABLE, arm, cell, (seed,), len(curve), mean, interval, account, cell, {cell: curve})


if __name__ == "__main__":
    main()
