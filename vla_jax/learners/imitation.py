"""Imitation: minimize the policy's own loss on demonstrations, act with averaged parameters.

Behaviour cloning for any policy of `policies/`: what is learned (flow velocities, action tokens, ...) is the policy's
business. Acting uses an exponential moving average, as diffusion and flow policies need. With a `Tuning` only a part of
the parameters, or adapters beside them, has gradients, moments and an average.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jaxtyping import Array, Float, Int, Key

from vla_jax.core import errors, functional
from vla_jax.core.types import Demonstrations, Metrics, Observation, Params
from vla_jax.learners import accumulate
from vla_jax.learners.tunable import Tunable, Tuning
from vla_jax.policies.base import Policy


@dataclasses.dataclass(frozen=True)
class ImitationConfig:
    ema_decay: float = 0.995  # of the parameters that act; warmed up as (1 + step) / (10 + step)
    microbatches: int = 1  # parts of a batch whose gradients are summed one after another; saves activations

    def __post_init__(self):
        if not 0 <= self.ema_decay < 1:
            raise errors.ConfigError("ImitationConfig.ema_decay", expected="a value in [0, 1)", found=self.ema_decay)
        if self.microbatches < 1:
            raise errors.ConfigError("ImitationConfig.microbatches", expected="at least 1", found=self.microbatches)


class ImitationState(struct.PyTreeNode):
    step: Int[Array, ""]
    params: Params  # what trains
    ema_params: Params
    opt_state: optax.OptState
    frozen: Params = struct.field(default_factory=dict)  # never changes, and no checkpoint holds it


@dataclasses.dataclass(frozen=True)
class Imitation:
    """`actor_params` are the averaged parameters, with a `Tuning` as {"frozen": ..., "trained": ...}."""

    policy: Callable[[nnx.Rngs], Policy]
    optimizer: optax.GradientTransformation
    config: ImitationConfig = ImitationConfig()
    tuning: Tuning | None = None

    @cached_property
    def net(self) -> Tunable:
        return Tunable(self.policy, self.tuning)

    def init(self, key: Key[Array, ""], example_batch: Demonstrations) -> ImitationState:
        _, params = functional.init(self.policy, key)
        check_actions(self.net.net.bind(params), example_batch)
        frozen, params = self.net.split(jax.random.fold_in(key, 1), params)
        # a copy: donated buffers may not alias
        ema_params = jax.tree.map(jnp.copy, params)
        return ImitationState(jnp.zeros((), jnp.int32), params, ema_params, self.optimizer.init(params), frozen)

    def with_base(self, state: ImitationState, base: Params, key: Key[Array, ""]) -> ImitationState:
        """The fresh state with a pretrained policy in place of the random one."""
        frozen, params = self.net.split(key, base)
        return state.replace(params=params, ema_params=jax.tree.map(jnp.copy, params), frozen=frozen)

    def with_frozen(self, state: ImitationState, base: Params) -> ImitationState:
        """A state from a checkpoint with the part that never changed, of the policy that the run started from."""
        return state.replace(frozen=self.net.freeze(base))

    def without_frozen(self, state: ImitationState) -> ImitationState:
        return state.replace(frozen={})

    def update(
        self, state: ImitationState, key: Key[Array, ""], batch: Demonstrations
    ) -> tuple[ImitationState, Metrics]:
        """One gradient step on the weighted mean of the policy's loss, then the average moves."""

        def loss(trained: Params, key: Key[Array, ""], batch: Demonstrations) -> tuple[Float[Array, ""], Metrics]:
            return self.loss(self.net.pack(state.frozen, self.net.cast(trained)), key, batch)

        grads, metrics = accumulate.gradients(loss, state.params, key, batch, self.config.microbatches)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(self.config.ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema_params = functional.ema(state.ema_params, params, decay)
        metrics |= {"policy/grad_norm": optax.global_norm(grads)}
        return ImitationState(state.step + 1, params, ema_params, opt_state, state.frozen), metrics

    def loss(
        self, actor_params: Params, key: Key[Array, ""], batch: Demonstrations
    ) -> tuple[Float[Array, ""], Metrics]:
        losses, metrics = self.net.bind(actor_params).loss(key, batch)
        loss = (losses * batch.weight).sum() / jnp.maximum(batch.weight.sum(), 1e-6)
        return loss, {**metrics, "policy/loss": loss}

    def actor(self, state: ImitationState) -> Params:
        return self.net.pack(state.frozen, state.ema_params)

    def initial_memory(self, batch_size: int) -> tuple[()]:
        return ()

    def act(
        self, actor_params: Params, key: Key[Array, ""], observation: Observation, memory: tuple[()]
    ) -> tuple[Float[Array, "b h a"], tuple[()]]:
        return self.net.bind(actor_params).sample(key, observation, num_samples=1)[0], memory


def check_actions(policy: Policy, batch: Demonstrations) -> None:
    """Raise ConfigError when the batch's chunks are not of the policy's shape."""
    expected = (policy.action_horizon, policy.action_dim)
    if batch.actions.shape[-2:] != expected:
        raise errors.ConfigError(
            "the policy's actions are not the dataset's",
            expected=f"chunks of action_horizon x action_dim = {expected}, as the policy's config says",
            found=f"{tuple(batch.actions.shape[-2:])} in the data",
            fix="set the policy's action_horizon and action_dim to those of the data",
        )
