"""Imitation: minimize the policy's own loss on demonstrations, act with averaged parameters.

Behaviour cloning for any policy of `policies/`: what is learned (flow velocities, action tokens, ...) is the policy's
business. Acting uses an exponential moving average, as diffusion and flow policies need.
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
from vla_jax.policies.base import Policy


@dataclasses.dataclass(frozen=True)
class ImitationConfig:
    ema_decay: float = 0.995  # of the parameters that act; warmed up as (1 + step) / (10 + step)

    def __post_init__(self):
        if not 0 <= self.ema_decay < 1:
            raise errors.ConfigError("ImitationConfig.ema_decay", expected="a value in [0, 1)", found=self.ema_decay)


class ImitationState(struct.PyTreeNode):
    step: Int[Array, ""]
    params: Params
    ema_params: Params
    opt_state: optax.OptState


@dataclasses.dataclass(frozen=True)
class Imitation:
    policy: Callable[[nnx.Rngs], Policy]
    optimizer: optax.GradientTransformation
    config: ImitationConfig = ImitationConfig()

    @cached_property
    def net(self) -> functional.Net[Policy]:
        return functional.describe(self.policy)[0]

    def init(self, key: Key[Array, ""], example_batch: Demonstrations) -> ImitationState:
        _, params = functional.init(self.policy, key)
        check_actions(self.net.bind(params), example_batch)
        # a copy: donated buffers may not alias
        return ImitationState(
            jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), self.optimizer.init(params)
        )

    def update(
        self, state: ImitationState, key: Key[Array, ""], batch: Demonstrations
    ) -> tuple[ImitationState, Metrics]:
        """One gradient step on the weighted mean of the policy's loss, then the average moves."""
        (_, metrics), grads = jax.value_and_grad(self.loss, has_aux=True)(state.params, key, batch)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(self.config.ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema_params = functional.ema(state.ema_params, params, decay)
        metrics |= {"policy/grad_norm": optax.global_norm(grads)}
        return ImitationState(state.step + 1, params, ema_params, opt_state), metrics

    def loss(self, params: Params, key: Key[Array, ""], batch: Demonstrations) -> tuple[Float[Array, ""], Metrics]:
        losses, metrics = self.net.bind(params).loss(key, batch)
        loss = (losses * batch.weight).sum() / jnp.maximum(batch.weight.sum(), 1e-6)
        return loss, {**metrics, "policy/loss": loss}

    def actor(self, state: ImitationState) -> Params:
        return state.ema_params

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
