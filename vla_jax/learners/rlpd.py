"""RLPD as SERL runs it on robots: SAC that learns from demonstrations and its own data alike, many updates per step.

Ball, Smith, Kostrikov, Levine, "Efficient Online Reinforcement Learning with Offline Data" (arXiv 2302.02948), in the
form of SERL (Luo et al., arXiv 2401.16013) and HIL-SERL (arXiv 2410.21845). Every batch is half demonstrations and half
online data (`data/replay.py` mixes them); an ensemble of critics with LayerNorm keeps values of unseen actions from
growing, and the target takes the minimum over a random pair of heads. Pictures pass a trunk that may be frozen, then an
encoder that the critic's loss trains.

    observation --trunk (frozen)--> maps --encoder--> features --+-- actor: squashed Gaussian over a chunk
                                             |                    +-- critics: Q(features, chunk), heads e
                     gradients of the critic's loss only (`encoder="shared"`)

A batch has leading axes `rounds, critic_updates, b`: SERL's critic-to-actor ratio is the second. From the paper and its
code: losses, temperature on next states, no entropy in the backup, order of updates. Unlike the released code, only the
drawn heads of the target are evaluated, the encoder has no dropout, an entropy term in the backup is discounted, and
critic-only updates leave the actor alone (there Adam goes on moving it by its momentum).
"""

import dataclasses
import math
from collections.abc import Callable
from functools import cached_property
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jaxtyping import Array, Float, Int, Key

from vla_jax.core import errors, functional, images
from vla_jax.core.types import Metrics, Observation, Params, Transitions
from vla_jax.learners.base import apply_gradients, scan_updates
from vla_jax.losses import entropy, td
from vla_jax.nets import critics
from vla_jax.nets.mlp import Activation, Norm
from vla_jax.nets.tanh_gaussian import TanhGaussian

TRUNK = "trunk"  # the name of an encoder's part that `frozen_trunk` keeps as it is


class Encoder(Protocol):
    """A module from observations to features; `nets/pixels.py` is one."""

    feature_dim: int

    def __call__(self, observation: Observation) -> Float[Array, "b f"]: ...


@dataclasses.dataclass(frozen=True)
class RLPDConfig:
    """Defaults: SERL's released values. Its learning rate is 3e-4 (Adam), its critic-to-actor ratio 4."""

    action_horizon: int = 1  # steps of a chunk; the critic scores it whole
    num_critics: int = 10
    num_min_critics: int = 2  # heads of the random subset behind a target; num_critics: the minimum over all
    draw_with_replacement: bool = True  # of those heads, as released; REDQ draws without
    critic: critics.CriticConfig = critics.CriticConfig((256, 256), norm="before", activation="tanh")
    actor_dims: tuple[int, ...] = (256, 256)
    actor_norm: Norm = "before"
    actor_activation: Activation = "tanh"
    std_range: tuple[float, float] = (1e-5, 5.0)  # of the Gaussian, before the squashing
    discount: float = 0.96  # per control step
    target_update_rate: float = 0.005
    entropy_backup: bool = False  # SAC's bonus in the target
    initial_temperature: float = 0.01
    temperature_form: Literal["softplus", "exp"] = "softplus"  # which function of its parameter the temperature is
    temperature_states: Literal["next", "current"] = "next"  # where the entropy is measured
    entropy_per_dim: float = -0.5  # target
    actor_batch: Literal["last", "all"] = "last"  # minibatches of a round that the actor's update sees
    encoder: Literal["shared", "separate"] = "shared"  # separate: the actor's own, trained by the actor's loss
    frozen_trunk: bool = True  # of an encoder that has one
    crop_pad: int = 4  # pixels that pictures are moved by, those of now and those of next apart; 0: not at all

    def __post_init__(self):
        if not 0 < self.num_min_critics <= self.num_critics:
            raise errors.ConfigError(
                "RLPDConfig.num_min_critics",
                expected=f"1 to num_critics = {self.num_critics}",
                found=self.num_min_critics,
            )
        if not 0 < self.std_range[0] < self.std_range[1]:
            raise errors.ConfigError("RLPDConfig.std_range", expected="0 < low < high", found=self.std_range)
        if self.initial_temperature <= 0:
            raise errors.ConfigError(
                "RLPDConfig.initial_temperature", expected="above 0", found=self.initial_temperature
            )
        if self.critic.num_bins is not None:
            raise errors.ConfigError("RLPDConfig.critic.num_bins", expected=None, found=self.critic.num_bins)


class RLPDState(struct.PyTreeNode):
    step: Int[Array, ""]  # rounds
    params: dict[str, Params]  # actor and critic, each {"head", "encoder"}; temperature, before its function
    target: Params  # slow copy of the critic and its encoder
    opt_state: dict[str, optax.OptState]
    frozen: Params = struct.field(
        default_factory=dict
    )  # the encoder's trunk: never changes, and no checkpoint holds it


@dataclasses.dataclass(frozen=True)
class RLPD:
    """`encoder` None: the features are the observation's state."""

    action_dim: int
    feature_dim: int
    optimizer: optax.GradientTransformation  # actor, critic and temperature, each with its own state
    config: RLPDConfig = RLPDConfig()
    encoder: Callable[[nnx.Rngs], Encoder] | None = None

    @cached_property
    def critic(self) -> functional.Net[critics.ChunkCritic]:
        return functional.describe(self._make_critic)[0]

    @cached_property
    def gaussian(self) -> functional.Net[TanhGaussian]:
        return functional.describe(self._make_actor)[0]

    @cached_property
    def encoder_net(self) -> functional.Net[nnx.Module]:
        return functional.describe(self.encoder)[0]

    @property
    def chunk_dim(self) -> int:
        return self.config.action_horizon * self.action_dim

    @property
    def target_entropy(self) -> float:
        return self.config.entropy_per_dim * self.chunk_dim

    # --- state -----------------------------------------------------------------------------------------------------

    def init(self, key: Key[Array, ""], example_batch: Transitions | None = None) -> RLPDState:
        actor_key, critic_key, encoder_key = jax.random.split(key, 3)
        actor = {"head": functional.init(self._make_actor, actor_key)[1], "encoder": {}}
        heads = functional.init_ensemble(self._make_critic, critic_key, self.config.num_critics)[1]
        critic, frozen = {"head": heads, "encoder": {}}, {}
        if self.encoder is not None:
            frozen, critic["encoder"] = self._split(functional.init(self.encoder, encoder_key)[1])
            if self.config.encoder == "separate":
                own = functional.init(self.encoder, jax.random.fold_in(encoder_key, 1))[1]
                actor["encoder"] = self._split(own)[1]
        temperature = jnp.asarray(_inverse(self.config.initial_temperature, self.config.temperature_form), jnp.float32)
        params = {"actor": actor, "critic": critic, "temperature": temperature}
        opt_state = {name: self.optimizer.init(tree) for name, tree in params.items()}
        target = jax.tree.map(jnp.copy, critic)  # a copy: donated buffers may not alias
        return RLPDState(jnp.zeros((), jnp.int32), params, target, opt_state, frozen)

    def with_trunk(self, state: RLPDState, trunk: Params) -> RLPDState:
        """The state with pretrained parameters in the frozen trunk, or back in it after a checkpoint without them."""
        return state.replace(frozen={TRUNK: trunk})

    def without_frozen(self, state: RLPDState) -> RLPDState:
        return state.replace(frozen={})

    def _split(self, encoder: Params) -> tuple[Params, Params]:
        if not (self.config.frozen_trunk and TRUNK in encoder):
            return {}, encoder
        return {TRUNK: encoder[TRUNK]}, {name: tree for name, tree in encoder.items() if name != TRUNK}

    def _make_critic(self, rngs: nnx.Rngs) -> critics.ChunkCritic:
        return critics.ChunkCritic(
            self.feature_dim, self.config.action_horizon, self.action_dim, self.config.critic, rngs
        )

    def _make_actor(self, rngs: nnx.Rngs) -> TanhGaussian:
        low, high = self.config.std_range
        return TanhGaussian(
            self.feature_dim,
            self.config.actor_dims,
            self.chunk_dim,
            rngs,
            log_std_range=(math.log(low), math.log(high)),
            norm=self.config.actor_norm,
            activation=self.config.actor_activation,
        )

    # --- acting ----------------------------------------------------------------------------------------------------

    def actor(self, state: RLPDState) -> Params:
        shared = self.config.encoder == "shared"
        encoder = state.params["critic" if shared else "actor"]["encoder"]
        return {"head": state.params["actor"]["head"], "encoder": {**encoder, **state.frozen}}

    def initial_memory(self, batch_size: int) -> tuple[()]:
        return ()

    def act(
        self, actor_params: Params, key: Key[Array, ""], observation: Observation, memory: tuple[()]
    ) -> tuple[Float[Array, "b h a"], tuple[()]]:
        """The mode of the policy; `key` plays no part."""
        # checkpoints keep no empty part, so that without an encoder there is none
        features = self.encode(actor_params.get("encoder", {}), {}, observation)
        return self._chunks(self.gaussian.bind(actor_params["head"]).mode(features)), memory

    def observe(
        self, actor_params: Params, key: Key[Array, ""], observation: Observation
    ) -> tuple[Float[Array, "b f"], Observation | Float[Array, "b f"]]:
        """For collection: features to act on, and for the buffer the observation, or the state where it is all."""
        features = self.encode(actor_params.get("encoder", {}), {}, observation)
        return features, features if self.encoder is None else observation

    def explore(
        self, actor_params: Params, key: Key[Array, ""], features: Float[Array, "b f"]
    ) -> Float[Array, "b h a"]:
        return self._chunks(self.gaussian.bind(actor_params["head"]).sample(key, features)[0])

    # --- learning --------------------------------------------------------------------------------------------------

    def update(self, state: RLPDState, key: Key[Array, ""], batch: Transitions) -> tuple[RLPDState, Metrics]:
        """Rounds of critic updates, each with one update of actor and temperature after them."""
        return scan_updates(self._round, state, key, batch)

    def _round(self, state: RLPDState, inputs) -> tuple[RLPDState, Metrics]:
        key, batch = inputs
        critic_key, actor_key, now_key, next_key = jax.random.split(key, 4)
        if self.encoder is not None:
            now = images.crop_observation(now_key, batch.observation, self.config.crop_pad)
            following = images.crop_observation(next_key, batch.next_observation, self.config.crop_pad)
            batch = batch.replace(observation=now, next_observation=following)
        state, critic_metrics = scan_updates(self._critic_step, state, critic_key, batch)
        seen = batch if self.config.actor_batch == "all" else jax.tree.map(lambda leaf: leaf[-1:], batch)
        state, actor_metrics = self._actor_step(state, actor_key, seen)
        return state.replace(step=state.step + 1), critic_metrics | actor_metrics

    def _critic_step(self, state: RLPDState, inputs) -> tuple[RLPDState, Metrics]:
        key, batch = inputs
        action_key, heads_key = jax.random.split(key)
        next_chunks, next_log_prob = self._sample(state, action_key, batch.next_observation)
        heads = critics.random_heads(
            heads_key,
            self.config.num_critics,
            self.config.num_min_critics,
            replace=self.config.draw_with_replacement,
        )
        targets = jax.lax.stop_gradient(self.targets(state, heads, batch, next_chunks, next_log_prob))
        loss_and_grads = jax.value_and_grad(self.critic_loss, has_aux=True)
        (loss, mean_q), grads = loss_and_grads(state.params["critic"], state.frozen, batch, targets)
        state = self._apply(state, "critic", grads)
        rate = self.config.target_update_rate
        target = optax.incremental_update(state.params["critic"], state.target, rate)
        metrics = {"critic/loss": loss, "critic/q_values": mean_q, "critic/targets": targets.mean()}
        return state.replace(target=target), metrics

    def targets(
        self,
        state: RLPDState,
        heads: Int[Array, "m"],
        batch: Transitions,
        next_chunks: Float[Array, "b h a"],
        next_log_prob: Float[Array, "b"],
    ) -> Float[Array, "b"]:
        """Return inside the chunk plus the discounted minimum over these heads of the next chunk's target value."""
        features = self.encode(state.target["encoder"], state.frozen, batch.next_observation)
        value = self.q_values(critics.take_heads(state.target["head"], heads), features, next_chunks).min(axis=0)
        if self.config.entropy_backup:
            value = value - self.temperature(state.params["temperature"]) * next_log_prob
        returns, factor = td.chunk_return(batch.rewards, batch.discounts, batch.action_mask, self.config.discount)
        return returns + factor * value

    def critic_loss(
        self, critic: Params, frozen: Params, batch: Transitions, targets: Float[Array, "b"]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Mean squared error of all heads, and the mean value."""
        features = self.encode(critic["encoder"], frozen, batch.observation)

        def of_head(head, features, actions, targets):
            q_values = self.critic.bind(head)(features, actions)
            return jnp.square(q_values - targets).mean(), q_values.mean()

        return critics.mean_loss(of_head, critic["head"], features, batch.actions, targets)

    def _actor_step(self, state: RLPDState, key: Key[Array, ""], batch: Transitions) -> tuple[RLPDState, Metrics]:
        """One step on all minibatches of `batch`, [n, b, ...], by the mean of their gradients.

        Made one after another: so many rows through all heads at once would not stay in the cache.
        """

        def minibatch(_, inputs):
            key, rows = inputs
            actor_key, temperature_key = jax.random.split(key)
            noise = jax.random.normal(actor_key, (rows.rewards.shape[0], self.chunk_dim))
            loss_and_grads = jax.value_and_grad(self.actor_loss, has_aux=True)
            (loss, log_prob), grads = loss_and_grads(state.params["actor"], state, rows.observation, noise)
            if self.config.temperature_states == "next":
                log_prob = self._sample(state, temperature_key, rows.next_observation)[1]
            temperature_grads = jax.grad(self.temperature_loss)(state.params["temperature"], log_prob)
            return None, (loss, -log_prob.mean(), grads, temperature_grads)

        keys = jax.random.split(key, batch.rewards.shape[0])
        each = jax.lax.scan(minibatch, None, (keys, batch))[1]
        loss, randomness, grads, temperature_grads = jax.tree.map(lambda leaf: leaf.mean(axis=0), each)
        temperature = self.temperature(state.params["temperature"])
        state = self._apply(self._apply(state, "actor", grads), "temperature", temperature_grads)
        return state, {"actor/loss": loss, "actor/entropy": randomness, "actor/temperature": temperature}

    def actor_loss(
        self, actor: Params, state: RLPDState, observation: Observation, noise: Float[Array, "b i"]
    ) -> tuple[Float[Array, ""], Float[Array, "b"]]:
        """`temperature * log_prob - Q` of sampled chunks, the mean over heads for Q; and the log probabilities."""
        critic = jax.lax.stop_gradient(state.params["critic"])
        critic_features = jax.lax.stop_gradient(self.encode(critic["encoder"], state.frozen, observation))
        own = critic_features
        if self.encoder is not None and self.config.encoder == "separate":
            own = self.encode(actor["encoder"], state.frozen, observation)
        gaussian = self.gaussian.bind(actor["head"])
        flat, log_prob = gaussian.sample_from(own, noise)
        of_head = lambda head, chunks: self.critic.bind(head)(critic_features, chunks)  # noqa: E731
        q_values = critics.mean_value(of_head, critic["head"], self._chunks(flat))
        temperature = jax.lax.stop_gradient(self.temperature(state.params["temperature"]))
        return entropy.soft_policy_loss(log_prob, q_values, temperature).mean(), log_prob

    def temperature_loss(self, parameter: Float[Array, ""], log_prob: Float[Array, "b"]) -> Float[Array, ""]:
        temperature = self.temperature(parameter)
        return entropy.temperature_loss(temperature, jax.lax.stop_gradient(log_prob), self.target_entropy).mean()

    # --- parts -----------------------------------------------------------------------------------------------------

    def encode(
        self, encoder: Params, frozen: Params, observation: Observation | Float[Array, "b f"]
    ) -> Float[Array, "b f"]:
        """Features of an observation. Without an encoder they are its state, which may come alone."""
        if self.encoder is None:
            return observation.state if isinstance(observation, Observation) else observation
        return self.encoder_net.bind({**encoder, **jax.lax.stop_gradient(frozen)})(observation)

    def q_values(
        self, heads: Params, features: Float[Array, "b f"], chunks: Float[Array, "b *n h a"]
    ) -> Float[Array, "e b *n"]:
        return functional.apply_ensemble(self.critic, heads, lambda critic: critic(features, chunks))

    def temperature(self, parameter: Float[Array, ""]) -> Float[Array, ""]:
        return jax.nn.softplus(parameter) if self.config.temperature_form == "softplus" else jnp.exp(parameter)

    def _sample(self, state: RLPDState, key: Key[Array, ""], observation) -> tuple[Array, Float[Array, "b"]]:
        actor = self.actor(state)
        features = self.encode(actor["encoder"], {}, observation)
        flat, log_prob = self.gaussian.bind(actor["head"]).sample(key, features)
        return self._chunks(flat), log_prob

    def _chunks(self, flat: Float[Array, "b i"]) -> Float[Array, "b h a"]:
        return flat.reshape(flat.shape[0], self.config.action_horizon, self.action_dim)

    def _apply(self, state: RLPDState, name: str, grads) -> RLPDState:
        return apply_gradients(state, self.optimizer, name, grads)


def _inverse(temperature: float, form: Literal["softplus", "exp"]) -> float:
    return math.log(math.expm1(temperature)) if form == "softplus" else math.log(temperature)
