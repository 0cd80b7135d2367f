"""The one place where perception and action decoding meet.

    observation --prefix()--> Prefix --suffix()--> one vector per action token
                                 \\--features()--> one vector per example (critics, probes)

A policy encodes an observation once and decodes from the same `Prefix` many times: flow steps, tokens, samples.
"""

from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vla_jax.core.types import Observation

Prefix = Any  # a pytree of arrays; only its backbone looks inside, policies hand it back unchanged


@runtime_checkable
class Backbone(Protocol):
    """A perception tower with a suffix decoder: `nets/vla_transformer.py` and `nets/conv_film.py` are two."""

    suffix_width: int  # d, width of suffix tokens
    feature_dim: int  # f, width of `features`

    def prefix(self, observation: Observation) -> Prefix:
        """Encode images, prompt and state. Nothing in the suffix can change it, so it may be cached exactly."""
        ...

    def suffix(
        self,
        prefix: Prefix,
        tokens: Float[Array, "b n d"],
        *,
        condition: Float[Array, "b d"] | None = None,
        causal: bool = False,
    ) -> Float[Array, "b n d"]:
        """Decode `n` tokens that see the whole prefix and each other (with `causal`: themselves and earlier ones).

        `condition` modulates every layer's norm (flow time); None leaves the norms plain.
        """
        ...

    def features(self, prefix: Prefix) -> Float[Array, "b f"]:
        """One vector per example that says what the policy sees."""
        ...


class Encoder(nnx.Module):
    """Observations to one vector each: a backbone's features and the state. For critics and actors that train it."""

    def __init__(self, backbone: Backbone):
        self.backbone = backbone

    def __call__(self, observation: Observation) -> Float[Array, "b f"]:
        features = self.backbone.features(self.backbone.prefix(observation))
        return jnp.concatenate([features, observation.state], axis=-1).astype(jnp.float32)
