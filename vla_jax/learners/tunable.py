"""A policy network of which everything or a part trains: what imitation and EXPO do with a `Tuning`.

    params --split--> frozen, trained --pack--> packed --bind--> the network

Without a tuning everything is trained, and packed parameters are the trained ones.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Protocol

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from vla_jax.core import functional
from vla_jax.core.types import Demonstrations, Observation, Params
from vla_jax.learners.base import State
from vla_jax.policies.base import Policy


class Tuning(Protocol):
    """Which parameters train (`training/tuning.py`)."""

    def split(self, key: Key[Array, ""], params: Params) -> tuple[Params, Params]:
        """Frozen and trained part."""
        ...

    def freeze(self, params: Params) -> Params:
        """The frozen part alone."""
        ...

    def cast(self, trained: Params) -> Params:
        """The trained part as networks get it in training."""
        ...

    def join(self, frozen: Params, trained: Params) -> Params:
        """What `net.bind` takes."""
        ...


@dataclasses.dataclass(frozen=True)
class Tunable:
    policy: Callable[[nnx.Rngs], Policy]
    tuning: Tuning | None = None

    @cached_property
    def net(self) -> functional.Net[Policy]:
        return functional.describe(self.policy)[0]

    def split(self, key: Key[Array, ""], params: Params) -> tuple[Params, Params]:
        """Frozen and trained part of a policy's parameters, with fresh adapters drawn from `key`."""
        return ({}, params) if self.tuning is None else self.tuning.split(key, params)

    def freeze(self, params: Params) -> Params:
        """The frozen part alone."""
        return {} if self.tuning is None else self.tuning.freeze(params)

    def cast(self, trained: Params) -> Params:
        """The trained part as the network gets it in a training step."""
        return trained if self.tuning is None else self.tuning.cast(trained)

    def pack(self, frozen: Params, trained: Params) -> Params:
        """Both parts as one tree, for acting and for checkpoints."""
        return trained if self.tuning is None else {"frozen": frozen, "trained": trained}

    def bind(self, packed: Params) -> Policy:
        """The network, inside a trace."""
        return self.net.bind(packed if self.tuning is None else self.tuning.join(**packed))

    def losses(
        self,
        frozen: Params,
        trained: Params,
        key: Key[Array, ""],
        observation: Observation,
        actions: Float[Array, "b h a"],
        mask: Bool[Array, "b h"],
        weight: Float[Array, "b"],
    ) -> Float[Array, "b"]:
        """The policy's loss in a training step, on chunks that may be shorter than its: what they lack is masked."""
        policy = self.bind(self.pack(frozen, self.cast(trained)))
        pad = ((0, 0), (0, policy.action_horizon - actions.shape[1]), (0, 0))
        mask = jnp.pad(jnp.broadcast_to(mask[..., None], actions.shape), pad)
        return policy.loss(key, Demonstrations(observation, jnp.pad(actions, pad), mask, weight))[0]


class KeepsFrozen:
    """`HasFrozen` for a learner that has a `Tunable` called `base`, and `frozen` in its state."""

    def with_frozen(self, state: State, base: Params) -> State:
        """A state from a checkpoint with the part that never changed, of the policy that the run started from."""
        return state.replace(frozen=self.base.freeze(base))

    def without_frozen(self, state: State) -> State:
        return state.replace(frozen={})
