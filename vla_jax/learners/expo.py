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
then touch neither pixels nor the flow. Critic and edit look at the policy's own features, or through an encoder of
their own, which the critic's loss trains (the released form for vision-language-action models).

From the paper's code: candidate scoring, losses, order of updates, which copy of base and critic is asked where. Unlike
the released code: the entropy target counts the edit's range, without which the temperature diverges for small ranges
(`entropy_counts_range`; the released variants differ in this); acting for evaluation takes the edit's mode;
`base="frozen"`, stored candidates and a `Tuning` of the base are ours. Gradients reach the base through its own
imitation loss alone, so adapters on it train like any other parameters. Batches that are half demonstrations are the
business of the source (`data/replay/mixing.py`).
"""

import dataclasses
import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jaxtyping import Array, Float, Int, Key

from vla_jax.core import errors, functional
from vla_jax.core.types import Metrics, Observation, Params, Transitions
from vla_jax.learners.base import apply_gradients, scan_updates
from vla_jax.learners.critic_ensemble import CriticEnsemble, bootstrap
from vla_jax.learners.tunable import KeepsFrozen, Tunable, Tuning
from vla_jax.losses import entropy
from vla_jax.nets import critics
from vla_jax.nets.chunk_edit import ChunkEdit
from vla_jax.policies.base import HasPrefix, Policy, require
from vla_jax.samplers.best_of import best_of, softmax_of

BaseCopy = Literal["online", "average"]
CriticCopy = Literal["online", "target"]


@dataclasses.dataclass(frozen=True)
class EXPOConfig:
    """Defaults: the released configurations, except `execution_horizon` and `base`."""

    execution_horizon: int = 4  # steps of a chunk that are run, scored and edited
    base: Literal["frozen", "imitation"] = "frozen"  # imitation: on the replayed chunks, once per round
    imitate: Literal["all", "success"] = "all"  # success: only rows whose extras["success"] says so
    base_ema_decay: float = 0.999  # of the averaged copy, when the base trains
    acting_base: BaseCopy = "average"
    target_base: BaseCopy = "online"  # whose samples targets choose among
    acting_critic: CriticCopy = "target"
    target_choice: CriticCopy = "target"  # the critic that chooses in targets; the target critic judges the choice
    num_base_samples: int = 8
    edited: bool = True  # False: the choice among base samples alone ("best of N")
    edit_scale: float = 0.05  # the edit's range per action entry; entries live in [-1, 1]
    clip_candidates: bool = False  # edited actions into [-1, 1]; the released code does not
    num_critics: int = 10
    num_min_critics: int = 2  # heads of each random subset; selection and target draw their own
    draw_with_replacement: bool = False  # of those heads
    hidden_dims: tuple[int, ...] = (256, 256, 256)
    discount: float = 0.99  # per control step
    target_update_rate: float = 0.005
    value_range: tuple[float, float] | None = None  # of returns, when known: bootstrap values are clipped to it
    initial_temperature: float = 1.0
    entropy_per_dim: float = -0.5  # target; the released -d / 2
    entropy_counts_range: bool = True  # the target is for the edit before scaling: log(edit_scale) per dim is added
    # What targets bootstrap from: the best candidate; one drawn from softmax(sharpness * value), with its entropy; or
    # the edit of one base sample (without edits: that sample), which is acting without looking ahead.
    backup: Literal["best", "softmax", "one_sample"] = "best"
    softmax_sharpness: float = 1.0

    def __post_init__(self):
        if not 0 < self.num_min_critics <= self.num_critics:
            raise errors.ConfigError(
                "EXPOConfig.num_min_critics",
                expected=f"1 to num_critics = {self.num_critics}",
                found=self.num_min_critics,
            )
        if self.imitate == "success" and self.base == "frozen":
            raise errors.ConfigError("EXPOConfig.imitate", expected="all with base='frozen'", found=self.imitate)
        if self.edit_scale <= 0:
            raise errors.ConfigError(
                "EXPOConfig.edit_scale",
                expected="a positive range",
                found=self.edit_scale,
                fix="for the arm without edits set edited=False",
            )


class Embedded(struct.PyTreeNode):
    """What the base policy makes of an observation, and all that critic and edit look at."""

    features: Any  # "b f", of the policy; with an encoder of their own the observation
    candidates: Float[Array, "b n h a"]  # base samples, their executed part


class EXPOState(struct.PyTreeNode):
    step: Int[Array, ""]  # rounds
    params: Params  # base (what trains of it), critic (heads and encoder), edit, log_temperature
    ema_base: Params
    target_critic: Params  # heads and encoder
    opt_state: dict[str, optax.OptState]
    frozen: Params = struct.field(default_factory=dict)  # of a tuned base: never changes, and no checkpoint holds it


@dataclasses.dataclass(frozen=True)
class EXPO(KeepsFrozen):
    policy: Callable[[nnx.Rngs], Policy]
    action_dim: int
    feature_dim: int  # the policy's features and the robot state, or those of `encoder`
    optimizer: optax.GradientTransformation  # critic, edit and temperature, each with its own state
    base_optimizer: optax.GradientTransformation
    config: EXPOConfig = EXPOConfig()
    tuning: Tuning | None = None  # of the base, when it imitates
    # Of critic and edit, `Observation -> "b f"`. None: the policy's features and the robot state.
    encoder: Callable[[nnx.Rngs], nnx.Module] | None = None

    @cached_property
    def base(self) -> Tunable:
        return Tunable(self.policy, self.tuning)

    @cached_property
    def ensemble(self) -> CriticEnsemble:
        config = critics.CriticConfig(self.config.hidden_dims)
        shape = (self.feature_dim, self.config.execution_horizon, self.action_dim)
        return CriticEnsemble(*shape, self.config.num_critics, config)

    @cached_property
    def edit(self) -> functional.Net[ChunkEdit]:
        return functional.describe(self._make_edit)[0]

    @cached_property
    def encoder_net(self) -> functional.Net[nnx.Module]:
        return functional.describe(self.encoder)[0]

    @property
    def chunk_dim(self) -> int:
        return self.config.execution_horizon * self.action_dim

    @property
    def target_entropy(self) -> float:
        of_range = math.log(self.config.edit_scale) if self.config.entropy_counts_range else 0.0
        return self.chunk_dim * (self.config.entropy_per_dim + of_range)

    # --- state -----------------------------------------------------------------------------------------------------

    def init(self, key: Key[Array, ""], example_batch: Transitions | None = None) -> EXPOState:
        """A state around a fresh base; `with_base` gives it a pretrained one."""
        base_key, critic_key, edit_key, encoder_key = jax.random.split(key, 4)
        _, base = functional.init(self.policy, base_key)
        require(self.base.net.bind(base), HasPrefix)
        encoder = {} if self.encoder is None else functional.init(self.encoder, encoder_key)[1]
        critic = {"heads": self.ensemble.init(critic_key), "encoder": encoder}
        _, edit = functional.init(self._make_edit, edit_key)
        log_temperature = jnp.log(jnp.asarray(self.config.initial_temperature, jnp.float32))
        trained = {"critic": critic, "edit": edit, "log_temperature": log_temperature}
        opt_state = {name: self.optimizer.init(tree) for name, tree in trained.items()}
        target_critic = jax.tree.map(jnp.copy, critic)  # donated buffers may not alias
        state = EXPOState(jnp.zeros((), jnp.int32), {"base": {}, **trained}, {}, target_critic, opt_state)
        return self.with_base(state, base, jax.random.fold_in(base_key, 1))

    def with_base(self, state: EXPOState, base: Params, key: Key[Array, ""]) -> EXPOState:
        """The state with a pretrained policy and a fresh optimizer of it; `key` is for adapters."""
        frozen, trained = self.base.split(key, base)
        state = state.replace(params={**state.params, "base": trained}, frozen=frozen)
        if self.config.base == "frozen":
            return state
        opt_state = {**state.opt_state, "base": self.base_optimizer.init(trained)}
        return state.replace(ema_base=jax.tree.map(jnp.copy, trained), opt_state=opt_state)

    def _make_edit(self, rngs: nnx.Rngs) -> ChunkEdit:
        config = self.config
        shape = (self.feature_dim, self.chunk_dim, config.hidden_dims)
        return ChunkEdit(*shape, config.edit_scale, config.clip_candidates, rngs)

    # --- the on-the-fly policy ----------------------------------------------------------------------------------------

    def embed(self, base_params: Params, key: Key[Array, ""], observation: Observation) -> Embedded:
        """Encode once and draw the base candidates."""
        policy = self.base.bind(base_params)
        prefix = policy.prefix(observation)
        chunks = policy.sample_from(key, prefix, self.config.num_base_samples)
        executed = jnp.swapaxes(chunks, 0, 1)[:, :, : self.config.execution_horizon].astype(jnp.float32)
        if self.encoder is not None:
            return Embedded(observation, executed)
        features = jnp.concatenate([policy.features(prefix), observation.state], axis=-1)
        return Embedded(features.astype(jnp.float32), executed)

    def look(self, encoder_params: Params, embedded: Embedded) -> Float[Array, "b f"]:
        """The features that critic and edit work on."""
        return embedded.features if self.encoder is None else self.encoder_net.bind(encoder_params)(embedded.features)

    def candidates(
        self,
        edit_params: Params,
        key: Key[Array, ""] | None,
        features: Float[Array, "b f"],
        base: Float[Array, "b n h a"],
    ) -> Float[Array, "b m h a"]:
        """The base samples and, after them, their edits; without a key the edits are the distribution's mode."""
        if not self.config.edited:
            return base
        edit = self.edit.bind(edit_params)
        edited = edit.mode(features, base) if key is None else edit.sample(key, features, base)[0]
        return jnp.concatenate([base, edited], axis=1)

    def actor(self, state: EXPOState) -> Params:
        is_target = self.config.acting_critic == "target"
        return {
            "base": self._base(state, self.config.acting_base),
            "edit": state.params["edit"],
            "encoder": state.params["critic"]["encoder"],  # of the edit, which was trained with it
            "critic": state.target_critic if is_target else state.params["critic"],
        }

    def initial_memory(self, batch_size: int) -> tuple[()]:
        return ()

    def act(
        self, actor_params: Params, key: Key[Array, ""], observation: Observation, memory: tuple[()]
    ) -> tuple[Float[Array, "b h a"], tuple[()]]:
        embed_key, choose_key = jax.random.split(key)
        embedded = self.embed(actor_params["base"], embed_key, observation)
        return self._choose(actor_params, choose_key, None, embedded), memory

    def observe(
        self, actor_params: Params, key: Key[Array, ""], observation: Observation
    ) -> tuple[Embedded, Embedded | Observation]:
        """For collection: what `explore` needs, and what goes into the buffer as the observation."""
        embedded = self.embed(actor_params["base"], key, observation)
        return embedded, embedded if self.config.base == "frozen" else observation

    def explore(self, actor_params: Params, key: Key[Array, ""], embedded: Embedded) -> Float[Array, "b h a"]:
        """As `act`, with sampled edits."""
        edit_key, choose_key = jax.random.split(key)
        return self._choose(actor_params, choose_key, edit_key, embedded)

    def _choose(
        self, actor_params: Params, key: Key[Array, ""], edit_key: Key[Array, ""] | None, embedded: Embedded
    ) -> Float[Array, "b h a"]:
        features = self.look(actor_params.get("encoder", {}), embedded)  # checkpoints keep no empty part
        candidates = self.candidates(actor_params["edit"], edit_key, features, embedded.candidates)
        return best_of(candidates, self.score(actor_params["critic"], key, embedded, candidates))

    def score(
        self, critic_params: Params, key: Key[Array, ""], embedded: Embedded, actions: Float[Array, "b *n h a"]
    ) -> Float[Array, "b *n"]:
        """Minimum over a random subset of heads; only those are evaluated."""
        config = self.config
        heads = critics.random_heads(
            key, config.num_critics, config.num_min_critics, replace=config.draw_with_replacement
        )
        features = self.look(critic_params.get("encoder", {}), embedded)
        return self._q_values(critics.take_heads(critic_params["heads"], heads), features, actions).min(axis=0)

    # --- learning -------------------------------------------------------------------------------------------------

    def update(self, state: EXPOState, key: Key[Array, ""], batch: Transitions) -> tuple[EXPOState, Metrics]:
        """Rounds of updates. The batch's leaves have leading axes `rounds, critic_updates, b`.

        Each round makes all its critic updates and then, on its last minibatch, one update of the edit, one of the
        temperature and (unless it is frozen) one of the base.
        """
        return scan_updates(self._round, state, key, batch)

    def _round(self, state: EXPOState, inputs) -> tuple[EXPOState, Metrics]:
        key, batch = inputs
        critic_key, edit_key, base_key = jax.random.split(key, 3)
        state, metrics = scan_updates(self._critic_step, state, critic_key, batch)
        last = jax.tree.map(lambda leaf: leaf[-1], batch)
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
        following = self._embedded(state, embed_key, batch.next_observation, self.config.target_base)
        targets = jax.lax.stop_gradient(self.targets(state, target_key, batch, following))

        def loss(params: Params):
            q_values = self._q_values(params["heads"], self.look(params["encoder"], now), batch.actions)
            return self.ensemble.td_loss(q_values, targets).mean(), q_values.mean()

        (value, mean_q), grads = jax.value_and_grad(loss, has_aux=True)(state.params["critic"])
        state = apply_gradients(state, self.optimizer, "critic", grads)
        rate = self.config.target_update_rate
        target_critic = optax.incremental_update(state.params["critic"], state.target_critic, rate)
        metrics = {"critic/loss": value, "critic/q_values": mean_q, "critic/targets": targets.mean()}
        return state.replace(target_critic=target_critic), metrics

    def targets(
        self, state: EXPOState, key: Key[Array, ""], batch: Transitions, following: Embedded
    ) -> Float[Array, "b"]:
        """Return inside the chunk plus the discounted value of the on-the-fly policy after it."""
        edit_key, select_key, value_key, choice_key = jax.random.split(key, 4)
        config, bonus = self.config, 0.0
        features = self.look(state.params["critic"]["encoder"], following)
        candidates = self.candidates(state.params["edit"], edit_key, features, following.candidates)
        if config.backup == "one_sample":
            chosen = candidates[:, config.num_base_samples if config.edited else 0]
        else:
            choosing = state.target_critic if config.target_choice == "target" else state.params["critic"]
            scores = self.score(choosing, select_key, following, candidates)
            if config.backup == "softmax":
                chosen, surprise = softmax_of(choice_key, candidates, scores, config.softmax_sharpness)
                bonus = jnp.exp(state.params["log_temperature"]) * surprise
            else:
                chosen = best_of(candidates, scores)
        # a second random subset, drawn with its own key, judges what the first one chose
        value = self.score(state.target_critic, value_key, following, chosen) + bonus
        if config.value_range is not None:
            value = jnp.clip(value, *config.value_range)
        return bootstrap(batch.rewards, batch.discounts, batch.action_mask, config.discount, value)

    def _edit_step(self, state: EXPOState, key: Key[Array, ""], batch: Transitions) -> tuple[EXPOState, Metrics]:
        """The edit of the action in the buffer (not of a fresh sample) towards higher value; then its temperature."""
        embed_key, sample_key = jax.random.split(key)
        embedded = self._embedded(state, embed_key, batch.observation)
        features = jax.lax.stop_gradient(self.look(state.params["critic"]["encoder"], embedded))
        temperature = jnp.exp(state.params["log_temperature"])

        def edit_loss(params: Params):
            actions, log_prob = self.edit.bind(params).sample(sample_key, features, batch.actions)
            q_values = self._q_values(state.params["critic"]["heads"], features, actions).mean(axis=0)
            return entropy.soft_policy_loss(log_prob, q_values, temperature).mean(), (log_prob, actions)

        (value, (log_prob, actions)), grads = jax.value_and_grad(edit_loss, has_aux=True)(state.params["edit"])
        state = apply_gradients(state, self.optimizer, "edit", grads)

        def temperature_loss(log_temperature):
            return entropy.temperature_loss(jnp.exp(log_temperature), log_prob, self.target_entropy).mean()

        grads = jax.grad(temperature_loss)(state.params["log_temperature"])
        state = apply_gradients(state, self.optimizer, "log_temperature", grads)
        metrics = {
            "edit/loss": value,
            "edit/size": jnp.abs(actions - batch.actions).mean(),
            "edit/entropy": -log_prob.mean(),
            "edit/temperature": temperature,
        }
        return state, metrics

    def _base_step(self, state: EXPOState, key: Key[Array, ""], batch: Transitions) -> tuple[EXPOState, Metrics]:
        """One imitation step on the replayed chunks; entries past the executed part are masked."""
        weight = jnp.ones(batch.rewards.shape[0])
        if self.config.imitate == "success":
            if "success" not in batch.extras:
                raise errors.ConfigError(
                    "EXPOConfig.imitate='success'", expected="batches with extras['success']", found=list(batch.extras)
                )
            weight = batch.extras["success"].astype(jnp.float32)

        def loss(params: Params):
            rows = (batch.observation, batch.actions, batch.action_mask, weight)
            losses = self.base.losses(state.frozen, params, key, *rows)
            return (weight * losses).sum() / jnp.maximum(weight.sum(), 1)

        value, grads = jax.value_and_grad(loss)(state.params["base"])
        state = apply_gradients(state, self.base_optimizer, "base", grads)
        ema_base = functional.ema(state.ema_base, state.params["base"], self.config.base_ema_decay)
        return state.replace(ema_base=ema_base), {"base/loss": value}

    # --- parts ----------------------------------------------------------------------------------------------------

    def _embedded(
        self, state: EXPOState, key: Key[Array, ""], observation: Embedded | Observation, copy: BaseCopy = "online"
    ) -> Embedded:
        if isinstance(observation, Embedded):
            return observation
        return jax.lax.stop_gradient(self.embed(self._base(state, copy), key, observation))

    def _base(self, state: EXPOState, copy: BaseCopy) -> Params:
        averaged = self.config.base == "imitation" and copy == "average"  # a frozen base is its own average
        return self.base.pack(state.frozen, state.ema_base if averaged else state.params["base"])

    def _q_values(
        self, heads: Params, features: Float[Array, "b f"], actions: Float[Array, "b *n h a"]
    ) -> Float[Array, "e b *n"]:
        return self.ensemble.q_values(heads, features, actions)
