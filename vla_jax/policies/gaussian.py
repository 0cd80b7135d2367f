"""A squashed Gaussian over the whole chunk, on any backbone: the policy of SAC and RLPD as one that can be cloned.

One mode, a density in closed form, and one pass of a small head per sample. Actions live in (-1, 1).
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vla_jax.core import errors
from vla_jax.core.types import Demonstrations, Metrics, Observation
from vla_jax.nets.backbone import Backbone
from vla_jax.nets.mlp import Activation, Norm
from vla_jax.nets.tanh_gaussian import TanhGaussian


@dataclasses.dataclass(frozen=True)
class GaussianConfig:
    """Defaults: SERL's (arXiv 2401.16013)."""

    action_horizon: int
    action_dim: int
    hidden_dims: tuple[int, ...] = (256, 256)
    norm: Norm = "before"
    activation: Activation = "tanh"
    std_range: tuple[float, float] = (1e-3, 5.0)  # before the squashing; cloning needs a floor against overfitting

    def __post_init__(self):
        if min(self.action_horizon, self.action_dim) < 1 or not 0 < self.std_range[0] < self.std_range[1]:
            raise errors.ConfigError("GaussianConfig", expected="positive sizes and 0 < low < high", found=self)


class GaussianPolicy(nnx.Module):
    """A `Policy` with `HasPrefix` and `HasLogProb`."""

    def __init__(self, config: GaussianConfig, backbone: Backbone, rngs: nnx.Rngs):
        self.config, self.backbone = config, backbone
        self.action_horizon, self.action_dim = config.action_horizon, config.action_dim
        low, high = config.std_range
        self.head = TanhGaussian(
            backbone.feature_dim,
            config.hidden_dims,
            config.action_horizon * config.action_dim,
            rngs,
            log_std_range=(math.log(low), math.log(high)),
            norm=config.norm,
            activation=config.activation,
        )

    def prefix(self, observation: Observation) -> Any:
        return self.backbone.prefix(observation)

    def features(self, prefix: Any) -> Float[Array, "b f"]:
        return self.backbone.features(prefix)

    def loss(self, key: Key[Array, ""], batch: Demonstrations) -> tuple[Float[Array, "b"], Metrics]:
        """Negative log density in nats, the mean over the entries where `action_mask` is True: it may be below 0.

        `key` plays no part. Actions at or beyond the ends of the range count as just inside.
        """
        nats = -self._log_densities(self.prefix(batch.observation), batch.actions)
        count = jnp.maximum(batch.action_mask.sum((1, 2)), 1)
        return jnp.where(batch.action_mask, nats, 0.0).sum((1, 2)) / count, {}

    def log_prob(self, observation: Observation, actions: Float[Array, "b h a"]) -> Float[Array, "b"]:
        return self._log_densities(self.prefix(observation), actions).sum((1, 2))

    def mode(self, prefix: Any) -> Float[Array, "b h a"]:
        """The squashed mean: what to run when nothing is to be explored."""
        return self._chunks(self.head.mode(self._features(prefix)))

    def sample(self, key: Key[Array, ""], observation: Observation, num_samples: int = 1) -> Float[Array, "n b h a"]:
        return self.sample_from(key, self.prefix(observation), num_samples)

    def sample_from(self, key: Key[Array, ""], prefix: Any, num_samples: int = 1) -> Float[Array, "n b h a"]:
        features = self._features(prefix)
        noise = jax.random.normal(key, (num_samples, features.shape[0], self.action_horizon * self.action_dim))
        return jax.vmap(lambda noise: self._chunks(self.head.sample_from(features, noise)[0]))(noise)

    def _features(self, prefix: Any) -> Float[Array, "b f"]:
        return self.features(prefix).astype(jnp.float32)

    def _log_densities(self, prefix: Any, actions: Float[Array, "b h a"]) -> Float[Array, "b h a"]:
        flat = actions.reshape(actions.shape[0], -1)
        return self._chunks(self.head.log_densities(self._features(prefix), flat))

    def _chunks(self, flat: Float[Array, "b i"]) -> Float[Array, "b h a"]:
        return flat.reshape(flat.shape[0], self.action_horizon, self.action_dim)
