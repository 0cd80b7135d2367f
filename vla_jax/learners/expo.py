"""EXPO: online RL fine-tuning of an expressive policy without gradients through its sampler.

Dong, Li, Sadigh, Finn, "EXPO: Stable Reinforcement Learning with Expressive Policies" (arXiv 2507.07986). The base
policy (flow, tokens, anything that samples) only ever imitates. A light squashed Gaussian learns a small bounded edit
of its actions. The on-the-fly policy draws several base chunks, edits each, and takes the candidate with the highest
value; it acts, and it is what the temporal-difference target bootstraps from. A wrong critic can mislead the choice,
but it cannot move the base.

    base samples a_1..a_N ------------------+
         |                                  +--> 2N candidates --Q--> argmax --> run, and bootstrap target
         +-- + edit(features, a_i) in +-b --+

Everything works on the executed part of a chunk. With `base="frozen"` the base is a constant, so what it makes of an
observation (features and candidates) is computed once, when the observation is met, and stored in the buffer: updates
then touch neither pixels nor the flow. The critic sees the policy's own features, so it can be deployed with it.

From the paper's code: candidate scoring, losses, order of updates. Unlike the released code: the entropy target counts
the edit's range (`edit_scale`), without which the temperature diverges for small ranges (the paper's variants differ in
this); acting for evaluation takes the edit's mode; `base="frozen"`, stored candidates and a `Tuning` of the base are
ours. Gradients reach the base through its own imitation loss alone, so adapters on it train like any other parameters.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import cached_property
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jaxtyping import Array, Float, Int, Key

from vla_jax.core import errors, functional
from vla_jax.core.types import Demonstrations, Metrics, Observation, Params, Transitions
from vla_jax.learners.tunable import Tunable, Tuning
from vla_jax.losses import entropy, td
from vla_jax.nets import critics
from vla_jax.nets.tanh_gaussian import TanhGaussian
from vla_jax.policies.base import HasPrefix, Policy, require


@dataclasses.dataclass(frozen=True)
class EXPOConfig:
    """Defaults: the released configurations, except `execution_horizon` and `base`."""

    execution_horizon: int = 4  # steps of a chunk that are run, scored and edited
    base: Literal["frozen", "imitation"] = "frozen"  # imitation: on the replayed chunks, once per round
    base_ema_decay: float = 0.999  # of the base that acts, when it trains
    num_base_samples: int = 8
    edited: bool = True  # False: the choice among base samples alone ("best of N")
    edit_scale: float = 0.05  # the edit's range per action entry; entries live in [-1, 1]
    clip_candidates: bool = True  # edited actions into [-1, 1]; the released code does not
    num_critics: int = 10
    num_min_critics: int = 2  # heads of each random subset; selection and target draw their own
    hidden_dims: tuple[int, ...] = (256, 256, 256)
    discount: float = 0.99  # per control step
    target_update_rate: float = 0.005
    value_range: tuple[float, float] | None = None  # of returns, when known: bootstrap values are clipped to it
    initial_temperature: float = 1.0
    entropy_per_dim: float = -0.5  # target for the edit before scaling; the released -d / 2
    backup_inverse_temperature: float | None = None  # set: bootstrap from softmax(value * this) instead of the argmax

    def __post_init__(self):
        if not 0 < self.num_min_critics <= self.num_critics:
            raise errors.ConfigError(
                "EXPOConfig.num_min_critics",
                expected=f"1 to num_critics = {self.num_critics}",
                found=self.num_min_critics,
            )
        if self.edit_scale <= 0:
            raise errors.ConfigError(
                "EXPOConfig.edit_scale",
                expected="a positive range",
                found=self.edit_scale,
                fix="for the arm without edits set edited=False",
            )


class Embedded(struct.PyTreeNode):
    """What the base policy makes of an observation, and all that critic and edit look at."""

    features: Float[Array, "b f"]
    candidates: Float[Array, "b n h a"]  # base samples, their executed part


class EXPOState(struct.PyTreeNode):
    step: Int[Array, ""]  # rounds
    params: Params  # base (what trains of it), critic, edit, log_temperature
    ema_base: Params
    target_critic: Params
    opt_state: dict[str, optax.OptState]
    frozen: Params = struct.field(default_factory=dict)  # of a tuned base: never changes, and no checkpoint holds it


@dataclasses.dataclass(frozen=True)
class EXPO:
    policy: Callable[[nnx.Rngs], Policy]
    action_dim: int
    feature_dim: int  # of `Embedded.features`: the policy's features and the robot state
    optimizer: optax.GradientTransformation  # critic, edit and temperature, each with its own state
    base_optimizer: optax.GradientTransformation
    config: EXPOConfig = EXPOConfig()
    tuning: Tuning | None = None  # of the base, when it imitates

    @cached_property
    def base(self) -> Tunable:
        return Tunable(self.policy, self.tuning)

    @cached_property
    def critic(self) -> functional.Net[critics.ChunkCritic]:
        return functional.describe(self._make_critic)[0]

    @cached_property
    def edit(self) -> functional.Net[TanhGaussian]:
        return functional.describe(self._make_edit)[0]

    @property
    def chunk_dim(self) -> int:
        return self.config.execution_horizon * self.action_dim

    @property
    def target_entropy(self) -> float:
        return self.chunk_dim * (self.config.entropy_per_dim + math.log(self.config.edit_scale))

    # --- state -----------------------------------------------------------------------------------------------------

    def init(self, key: Key[Array, ""], example_batch: Transitions | None = None) -> EXPOState:
        """A state around a fresh base; `with_base` gives it a pretrained one."""
        base_key, critic_key, edit_key = jax.random.split(key, 3)
        _, base_params = functional.init(self.policy, base_key)
        require(self.base.net.bind(base_params), HasPrefix)
        frozen, base_params = self.base.split(jax.random.fold_in(base_key, 1), base_params)
        _, critic = functional.init_ensemble(self._make_critic, critic_key, self.config.num_critics)
        _, edit = functional.init(self._make_edit, edit_key)
        log_temperature = jnp.log(jnp.asarray(self.config.initial_temperature, jnp.float32))
        params = {"base": base_params, "critic": critic, "edit": edit, "log_temperature": log_temperature}
        trained = {name: params[name] for name in ("critic", "edit", "log_temperature")}
        opt_state = {name: self.optimizer.init(tree) for name, tree in trained.items()}
        if self.config.base == "imitation":
            opt_state["base"] = self.base_optimizer.init(base_params)
        # copies: donated buffers may not alias
        ema_base = jax.tree.map(jnp.copy, base_params) if self.config.base == "imitation" else {}
        target_critic = jax.tree.map(jnp.copy, critic)
        return EXPOState(jnp.zeros((), jnp.int32), params, ema_base, target_critic, opt_state, frozen)

    def with_base(self, state: EXPOState, base: Params, key: Key[Array, ""]) -> EXPOState:
        """The state with a pretrained policy in place of the fresh one; `key` is for adapters."""
        frozen, trained = self.base.split(key, base)
        ema_base = jax.tree.map(jnp.copy, trained) if self.config.base == "imitation" else {}
        return state.replace(params={**state.params, "base": trained}, ema_base=ema_base, frozen=frozen)

    def with_frozen(self, state: EXPOState, base: Params) -> EXPOState:
        """A state from a checkpoint with the part that never changed, of the policy that the run started from."""
        return state.replace(frozen=self.base.freeze(base))

    def without_frozen(self, state: EXPOState) -> EXPOState:
        return state.replace(frozen={})

    def _make_critic(self, rngs: nnx.Rngs) -> critics.ChunkCritic:
        config = critics.CriticConfig(self.config.hidden_dims)
        return critics.ChunkCritic(self.feature_dim, self.config.execution_horizon, self.action_dim, config, rngs)

    def _make_edit(self, rngs: nnx.Rngs) -> TanhGaussian:
        in_dim = self.feature_dim + self.chunk_dim
        return TanhGaussian(in_dim, self.config.hidden_dims, self.chunk_dim, rngs, scale=self.config.edit_scale)

    # --- the on-the-fly policy ----------------------------------------------------------------------------------------

    def embed(self, base_params: Params, key: Key[Array, ""], observation: Observation) -> Embedded:
        """Encode once and draw the base candidates."""
        policy = self.base.bind(base_params)
        prefix = policy.prefix(observation)
        chunks = policy.sample_from(key, prefix, self.config.num_base_samples)
        features = jnp.concatenate([policy.features(prefix), observation.state], axis=-1)
        executed = jnp.swapaxes(chunks, 0, 1)[:, :, : self.config.execution_horizon]
        return Embedded(features.astype(jnp.float32), executed.astype(jnp.float32))

    def candidates(
        self, edit_params: Params, key: Key[Array, ""] | None, embedded: Embedded
    ) -> Float[Array, "b m h a"]:
        """The base samples and, after them, their edits; without a key the edits are the distribution's mode."""
        base = embedded.candidates
        if not self.config.edited:
            return base
        edit, x = self.edit.bind(edit_params), self._edit_input(embedded.features, base)
        delta = edit.mode(x) if key is None else edit.sample(key, x)[0]
        return jnp.concatenate([base, self._apply_edit(base, delta)], axis=1)

    def select(
        self, critic_params: Params, key: Key[Array, ""], embedded: Embedded, candidates: Float[Array, "b m h a"]
    ) -> tuple[Float[Array, "b h a"], Float[Array, "b m"]]:
        """The candidate with the highest value (minimum over a random subset of heads), and all the values."""
        q_values = self._subset_value(critic_params, key, embedded.features, candidates)
        best = q_values.argmax(axis=1)
        return _take(candidates, best), q_values

    def actor(self, state: EXPOState) -> Params:
        trained = state.ema_base if self.config.base == "imitation" else state.params["base"]
        return {
            "base": self.base.pack(state.frozen, trained),
            "edit": state.params["edit"],
            "critic": state.target_critic,
        }

    def initial_memory(self, batch_size: int) -> tuple[()]:
        return ()

    def act(
        self, actor_params: Params, key: Key[Array, ""], observation: Observation, memory: tuple[()]
    ) -> tuple[Float[Array, "b h a"], tuple[()]]:
        embed_key, select_key = jax.random.split(key)
        embedded = self.embed(actor_params["base"], embed_key, observation)
        candidates = self.candidates(actor_params["edit"], None, embedded)
        return self.select(actor_params["critic"], select_key, embedded, candidates)[0], memory

    def observe(
        self, actor_params: Params, key: Key[Array, ""], observation: Observation
    ) -> tuple[Embedded, Embedded | Observation]:
        """For collection: what `explore` needs, and what goes into the buffer as the observation."""
        embedded = self.embed(actor_params["base"], key, observation)
        return embedded, embedded if self.config.base == "frozen" else observation

    def explore(self, actor_params: Params, key: Key[Array, ""], embedded: Embedded) -> Float[Array, "b h a"]:
        """As `act`, with sampled edits."""
        edit_key, select_key = jax.random.split(key)
        candidates = self.candidates(actor_params["edit"], edit_key, embedded)
        return self.select(actor_params["critic"], select_key, embedded, candidates)[0]

    # --- learning -------------------------------------------------------------------------------------------------

    def update(self, state: EXPOState, key: Key[Array, ""], batch: Transitions) -> tuple[EXPOState, Metrics]:
        """Rounds of updates. The batch's leaves have leading axes `rounds, critic_updates, b`.

        Each round makes all its critic updates and then, on its last minibatch, one update of the edit, one of the
        temperature and (unless it is frozen) one of the base.
        """
        num_rounds = batch.rewards.shape[0]
        state, metrics = jax.lax.scan(self._round, state, (jax.random.split(key, num_rounds), batch))
        return state, jax.tree.map(jnp.mean, metrics)

    def _round(self, state: EXPOState, inputs) -> tuple[EXPOState, Metrics]:
        key, batch = inputs
        critic_key, edit_key, base_key = jax.random.split(key, 3)
        critic_keys = jax.random.split(critic_key, batch.rewards.shape[0])
        state, critic_metrics = jax.lax.scan(self._critic_step, state, (critic_keys, batch))
        last = jax.tree.map(lambda leaf: leaf[-1], batch)
        metrics = jax.tree.map(jnp.mean, critic_metrics)
        if self.config.edited:
            state, edit_metrics = self._edit_step(state, edit_key, last)
            metrics |= edit_metrics
        if self.config.base == "imitation":
            state, base_metrics = self._base_step(state, base_key, last)
            metrics |= base_metrics
        return state.replace(step=state.step + 1), metrics

    def _critic_step(self, state: EXPOState, inputs) -> tuple[EXPOState, Metrics]:
        key, batch = inputs
        target_key, embed_key = jax.random.split(key)
        now = self._embedded(state, embed_key, batch.observation)
        following = self._embedded(state, embed_key, batch.next_observation)
        targets = jax.lax.stop_gradient(self.targets(state, target_key, batch, following))

        def loss(params: Params):
            q_values = self._q_values(params, now.features, batch.actions)
            return td.squared_error(q_values, targets).mean(), q_values.mean()

        (value, mean_q), grads = jax.value_and_grad(loss, has_aux=True)(state.params["critic"])
        state = self._apply(state, "critic", grads)
        rate = self.config.target_update_rate
        target_critic = optax.incremental_update(state.params["critic"], state.target_critic, rate)
        metrics = {"critic/loss": value, "critic/q_values": mean_q, "critic/targets": targets.mean()}
        return state.replace(target_critic=target_critic), metrics

    def targets(
        self, state: EXPOState, key: Key[Array, ""], batch: Transitions, following: Embedded
    ) -> Float[Array, "b"]:
        """Return inside the chunk plus the discounted value of the on-the-fly policy after it."""
        edit_key, select_key, value_key, choice_key = jax.random.split(key, 4)
        candidates = self.candidates(state.params["edit"], edit_key, following)
        chosen, q_values = self.select(state.target_critic, select_key, following, candidates)
        bonus = 0.0
        if self.config.backup_inverse_temperature is not None:
            log_probs = jax.nn.log_softmax(self.config.backup_inverse_temperature * q_values)
            index = jax.random.categorical(choice_key, log_probs, axis=-1)
            chosen = _take(candidates, index)
            bonus = -jnp.exp(state.params["log_temperature"]) * jnp.take_along_axis(log_probs, index[:, None], 1)[:, 0]
        # a second random subset, drawn with its own key, judges what the first one chose
        value = self._subset_value(state.target_critic, value_key, following.features, chosen) + bonus
        if self.config.value_range is not None:
            value = jnp.clip(value, *self.config.value_range)
        returns, factor = td.chunk_return(batch.rewards, batch.discounts, batch.action_mask, self.config.discount)
        return returns + factor * value

    def _edit_step(self, state: EXPOState, key: Key[Array, ""], batch: Transitions) -> tuple[EXPOState, Metrics]:
        """The edit of the action in the buffer (not of a fresh sample) towards higher value; then its temperature."""
        embed_key, sample_key = jax.random.split(key)
        embedded = self._embedded(state, embed_key, batch.observation)
        temperature = jnp.exp(state.params["log_temperature"])

        def edit_loss(params: Params):
            delta, log_prob = self.edit.bind(params).sample(
                sample_key, self._edit_input(embedded.features, batch.actions)
            )
            actions = self._apply_edit(batch.actions, delta)
            q_values = self._q_values(state.params["critic"], embedded.features, actions).mean(axis=0)
            return entropy.soft_policy_loss(log_prob, q_values, temperature).mean(), (log_prob, delta)

        (value, (log_prob, delta)), grads = jax.value_and_grad(edit_loss, has_aux=True)(state.params["edit"])
        state = self._apply(state, "edit", grads)

        def temperature_loss(log_temperature):
            return entropy.temperature_loss(
                jnp.exp(log_temperature), jax.lax.stop_gradient(log_prob), self.target_entropy
            ).mean()

        state = self._apply(state, "log_temperature", jax.grad(temperature_loss)(state.params["log_temperature"]))
        metrics = {
            "edit/loss": value,
            "edit/size": jnp.abs(delta).mean(),
            "edit/entropy": -log_prob.mean(),
            "edit/temperature": temperature,
        }
        return state, metrics

    def _base_step(self, state: EXPOState, key: Key[Array, ""], batch: Transitions) -> tuple[EXPOState, Metrics]:
        """One imitation step on the replayed chunks; entries past the executed part are masked."""

        def loss(params: Params):
            policy = self.base.bind(self.base.pack(state.frozen, self.base.cast(params)))
            pad = policy.action_horizon - self.config.execution_horizon
            actions = jnp.pad(batch.actions, ((0, 0), (0, pad), (0, 0)))
            mask = jnp.pad(
                jnp.broadcast_to(batch.action_mask[..., None], batch.actions.shape), ((0, 0), (0, pad), (0, 0))
            )
            demonstrations = Demonstrations(batch.observation, actions, mask, jnp.ones(actions.shape[0]))
            return policy.loss(key, demonstrations)[0].mean()

        value, grads = jax.value_and_grad(loss)(state.params["base"])
        updates, opt_state = self.base_optimizer.update(grads, state.opt_state["base"], state.params["base"])
        base = optax.apply_updates(state.params["base"], updates)
        state = state.replace(
            params={**state.params, "base": base},
            ema_base=functional.ema(state.ema_base, base, self.config.base_ema_decay),
            opt_state={**state.opt_state, "base": opt_state},
        )
        return state, {"base/loss": value}

    # --- parts ----------------------------------------------------------------------------------------------------

    def _embedded(self, state: EXPOState, key: Key[Array, ""], observation: Embedded | Observation) -> Embedded:
        if isinstance(observation, Embedded):
            return observation
        base = self.base.pack(state.frozen, state.params["base"])
        return jax.lax.stop_gradient(self.embed(base, key, observation))

    def _q_values(
        self, critic_params: Params, features: Float[Array, "b f"], actions: Float[Array, "b *n h a"]
    ) -> Float[Array, "e b *n"]:
        return functional.apply_ensemble(self.critic, critic_params, lambda critic: critic(features, actions))

    def _subset_value(self, critic_params: Params, key: Key[Array, ""], features, actions) -> Float[Array, "b *n"]:
        """Minimum over a random subset of heads; only those are evaluated."""
        heads = critics.random_heads(key, self.config.num_critics, self.config.num_min_critics)
        return self._q_values(critics.take_heads(critic_params, heads), features, actions).min(axis=0)

    def _edit_input(self, features: Float[Array, "b f"], actions: Float[Array, "b *n h a"]) -> Float[Array, "b *n i"]:
        flat = actions.reshape(*actions.shape[:-2], self.chunk_dim)
        features = features.reshape(features.shape[0], *(1 for _ in flat.shape[1:-1]), features.shape[-1])
        return jnp.concatenate([jnp.broadcast_to(features, (*flat.shape[:-1], features.shape[-1])), flat], axis=-1)

    def _apply_edit(self, actions: Float[Array, "*b h a"], delta: Float[Array, "*b i"]) -> Float[Array, "*b h a"]:
        edited = actions + delta.reshape(actions.shape)
        return jnp.clip(edited, -1, 1) if self.config.clip_candidates else edited

    def _apply(self, state: EXPOState, name: str, grads) -> EXPOState:
        updates, opt_state = self.optimizer.update(grads, state.opt_state[name], state.params[name])
        params = {**state.params, name: optax.apply_updates(state.params[name], updates)}
        return state.replace(params=params, opt_state={**state.opt_state, name: opt_state})


def _take(candidates: Float[Array, "b m h a"], index: Int[Array, "b"]) -> Float[Array, "b h a"]:
    return jnp.take_along_axis(candidates, index[:, None, None, None], axis=1)[:, 0]
