"""DQC: decoupled Q-chunking, with or without goals, from recorded episodes and, without goals, from experience too.

Li, Park, Levine, "Decoupled Q-Chunking" (arXiv 2512.10926). A critic of whole chunks of `backup_horizon` steps carries
values that many steps back at once, without the bias of n-step returns. A policy that had to emit such chunks would be
hard to learn and slow to react, so a second critic, of the first `action_horizon` steps alone, is distilled from it by
an optimistic regression: how well can this beginning go on? The policy imitates beginnings only, knows no goal, and
acts by the best of several samples.

    rewards, V(next) --> targets --> chunk critic Q_h(s, a_0..h-1, g)
                                         | distilled, optimistic in how the chunk goes on
                                     action critic Q_a(s, a_0..m-1, g) --slow copy--> V(s, g), optimistic in the actions
                                         | scores
    policy(s) --n samples------------> best one, its first `execution_horizon` steps

Values are probabilities: rewards are 1 on arrival and 0 before, so all returns lie in [0, 1], networks give logits and
losses are cross-entropies. A batch's chunks have `backup_horizon` steps. Reward and termination inside a chunk come
from `rewards`, `discounts` and `action_mask` by `losses.td.chunk_return`: with the goal `j` steps ahead `rewards[j]`
is 1 and `discounts` is 0 from `j` on; a chunk cut short after `k` steps has a mask of k ones and bootstraps with
`discount ** k` from `next_observation` (data/trajectories.py makes such batches with hindsight goals).

From the released code: the losses and their sum under one optimizer, scores by logits, a target critic that follows the
critic as it was before the step. Unlike the paper, steps that an episode does not have are masked one by one, weights
start from He's initialization, and the policy may be any that encodes once and samples often.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jaxtyping import Array, Bool, Float, Int, Key

from vla_jax.core import errors, functional
from vla_jax.core.types import Demonstrations, Metrics, Observation, Params, Transitions
from vla_jax.learners.base import scan_updates
from vla_jax.losses import regression, td
from vla_jax.nets import critics
from vla_jax.policies.base import HasPrefix, Policy, require
from vla_jax.samplers.best_of import best_of

Lean = Literal["expectile", "quantile"]
_LEANING_LOSSES = {"expectile": regression.binary_expectile_loss, "quantile": regression.binary_quantile_loss}


@dataclasses.dataclass(frozen=True)
class DQCConfig:
    """Defaults: the paper's for cube-triple and cube-quadruple. The functions below make its baselines."""

    backup_horizon: int = 25  # h: steps of a batch's chunks, and of a backup
    action_horizon: int = 5  # h_a: steps that the action critic scores and the policy models
    execution_horizon: int | None = None  # steps run before the next choice; None: action_horizon
    chunk_critic: bool = True  # False: the action critic learns from the targets themselves
    distillation: Lean = "expectile"
    distillation_level: float = 0.8  # kappa_d; above one half optimistic in how a chunk goes on
    backup: Lean = "quantile"
    backup_level: float = 0.93  # kappa_b; above one half optimistic in the actions
    aggregation: Literal["mean", "min"] = "min"  # over the heads, in V's targets and in scores
    num_critics: int = 2
    num_candidates: int = 32  # samples of the policy to choose from
    discount: float = 0.999  # per control step
    target_update_rate: float = 0.005
    critic: critics.CriticConfig = critics.CriticConfig((1024,) * 4, norm="after", activation="gelu", output_scale=1.0)

    def __post_init__(self):
        if not 1 <= self.action_horizon <= self.backup_horizon:
            raise errors.ConfigError(
                "DQCConfig.action_horizon",
                expected=f"1 to backup_horizon = {self.backup_horizon}",
                found=self.action_horizon,
            )
        if not 1 <= self.steps_run <= self.action_horizon:
            raise errors.ConfigError(
                "DQCConfig.execution_horizon",
                expected=f"1 to action_horizon = {self.action_horizon}",
                found=self.execution_horizon,
            )
        for name in ("distillation_level", "backup_level", "discount", "target_update_rate"):
            if not 0 < getattr(self, name) < 1:
                raise errors.ConfigError(f"DQCConfig.{name}", expected="between 0 and 1", found=getattr(self, name))
        if min(self.num_critics, self.num_candidates) < 1 or self.critic.num_bins is not None:
            raise errors.ConfigError(
                "DQCConfig", expected="at least one critic and one candidate; critics without bins", found=self
            )

    @property
    def steps_run(self) -> int:
        return self.action_horizon if self.execution_horizon is None else self.execution_horizon


# The paper's baselines. Without a chunk critic the level 1/2 makes the loss half the cross-entropy to the targets.


def one_step(**changes: Any) -> DQCConfig:
    """OS: single actions, one-step backups."""
    return n_step(1, **changes)


def n_step(backup_horizon: int, **changes: Any) -> DQCConfig:
    """NS-n: single actions on n-step returns, biased by what the data did in between."""
    return q_chunking_n_step(backup_horizon, 1, **changes)


def q_chunking(backup_horizon: int, **changes: Any) -> DQCConfig:
    """QC: critic and policy of the same chunk, run whole."""
    return q_chunking_n_step(backup_horizon, backup_horizon, **changes)


def q_chunking_n_step(backup_horizon: int, action_horizon: int, **changes: Any) -> DQCConfig:
    """QC-NS: short chunks on the returns of longer ones."""
    plain = dict(chunk_critic=False, distillation_level=0.5)
    return DQCConfig(**dict(backup_horizon=backup_horizon, action_horizon=action_horizon) | plain | changes)


def naive(backup_horizon: int, execution_horizon: int, **changes: Any) -> DQCConfig:
    """DQC-naive: as QC, and only the first steps of a chunk are run."""
    return q_chunking(backup_horizon, **dict(execution_horizon=execution_horizon) | changes)


class DQCState(struct.PyTreeNode):
    step: Int[Array, ""]
    params: Params  # policy, value, action_critic, and chunk_critic if there is one
    target_critic: Params  # slow copy of action_critic; V has none
    opt_state: optax.OptState


@dataclasses.dataclass(frozen=True)
class DQC:
    """`goal_dim` 0: one task, no goals. The goal to act for is the actor's memory, see `initial_memory`."""

    policy: Callable[[nnx.Rngs], Policy]
    action_dim: int
    feature_dim: int  # of the policy's `features`, which critics look at through a stopped gradient
    goal_dim: int
    optimizer: optax.GradientTransformation  # of everything
    config: DQCConfig = DQCConfig()

    @cached_property
    def net(self) -> functional.Net[Policy]:
        return functional.describe(self.policy)[0]

    @cached_property
    def chunk_critic(self) -> functional.Net[critics.ChunkCritic]:
        return functional.describe(self._critic_of(self.config.backup_horizon))[0]

    @cached_property
    def action_critic(self) -> functional.Net[critics.ChunkCritic]:
        return functional.describe(self._critic_of(self.config.action_horizon))[0]

    @cached_property
    def value(self) -> functional.Net[critics.StateValue]:
        return functional.describe(self._make_value)[0]

    def init(self, key: Key[Array, ""], example_batch: Transitions | None = None) -> DQCState:
        """Raises ConfigError where the policy lacks `HasPrefix` or its chunks have other sizes than the config's."""
        policy_key, value_key, chunk_key, action_key = jax.random.split(key, 4)
        config = self.config
        _, policy = functional.init(self.policy, policy_key)
        self._check(self.net.bind(policy))
        params = {
            "policy": policy,
            "value": functional.init(self._make_value, value_key)[1],
            "action_critic": self._init_heads(config.action_horizon, action_key),
        }
        if config.chunk_critic:
            params["chunk_critic"] = self._init_heads(config.backup_horizon, chunk_key)
        # a copy: donated buffers may not alias
        target = jax.tree.map(jnp.copy, params["action_critic"])
        return DQCState(jnp.zeros((), jnp.int32), params, target, self.optimizer.init(params))

    # --- losses -----------------------------------------------------------------------------------------------------

    def update(self, state: DQCState, key: Key[Array, ""], batch: Transitions) -> tuple[DQCState, Metrics]:
        """One gradient step on the sum of all losses, then the target critic moves.

        Leaves of the batch are `[b, ...]`, or `[rounds, critic_updates, b, ...]` for as many steps, as online sources
        give them.
        """
        if batch.rewards.ndim > 2:
            steps = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), batch)
            return scan_updates(lambda state, inputs: self.update(state, *inputs), state, key, steps)
        grads, metrics = jax.grad(self.loss, has_aux=True)(state.params, state.target_critic, key, batch)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        rate = self.config.target_update_rate
        target = optax.incremental_update(state.params["action_critic"], state.target_critic, rate)
        return DQCState(state.step + 1, optax.apply_updates(state.params, updates), target, opt_state), metrics

    def loss(
        self, params: Params, target_critic: Params, key: Key[Array, ""], batch: Transitions
    ) -> tuple[Float[Array, ""], Metrics]:
        """Every loss trains one network: what it regresses on has its gradient stopped."""
        policy, begins = self.net.bind(params["policy"]), batch.actions[:, : self.config.action_horizon]
        goal = _vector(batch.goal)
        features = self._features(policy, batch.observation, goal)
        targets = jax.lax.stop_gradient(self.targets(params, batch))
        valid = batch.action_mask[:, self.config.action_horizon - 1]  # the episode has all of the beginning
        losses, metrics = {}, {}

        if self.config.chunk_critic:
            logits = self._logits(self.chunk_critic, params["chunk_critic"], features, batch.actions)
            losses["chunk_critic"] = regression.binary_value_loss(logits, _per_head(targets, logits)).mean()
            regressed = jax.lax.stop_gradient(jax.nn.sigmoid(logits))  # head i is distilled from head i
            metrics["chunk_critic/q_values"] = regressed.mean()

        logits = self._logits(self.action_critic, params["action_critic"], features, begins)
        if not self.config.chunk_critic:
            regressed = _per_head(targets, logits)
        distill = _LEANING_LOSSES[self.config.distillation](logits, regressed, self.config.distillation_level)
        losses["action_critic"] = _mean(distill.mean(axis=0), valid)

        best = jax.lax.stop_gradient(self.q_values(target_critic, features, begins))
        values = self.value.bind(params["value"])(features)
        losses["value"] = _mean(_LEANING_LOSSES[self.config.backup](values, best, self.config.backup_level), valid)

        losses["policy"] = self._imitation(policy, key, batch.observation, begins, batch.action_mask)
        total = sum(losses.values())
        metrics |= {f"{name}/loss": value for name, value in losses.items()}
        metrics |= {
            "loss": total,
            "action_critic/q_values": jax.nn.sigmoid(logits).mean(),
            "value/values": jax.nn.sigmoid(values).mean(),
            "value/targets": targets.mean(),
        }
        return total, metrics

    def targets(self, params: Params, batch: Transitions) -> Float[Array, "b"]:
        """Return inside the chunk plus the discounted value of where it led, in [0, 1]. V is the one that trains."""
        policy = self.net.bind(params["policy"])
        returns, factor = td.chunk_return(batch.rewards, batch.discounts, batch.action_mask, self.config.discount)
        following = self._features(policy, batch.next_observation, _vector(batch.goal))
        return jnp.clip(returns + factor * jax.nn.sigmoid(self.value.bind(params["value"])(following)), 0, 1)

    def _imitation(
        self,
        policy: Policy,
        key: Key[Array, ""],
        observation: Observation,
        actions: Float[Array, "b h a"],
        action_mask: Bool[Array, "b n"],
    ) -> Float[Array, ""]:
        mask = jnp.broadcast_to(action_mask[:, : actions.shape[1], None], actions.shape)
        demonstrations = Demonstrations(observation, actions, mask, jnp.ones(len(actions)))
        return _mean(policy.loss(key, demonstrations)[0], mask.any(axis=(1, 2)))

    # --- acting -----------------------------------------------------------------------------------------------------

    def actor(self, state: DQCState) -> Params:
        return {name: state.params[name] for name in ("policy", "action_critic")}

    def initial_memory(self, batch_size: int) -> Float[Array, "b g"] | tuple[()]:
        """The goals to act for, zeros until the caller puts his own in their place; without goals, nothing."""
        return jnp.zeros((batch_size, self.goal_dim)) if self.goal_dim else ()

    def act(
        self,
        actor_params: Params,
        key: Key[Array, ""],
        observation: Observation,
        memory: Float[Array, "b g"] | tuple[()],
    ) -> tuple[Float[Array, "b h a"], Float[Array, "b g"] | tuple[()]]:
        """The first `execution_horizon` steps of the best sample; the goal enters through the scores alone."""
        candidates, scores = self.scored(actor_params, key, observation, memory if self.goal_dim else None)
        return best_of(candidates, scores)[:, : self.config.steps_run], memory

    def observe(
        self, actor_params: Params, key: Key[Array, ""], observation: Observation
    ) -> tuple[Observation, Observation]:
        """For collection: what `explore` needs, and what goes into the buffer as the observation."""
        return observation, observation

    def explore(self, actor_params: Params, key: Key[Array, ""], observation: Observation) -> Float[Array, "b h a"]:
        """The best of the policy's samples, of a learner without goals. Exploration is the policy's own."""
        return self.act(actor_params, key, observation, ())[0]

    def scored(
        self, actor_params: Params, key: Key[Array, ""], observation: Observation, goal: Float[Array, "b g"] | None
    ) -> tuple[Float[Array, "b n h a"], Float[Array, "b n"]]:
        """Samples of the policy and their logits, aggregated over the heads."""
        policy = self.net.bind(actor_params["policy"])
        prefix = policy.prefix(observation)
        candidates = jnp.swapaxes(policy.sample_from(key, prefix, self.config.num_candidates), 0, 1)
        features = self._join(policy.features(prefix), goal)
        logits = self._logits(self.action_critic, actor_params["action_critic"], features, candidates)
        return candidates, self._aggregate(logits)

    def q_values(
        self, critic_params: Params, features: Float[Array, "b i"], actions: Float[Array, "b *n h a"]
    ) -> Float[Array, "b *n"]:
        """Values in [0, 1] of beginnings by an action critic, aggregated over the heads."""
        return self._aggregate(jax.nn.sigmoid(self._logits(self.action_critic, critic_params, features, actions)))

    # --- parts ------------------------------------------------------------------------------------------------------

    def _features(self, policy: HasPrefix, observation: Observation, goal: Float[Array, "b g"] | None):
        return self._join(policy.features(policy.prefix(observation)), goal)

    def _join(self, features: Float[Array, "b f"], goal: Float[Array, "b g"] | None) -> Float[Array, "b i"]:
        features = jax.lax.stop_gradient(features).astype(jnp.float32)
        return features if not self.goal_dim else jnp.concatenate([features, goal], axis=-1)

    def _logits(
        self,
        net: functional.Net[critics.ChunkCritic],
        params: Params,
        features: Float[Array, "b i"],
        actions: Float[Array, "b *n h a"],
    ) -> Float[Array, "e b *n"]:
        return functional.apply_ensemble(net, params, lambda critic: critic(features, actions))

    def _aggregate(self, values: Float[Array, "e b *n"]) -> Float[Array, "b *n"]:
        return values.mean(axis=0) if self.config.aggregation == "mean" else values.min(axis=0)

    def _critic_of(self, horizon: int) -> Callable[[nnx.Rngs], critics.ChunkCritic]:
        in_dim = self.feature_dim + self.goal_dim
        return lambda rngs: critics.ChunkCritic(in_dim, horizon, self.action_dim, self.config.critic, rngs)

    def _make_value(self, rngs: nnx.Rngs) -> critics.StateValue:
        return critics.StateValue(self.feature_dim + self.goal_dim, self.config.critic, rngs)

    def _init_heads(self, horizon: int, key: Key[Array, ""]) -> Params:
        return functional.init_ensemble(self._critic_of(horizon), key, self.config.num_critics)[1]

    def _check(self, policy: Policy) -> None:
        require(policy, HasPrefix)
        found = (policy.action_horizon, policy.action_dim)
        if found != (self.config.action_horizon, self.action_dim):
            raise errors.ConfigError(
                "DQC: chunks of the policy",
                expected=f"{self.config.action_horizon} steps of {self.action_dim}, as the action critic scores",
                found=f"{found[0]} steps of {found[1]}",
            )


def _vector(goal: Any) -> Float[Array, "b g"] | None:
    """A goal that is an observation is its robot state."""
    return goal.state if isinstance(goal, Observation) else goal


def _per_head(targets: Float[Array, "b"], logits: Float[Array, "e b"]) -> Float[Array, "e b"]:
    return jnp.broadcast_to(targets[None], logits.shape)


def _mean(losses: Float[Array, "b"], mask: Bool[Array, "b"]) -> Float[Array, ""]:
    return jnp.where(mask, losses, 0.0).sum() / jnp.maximum(mask.sum(), 1)
