"""PA-RL: actor-critic fine-tuning of any policy that samples and imitates, without gradients through it.

Mark, Gao, Sampaio, Srirama, Sharma, Finn, Kumar, "Policy Agnostic RL" (arXiv 2412.06685). The policy proposes, the
critic improves the proposals as plain actions (keep the best few, move each a little uphill), and the policy imitates
the improved ones by its own supervised loss. The same operator (samplers/action_ascent.py) acts, says what the critic
bootstraps from, and makes the actions that its regularizer pushes down. So a flow, a diffusion model, bins or masked
tokens train alike: all that is asked of a policy is `sample` and `loss`.

    policy.sample --k chunks--> best m by Q --ascent--> improved --argmax--> acting, and the critic's a'
         ^                                                  |
         +------ policy.loss on one per state <-- softmax --+

Phases: after imitation the critic alone is trained on logged data around the frozen policy (`offline` of a config);
then `reset_optimizers`, and on experience both train, the policy first. Everything works on the executed part of a
chunk. Critics: Cal-QL (arXiv 2303.05479) with improved actions, or IQL (arXiv 2110.06169), which never asks the policy.

From the released code: the mean over the heads ranks and climbs, target heads are drawn with replacement, the averaged
policy proposes and the critic that trains ranks, the regularizer counts the policy's one best action as often as there
are uniform ones. Unlike it, heads share no layer, and IQL's value looks at a random subset of heads.
"""

import dataclasses
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
from vla_jax.learners.critic_ensemble import Conservative, CriticEnsemble, HLGauss, bootstrap, uniform_actions
from vla_jax.learners.tunable import KeepsFrozen, Tunable, Tuning
from vla_jax.losses import regression
from vla_jax.nets import critics
from vla_jax.policies.base import HasPrefix, Policy, require
from vla_jax.samplers import action_ascent
from vla_jax.samplers.action_ascent import AscentOptions


@dataclasses.dataclass(frozen=True)
class CalQL:
    """A critic of the improved policy, kept from rating unseen actions high."""

    conservative: Conservative = Conservative()
    next_actions_only: bool = False  # leave the improved actions of the state itself out of the regularizer


@dataclasses.dataclass(frozen=True)
class IQL:
    """A critic of the best actions in the data, by an expectile of its values over them."""

    expectile: float = 0.7  # in [0.5, 1)


@dataclasses.dataclass(frozen=True)
class PARLConfig:
    """Defaults: the released ones for tasks with states. For a VLA `num_samples` is 8 and `ascent.num_kept` 4."""

    execution_horizon: int = 1  # steps of a chunk that are run, scored and improved
    num_samples: int = 32  # k, of the policy per state
    ascent: AscentOptions = AscentOptions()
    critic_kind: CalQL | IQL = CalQL()
    head: HLGauss | None = HLGauss()  # None: a number, squared error
    critic_sees: Literal["state", "features"] = "state"  # features: the policy's own, and the state
    num_critics: int = 10
    num_min_critics: int = 2  # heads of the target's random subset; the regularizer draws its own
    replace_heads: bool = True  # whether a subset may hold one head twice
    critic: critics.CriticConfig = critics.CriticConfig((256, 256), activation="silu", output_scale=0.01)
    discount: float = 0.99  # per control step
    target_update_rate: float = 0.005
    policy_updates: int = 1  # per round; 0: the policy stays as it is
    distill_temperature: float | None = 1.0  # the target is drawn from softmax(q / this); None: the best (images, VLAs)
    base_ema_decay: float = 0.998  # of the policy that proposes

    def __post_init__(self):
        if self.ascent.num_kept > self.num_samples:
            raise errors.ConfigError(
                "PARLConfig.ascent.num_kept", expected=f"at most num_samples = {self.num_samples}", found=self.ascent
            )
        if not 0 < self.num_min_critics <= self.num_critics or self.policy_updates < 0:
            raise errors.ConfigError(
                "PARLConfig",
                expected="num_min_critics of 1 to num_critics, policy_updates of 0 or more",
                found=f"{self.num_min_critics} of {self.num_critics}, {self.policy_updates}",
            )


def offline(config: PARLConfig) -> PARLConfig:
    """The phase before experience: the critic alone."""
    return dataclasses.replace(config, policy_updates=0)


class PARLState(struct.PyTreeNode):
    step: Int[Array, ""]  # rounds
    params: Params  # base (what trains of it), critic, and for IQL value
    ema_base: Params
    target_critic: Params
    opt_state: dict[str, optax.OptState]
    frozen: Params = struct.field(default_factory=dict)  # of a tuned base: never changes, and no checkpoint holds it


@dataclasses.dataclass(frozen=True)
class PARL(KeepsFrozen):
    """`batch.extras` may hold `candidates` and `next_candidates` ("b n h a", the policy's samples made before): then
    nothing is sampled, which pays where the policy is large or frozen. Cal-QL asks for `mc_return`."""

    policy: Callable[[nnx.Rngs], Policy]
    action_dim: int
    feature_dim: int  # of what the critic sees: the state, with "features" the policy's and the state
    optimizer: optax.GradientTransformation  # critic and value, each with its own state
    base_optimizer: optax.GradientTransformation
    config: PARLConfig = PARLConfig()
    tuning: Tuning | None = None  # of the base

    @cached_property
    def base(self) -> Tunable:
        return Tunable(self.policy, self.tuning)

    @cached_property
    def ensemble(self) -> CriticEnsemble:
        config = self.config
        sizes = (self.feature_dim, config.execution_horizon, self.action_dim, config.num_critics)
        return CriticEnsemble(*sizes, config.critic, config.head)

    @cached_property
    def value(self) -> functional.Net[critics.StateValue]:
        return functional.describe(self._make_value)[0]

    def _make_value(self, rngs: nnx.Rngs) -> critics.StateValue:
        return critics.StateValue(self.feature_dim, self.config.critic, rngs)

    # --- state -----------------------------------------------------------------------------------------------------

    def init(self, key: Key[Array, ""], example_batch: Transitions | None = None) -> PARLState:
        """A state around a fresh policy; `with_base` gives it a pretrained one."""
        base_key, critic_key, value_key, tuning_key = jax.random.split(key, 4)
        base, params = functional.init(self.policy, base_key)
        if self.config.critic_sees == "features":
            require(base.bind(params), HasPrefix)
        frozen, trained = self.base.split(tuning_key, params)
        params = {"base": trained, "critic": self.ensemble.init(critic_key)}
        if isinstance(self.config.critic_kind, IQL):
            params["value"] = functional.init(self._make_value, value_key)[1]
        # copies: donated buffers may not alias
        ema_base, target_critic = (jax.tree.map(jnp.copy, params[name]) for name in ("base", "critic"))
        state = PARLState(jnp.zeros((), jnp.int32), params, ema_base, target_critic, {}, frozen)
        return self.reset_optimizers(state)

    def with_base(self, state: PARLState, base: Params, key: Key[Array, ""]) -> PARLState:
        """The state with a pretrained policy in place of the fresh one; `key` is for adapters."""
        frozen, trained = self.base.split(key, base)
        state = state.replace(
            params={**state.params, "base": trained}, ema_base=jax.tree.map(jnp.copy, trained), frozen=frozen
        )
        return self.reset_optimizers(state)

    def with_critics(self, state: PARLState, earlier: PARLState) -> PARLState:
        """The state with the critics of an earlier phase beside the policy that it has; `earlier` gives them away."""
        params = {**earlier.params, "base": state.params["base"]}
        return self.reset_optimizers(state.replace(params=params, target_critic=earlier.target_critic))

    def reset_optimizers(self, state: PARLState) -> PARLState:
        """All moments forgotten, as the released code does between the offline and the online phase."""
        opt_state = {name: self._optimizer(name).init(tree) for name, tree in state.params.items()}
        return state.replace(opt_state=opt_state)

    # --- the improved policy ---------------------------------------------------------------------------------------

    def candidates(self, base_params: Params, key: Key[Array, ""], observation: Observation) -> Float[Array, "b n h a"]:
        """The policy's samples, their executed part."""
        chunks = self.base.bind(base_params).sample(key, observation, self.config.num_samples)
        return jnp.swapaxes(chunks, 0, 1)[:, :, : self.config.execution_horizon].astype(jnp.float32)

    def features(self, base_params: Params, observation: Observation) -> Float[Array, "b f"]:
        """What the critic sees."""
        if self.config.critic_sees == "state":
            return observation.state.astype(jnp.float32)
        policy = self.base.bind(base_params)
        features = policy.features(policy.prefix(observation))
        return jnp.concatenate([features.astype(jnp.float32), observation.state.astype(jnp.float32)], axis=-1)

    def improve(
        self, critic_params: Params, features: Float[Array, "b f"], candidates: Float[Array, "b n h a"]
    ) -> tuple[Float[Array, "b m h a"], Float[Array, "b m"]]:
        """The operator of the paper on the mean of the heads: the best candidates, each moved uphill, best first."""
        batch_size, _, *chunk = candidates.shape

        def mean_value(flat: Float[Array, "b n d"]) -> Float[Array, "b n"]:
            return self.ensemble.q_values(critic_params, features, flat.reshape(*flat.shape[:2], *chunk)).mean(axis=0)

        flat = candidates.reshape(*candidates.shape[:2], -1)
        actions, q_values, _ = action_ascent.optimize_actions(mean_value, flat, self.config.ascent)
        return actions.reshape(batch_size, -1, *chunk), q_values

    def improved(
        self,
        critic_params: Params,
        features: Float[Array, "b f"],
        candidates: Float[Array, "b n h a"],
        key: Key[Array, ""] | None = None,
        temperature: float | None = None,
    ) -> Float[Array, "b h a"]:
        """One chunk of the implied policy per state: the best, or with a temperature a draw by `key`."""
        actions, q_values = self.improve(critic_params, features, candidates)
        index = action_ascent.choose(key, q_values, temperature)
        return jnp.take_along_axis(actions, index[:, None, None, None], axis=1)[:, 0]

    def actor(self, state: PARLState) -> Params:
        return {"base": self.base.pack(state.frozen, state.ema_base), "critic": state.params["critic"]}

    def initial_memory(self, batch_size: int) -> tuple[()]:
        return ()

    def act(
        self, actor_params: Params, key: Key[Array, ""], observation: Observation, memory: tuple[()]
    ) -> tuple[Float[Array, "b h a"], tuple[()]]:
        return self.explore(actor_params, key, observation), memory

    def observe(
        self, actor_params: Params, key: Key[Array, ""], observation: Observation
    ) -> tuple[Observation, Observation]:
        """For collection: what `explore` needs, and what goes into the buffer as the observation."""
        return observation, observation

    def explore(self, actor_params: Params, key: Key[Array, ""], observation: Observation) -> Float[Array, "b h a"]:
        """The best improved chunk. Exploration is the policy's own: its samples differ."""
        base, critic = actor_params["base"], actor_params["critic"]
        return self.improved(critic, self.features(base, observation), self.candidates(base, key, observation))

    # --- learning --------------------------------------------------------------------------------------------------

    def update(self, state: PARLState, key: Key[Array, ""], batch: Transitions) -> tuple[PARLState, Metrics]:
        """Rounds of updates. The batch's leaves have leading axes `rounds, critic_updates, b`.

        Each round makes `policy_updates` of the policy, on the first minibatches over and over, and then all its critic
        updates. `update_policy` and `update_critic` are there for batches of different sources.
        """
        return scan_updates(self._round, state, key, batch)

    def _round(self, state: PARLState, inputs) -> tuple[PARLState, Metrics]:
        key, batch = inputs
        policy_key, critic_key = jax.random.split(key)
        num_minibatches, metrics = batch.rewards.shape[0], {}

        def policy_step(state, inputs):
            number, key = inputs
            minibatch = jax.tree.map(lambda leaf: leaf[number % num_minibatches], batch)
            return self.update_policy(state, key, minibatch)

        if self.config.policy_updates:
            numbers = jnp.arange(self.config.policy_updates)
            state, metrics = jax.lax.scan(policy_step, state, (numbers, jax.random.split(policy_key, numbers.size)))

        def critic_step(state, inputs):
            return self.update_critic(state, *inputs)

        state, critic_metrics = jax.lax.scan(critic_step, state, (jax.random.split(critic_key, num_minibatches), batch))
        metrics = {name: values.mean() for name, values in (metrics | critic_metrics).items()}
        return state.replace(step=state.step + 1), metrics

    def update_policy(self, state: PARLState, key: Key[Array, ""], batch: Transitions) -> tuple[PARLState, Metrics]:
        """One step of the policy's own loss on one improved chunk per state; then its average moves."""
        candidate_key, choice_key, loss_key = jax.random.split(key, 3)
        features, candidates = self._look(state, candidate_key, batch.observation, batch.extras.get("candidates"))
        temperature = self.config.distill_temperature
        targets = self.improved(state.params["critic"], features, candidates, choice_key, temperature)
        targets = jax.lax.stop_gradient(targets)

        def loss(params: Params) -> Float[Array, ""]:
            mask, weight = jnp.ones(targets.shape[:2], bool), jnp.ones(targets.shape[0])
            return self.base.losses(state.frozen, params, loss_key, batch.observation, targets, mask, weight).mean()

        value, grads = jax.value_and_grad(loss)(state.params["base"])
        state = self._apply(state, "base", grads)
        ema_base = functional.ema(state.ema_base, state.params["base"], self.config.base_ema_decay)
        return state.replace(ema_base=ema_base), {"policy/loss": value}

    def update_critic(self, state: PARLState, key: Key[Array, ""], batch: Transitions) -> tuple[PARLState, Metrics]:
        """One step of the critic, and of IQL's value; then the target moves."""
        step = self._iql_step if isinstance(self.config.critic_kind, IQL) else self._cal_ql_step
        state, metrics = step(state, key, batch)
        rate = self.config.target_update_rate
        target_critic = optax.incremental_update(state.params["critic"], state.target_critic, rate)
        return state.replace(target_critic=target_critic), metrics

    def _cal_ql_step(self, state: PARLState, key: Key[Array, ""], batch: Transitions) -> tuple[PARLState, Metrics]:
        now_key, next_key, loss_key = jax.random.split(key, 3)
        kind = self.config.critic_kind
        following, next_candidates = self._look(
            state, next_key, batch.next_observation, batch.extras.get("next_candidates")
        )
        next_actions = self.improved(state.params["critic"], following, next_candidates)
        policy_actions = [next_actions]
        if kind.next_actions_only:
            features = self._features(state, batch.observation)
        else:
            features, candidates = self._look(state, now_key, batch.observation, batch.extras.get("candidates"))
            policy_actions.append(self.improved(state.params["critic"], features, candidates))
        target_key, head_key, uniform_key = jax.random.split(loss_key, 3)
        next_values = self.ensemble.subset_minimum(
            state.target_critic, self._heads(target_key), following, next_actions
        )
        targets = jax.lax.stop_gradient(self._targets(batch, next_values))
        improved = jax.lax.stop_gradient(jnp.stack(policy_actions, axis=1))
        uniform = uniform_actions(uniform_key, batch.actions, kind.conservative.num_actions)

        config, heads = kind.conservative, self._heads(head_key)
        returns = _mc_return(batch) if config.calibrated else None

        def loss(params: Params) -> tuple[Float[Array, ""], Metrics]:
            return self.ensemble.conservative_loss(
                params, features, batch.actions, targets, uniform, improved, returns, heads, config, config.num_actions
            )

        grads, metrics = jax.grad(loss, has_aux=True)(state.params["critic"])
        return self._apply(state, "critic", grads), metrics

    def _iql_step(self, state: PARLState, key: Key[Array, ""], batch: Transitions) -> tuple[PARLState, Metrics]:
        features, following = (self._features(state, seen) for seen in (batch.observation, batch.next_observation))
        heads = self._heads(key)
        logged = self.ensemble.subset_minimum(state.target_critic, heads, features, batch.actions)
        next_values = self.value.bind(state.params["value"])(following)
        targets = jax.lax.stop_gradient(self._targets(batch, next_values))

        def value_loss(params: Params) -> Float[Array, ""]:
            values = self.value.bind(params)(features)
            return regression.expectile_loss(values, logged, self.config.critic_kind.expectile).mean()

        def critic_loss(params: Params):
            outputs = self.ensemble.outputs(params, features, batch.actions)
            return self.ensemble.td_loss(outputs, targets).mean(), self.ensemble.read(outputs).mean()

        value, value_grads = jax.value_and_grad(value_loss)(state.params["value"])
        (td_loss, q_values), grads = jax.value_and_grad(critic_loss, has_aux=True)(state.params["critic"])
        state = self._apply(self._apply(state, "critic", grads), "value", value_grads)
        metrics = {"critic/td_loss": td_loss, "value/loss": value, "critic/q_values": q_values}
        return state, metrics | {"critic/targets": targets.mean()}

    # --- parts -----------------------------------------------------------------------------------------------------

    def _targets(self, batch: Transitions, next_values: Float[Array, "b"]) -> Float[Array, "b"]:
        return bootstrap(batch.rewards, batch.discounts, batch.action_mask, self.config.discount, next_values)

    def _heads(self, key: Key[Array, ""]) -> Int[Array, "m"]:
        config = self.config
        return critics.random_heads(key, config.num_critics, config.num_min_critics, replace=config.replace_heads)

    def _look(
        self, state: PARLState, key: Key[Array, ""], observation: Any, cached: Float[Array, "b n h a"] | None
    ) -> tuple[Float[Array, "b f"], Float[Array, "b n h a"]]:
        """Features and candidates of the averaged policy, without gradients."""
        if cached is None:
            base = self.base.pack(state.frozen, state.ema_base)
            cached = jax.lax.stop_gradient(self.candidates(base, key, observation))
        return self._features(state, observation), cached

    def _features(self, state: PARLState, observation: Observation) -> Float[Array, "b f"]:
        return jax.lax.stop_gradient(self.features(self.base.pack(state.frozen, state.ema_base), observation))

    def _optimizer(self, name: str) -> optax.GradientTransformation:
        return self.base_optimizer if name == "base" else self.optimizer

    def _apply(self, state: PARLState, name: str, grads: Params) -> PARLState:
        return apply_gradients(state, self._optimizer(name), name, grads)


def _mc_return(batch: Transitions) -> Float[Array, "b"]:
    if "mc_return" not in batch.extras:
        raise errors.DataError(
            "PARL: calibration needs the data's returns",
            expected='batch.extras["mc_return"], the return from every row to the end of its episode',
            found=sorted(batch.extras),
            fix="data.trajectory_sets.with_mc_returns makes them; or Conservative(calibrated=False), which is CQL",
        )
    return batch.extras["mc_return"]
