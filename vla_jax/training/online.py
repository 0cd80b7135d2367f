"""Batches from a simulator: environments, a learner that acts in them, and a replay buffer, all on the device.

One `next` makes one decision in every environment and samples the batch of one update call:

    view --explore--> chunk --env--> states --observe, embed--> next view
       |                |                          |
       +----------------+--> one row per environment, into the buffer --sample--> batch [rounds, critic_updates, b]

With recorded episodes a part of every batch is theirs: they are looked at once, as what is met is.

An episode that ended is replaced at the next decision, which it sits out: so its last observation is embedded like any
other, a time limit bootstraps from it, and nothing is rendered twice.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key

from vla_jax.core import errors, keys
from vla_jax.core.types import Metrics, Observation, Params, Transitions
from vla_jax.data.replay import device as replay
from vla_jax.data.replay import mixing, returns
from vla_jax.envs.base import Env, EnvState
from vla_jax.envs.wrappers import BatchedEnv, ChunkedEnv, reset_where
from vla_jax.losses import td
from vla_jax.training import recorded as recorded_rows
from vla_jax.training import sharding

_RECENT_EPISODES = 256  # whose success is told; as many as there are environments, where those are more


class Explores(Protocol):
    """What collection asks of a learner besides the `Learner` contract."""

    def observe(self, actor_params: Params, key: Key[Array, ""], observation: Observation) -> tuple[Any, Any]:
        """What `explore` needs to act, and what the buffer keeps as the observation."""
        ...

    def explore(self, actor_params: Params, key: Key[Array, ""], view: Any) -> Float[Array, "b h a"]: ...


@dataclasses.dataclass(frozen=True)
class ReplayConfig:
    num_envs: int = 64
    capacity: int = 60_000  # rows, one per decision and environment
    warmup_decisions: int = 40  # in every environment, before the first update
    rounds: int = 1  # of the learner, per decision
    critic_updates: int = 8  # per round
    batch_size: int = 256  # per critic update
    seed: int = 0
    returns: bool = False  # extras["mc_return"], which calibrated critics ask for: only ended episodes are drawn then
    return_tail: float = 0.0  # what would have followed an episode that was cut off

    def __post_init__(self):
        for name in ("num_envs", "capacity", "warmup_decisions", "rounds", "critic_updates", "batch_size"):
            if getattr(self, name) < 1:
                raise errors.ConfigError(f"ReplayConfig.{name}", expected="at least 1", found=getattr(self, name))


class Collector(struct.PyTreeNode):
    """Everything that goes on between two decisions; saved with the checkpoint, so that a resumed run is the same."""

    env: EnvState
    view: Any
    stored: Any
    buffer: Any  # of the source's kind, below
    outcomes: replay.ReplayBuffer  # success of the latest episodes
    returns: replay.ReplayBuffer | None = None  # behind the rows of `buffer`, where the learner asks for them


def _identity(value: Any) -> Any:
    return value


def _as_predicted(actions: Float[Array, "b h a"], state: Float[Array, "b s"]) -> Float[Array, "b h a"]:
    return actions


class ReplaySource:
    """The `Source` of off-policy learners; `normalize` and `unnormalize` sit at the edges, as in evaluation."""

    simulates = True

    def __init__(
        self,
        env: Env,
        learner: Explores,
        abstract_actor: Params,
        config: ReplayConfig,
        *,
        recorded: Transitions | None = None,
        recorded_fraction: float | None = 0.5,
        discount: float = 1.0,
        normalize: Callable[[Observation], Observation] = _identity,
        unnormalize: Callable[[Float[Array, "b h a"], Float[Array, "b s"]], Float[Array, "b h a"]] = _as_predicted,
    ):
        """`discount` is that of `config.returns`, per control step. Raises ConfigError where rows of ended episodes
        might be missing from the buffer, if only those are drawn."""
        self._env, self._learner, self._config = ChunkedEnv(BatchedEnv(env)), learner, config
        self._normalize, self._unnormalize = normalize, unnormalize
        self._recorded, self._fraction, self._is_seen = recorded, recorded_fraction, False
        self._discount = discount
        self._mesh: Mesh | None = None
        self._key = keys.stream(config.seed, "collect")
        self._abstract = jax.eval_shape(self._start, abstract_actor, self._key)
        self._abstract_recorded = jax.eval_shape(self._see_rows, abstract_actor, self._key, recorded)
        self._collector: Collector | None = None
        if config.returns:
            self._check_episodes_fit(env)

    def use_mesh(self, mesh: Mesh) -> None:
        self._mesh = mesh

    def example(self) -> Transitions:
        """Zeros of the shape of one update's batch."""
        shapes = jax.eval_shape(self._sample, self._abstract, self._abstract_recorded, self._key)
        return jax.tree.map(_zeros, shapes)

    def next(self, step: int, actor_params: Params) -> tuple[Transitions, Metrics]:
        recorded, collector = self.operands(actor_params)
        self._collector, batch, metrics = self._next(recorded, collector, actor_params, step)
        return batch, metrics

    def state(self) -> Collector:
        """The collector; before the first batch, zeros of its shape."""
        if self._collector is None:
            return jax.tree.map(_zeros, self._abstract)
        return self._collector

    def restore(self, state: Collector) -> None:
        self._collector = state

    # --- compiled with the updates (`sources.Compiles`), or alone ---------------------------------------------------

    def operands(self, actor_params: Params) -> tuple[Transitions | None, Collector]:
        """Recorded rows and the collector, made at the first call."""
        if self._collector is None:
            self._collector = self._warm_up(actor_params, self._key)
        if not self._is_seen:  # not part of the state: the same data again after a restart
            self._recorded, self._is_seen = self._see_rows(actor_params, self._key, self._recorded), True
        return self._recorded, self._collector

    def draw(
        self, fixed: Transitions | None, moving: Collector, actor_params: Params, step: Int[Array, ""]
    ) -> tuple[Collector, Transitions, Metrics]:
        """One decision in every environment, and a batch of what is in the buffer then."""
        decide_key, sample_key = jax.random.split(keys.at_step(self._key, step + 1))
        moving, metrics = self._decide(moving, actor_params, decide_key)
        return moving, self._sample(moving, fixed, sample_key), metrics

    def moved(self, moving: Collector, next_step: int) -> None:
        self._collector = moving

    @partial(jax.jit, static_argnums=0, donate_argnums=2)
    def _next(
        self, fixed: Transitions | None, moving: Collector, actor_params: Params, step: Int[Array, ""]
    ) -> tuple[Collector, Transitions, Metrics]:
        return self.draw(fixed, moving, actor_params, step)

    @partial(jax.jit, static_argnums=0)
    def _warm_up(self, actor_params: Params, key: Key[Array, ""]) -> Collector:
        start_key, decide_key = jax.random.split(jax.random.fold_in(key, 0))
        collector = self._start(actor_params, start_key)

        def decide(collector, key):
            return self._decide(collector, actor_params, key)[0], None

        return jax.lax.scan(decide, collector, jax.random.split(decide_key, self._config.warmup_decisions))[0]

    @partial(jax.jit, static_argnums=0)
    def _see_rows(self, actor_params: Params, key: Key[Array, ""], recorded: Transitions | None) -> Transitions | None:
        """Recorded rows with what the buffer keeps of observations in their place; they are normalized already."""
        if recorded is None:
            return None
        return recorded_rows.seen(recorded, key, lambda k, o: self._learner.observe(actor_params, k, o)[1])

    def _start(self, actor_params: Params, key: Key[Array, ""]) -> Collector:
        reset_key, observe_key = jax.random.split(key)
        states = self._spread(self._env.reset(jax.random.split(reset_key, self._config.num_envs)))
        view, stored = self._look(actor_params, observe_key, states)
        actions = self._learner.explore(actor_params, observe_key, view)
        row = self._row(stored, actions, jax.eval_shape(self._env.step, states, actions), stored)
        first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), row)
        outcome = jax.ShapeDtypeStruct((), jnp.float32)
        return Collector(
            env=states,
            view=view,
            stored=stored,
            buffer=self._make_buffer(first),
            outcomes=replay.init(max(_RECENT_EPISODES, self._config.num_envs), outcome),
            returns=returns.init(self._config.capacity) if self._config.returns else None,
        )

    def _decide(self, collector: Collector, actor_params: Params, key: Key[Array, ""]) -> tuple[Collector, Metrics]:
        explore_key, reset_key, observe_key = jax.random.split(key, 3)
        finished = collector.env.done
        actions = self._learner.explore(actor_params, explore_key, collector.view)
        state = self._env.observe(collector.env).state  # its pictures are not used, so the compiler leaves them out
        chunk = self._env.step(collector.env, self._unnormalize(actions, state))  # finished ones stay as they are
        reset_keys = jax.random.split(reset_key, self._config.num_envs)
        states = self._spread(reset_where(self._env, chunk.state, reset_keys, where=finished))
        view, stored = self._look(actor_params, observe_key, states)
        row = self._row(collector.stored, actions, chunk, stored)
        ended = chunk.state.done & ~finished
        outcomes = replay.insert(collector.outcomes, chunk.state.success.astype(jnp.float32), ended)
        buffer, known = self._keep(collector.buffer, row, finished), collector.returns
        if known is not None:
            gained = td.chunk_return(chunk.rewards, chunk.discounts, chunk.mask, self._discount)
            known = returns.advance(known, ~finished, *gained, ended, self._config.return_tail)
        collector = Collector(states, view, stored, buffer, outcomes, known)
        return collector, {
            "collect/success_rate": outcomes.rows.sum() / jnp.maximum(outcomes.size, 1),
            "collect/env_steps": chunk.mask.sum().astype(jnp.float32),
            "collect/episodes": ended.sum().astype(jnp.float32),
            "collect/buffer_rows": self._num_kept(collector.buffer).astype(jnp.float32),
        }

    def _look(self, actor_params: Params, key: Key[Array, ""], states: EnvState) -> tuple[Any, Any]:
        return self._learner.observe(actor_params, key, self._normalize(self._env.observe(states)))

    def _row(self, stored: Any, actions: Float[Array, "b h a"], chunk: Any, next_stored: Any) -> Transitions:
        return Transitions(stored, actions, chunk.rewards, chunk.discounts, chunk.mask, next_stored, {})

    def _sample(self, collector: Collector, recorded: Transitions | None, key: Key[Array, ""]) -> Transitions:
        shape = (self._config.rounds, self._config.critic_updates, self._config.batch_size)
        met = partial(self._draw_met, collector.buffer)
        if collector.returns is not None:
            met = partial(returns.sample, collector.buffer, collector.returns)
        if recorded is None:
            return met(key, shape)
        samplers = (partial(recorded_rows.take, recorded), met)
        if self._fraction is None:
            sizes = (jnp.asarray(recorded.rewards.shape[0]), self._num_kept(collector.buffer))
            return mixing.mix_in_proportion(key, shape, samplers, sizes)
        return mixing.mix(key, shape, samplers, (self._fraction, 1 - self._fraction))

    # --- the buffer: rows as they are met (`online_windows.py` has another) ------------------------------------------

    def _make_buffer(self, row: Transitions) -> Any:
        return replay.init(self._config.capacity, row)

    def _keep(self, buffer: Any, rows: Transitions, finished: Bool[Array, "b"]) -> Any:
        """With the decisions of those environments that made one: `finished` ones sat out."""
        return replay.insert(buffer, rows, ~finished)

    def _num_kept(self, buffer: Any) -> Int[Array, ""]:
        return buffer.size

    def _draw_met(self, buffer: Any, key: Key[Array, ""], shape: tuple[int, ...]) -> Transitions:
        return replay.sample(buffer, key, shape)

    def _check_episodes_fit(self, env: Env) -> None:
        """At any time a lane has at most one decision less than a whole episode in the buffer that is not over."""
        config, steps = self._config, self._abstract.buffer.rows.rewards.shape[-1]
        decisions = -(-env.spec.episode_length // steps)
        if config.warmup_decisions < decisions or config.capacity < config.num_envs * decisions:
            raise errors.ConfigError(
                "ReplayConfig.returns, for which only ended episodes are drawn",
                expected=f"warmup_decisions of {decisions} and capacity of {config.num_envs * decisions} or more: "
                f"episodes have up to {env.spec.episode_length} steps, {steps} per decision",
                found=f"warmup_decisions={config.warmup_decisions}, capacity={config.capacity}",
            )

    def _spread(self, states: EnvState) -> EnvState:
        """Environments over the data axes of the mesh; what follows from them inherits it."""
        if self._mesh is None:
            return states
        spec = NamedSharding(self._mesh, PartitionSpec(sharding.BATCH_AXES))
        return jax.lax.with_sharding_constraint(states, spec)


def _zeros(leaf: jax.ShapeDtypeStruct) -> Array | Bool[Array, "..."]:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0), leaf.shape)
    return jnp.zeros(leaf.shape, leaf.dtype)
