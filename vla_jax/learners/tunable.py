"""A policy network of which everything or a part trains: what imitation and EXPO do with a `Tuning`.

    params --split--> frozen, trained --pack--> packed --bind--> the network

Without a tuning everything is trained, and packed parameters are the trained ones.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Protocol

from flax import nnx
from jaxtyping import Array, Key

from vla_jax.core import functional
from vla_jax.core.types import Params
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
