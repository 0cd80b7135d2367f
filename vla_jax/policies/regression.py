"""One chunk per observation, by least squares, on any backbone: the plain baseline, and TD3's kind of actor."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vla_jax.core import errors
from vla_jax.core.types import Demonstrations, Metrics, Observation
from vla_jax.losses import flow
from vla_jax.nets.backbone import Backbone
from vla_jax.nets.mlp import MLP, Activation, Norm


@dataclasses.dataclass(frozen=True)
class RegressionConfig:
    action_horizon: int
    action_dim: int
    hidden_dims: tuple[int, ...] = (256, 256)
    norm: Norm = "before"
    activation: Activation = "relu"
    squashed: bool = False  # by tanh into (-1, 1), where a critic pulls at the actions

    def __post_init__(self):
        if min(self.action_horizon, self.action_dim) < 1:
            raise errors.ConfigError("RegressionConfig", expected="positive sizes", found=self)


class RegressionPolicy(nnx.Module):
    """A `Policy` with `HasPrefix`, all of whose samples are the same."""

    def __init__(self, config: RegressionConfig, backbone: Backbone, rngs: nnx.Rngs):
        self.config, self.backbone = config, backbone
        self.action_horizon, self.action_dim = config.action_horizon, config.action_dim
        chunk_dim = config.action_horizon * config.action_dim
        shape = dict(norm=config.norm, activation=config.activation, output_scale=0.1)
        self.head = MLP(backbone.feature_dim, config.hidden_dims, chunk_dim, rngs, **shape)

    def prefix(self, observation: Observation) -> Any:
        return self.backbone.prefix(observation)

    def features(self, prefix: Any) -> Float[Array, "b f"]:
        return self.backbone.features(prefix)

    def loss(self, key: Key[Array, ""], batch: Demonstrations) -> tuple[Float[Array, "b"], Metrics]:
        """Squared error, the mean over the entries where `action_mask` is True; `key` plays no part."""
        chunk = self.mode(self.prefix(batch.observation))
        return flow.masked_squared_error(chunk, batch.actions, batch.action_mask), {}

    def mode(self, prefix: Any) -> Float[Array, "b h a"]:
        """The chunk."""
        flat = self.head(self.features(prefix).astype(jnp.float32))
        flat = jnp.tanh(flat) if self.config.squashed else flat
        return flat.reshape(flat.shape[0], self.action_horizon, self.action_dim)

    def sample(self, key: Key[Array, ""], observation: Observation, num_samples: int = 1) -> Float[Array, "n b h a"]:
        return self.sample_from(key, self.prefix(observation), num_samples)

    def sample_from(self, key: Key[Array, ""], prefix: Any, num_samples: int = 1) -> Float[Array, "n b h a"]:
        """The same chunk so many times; `key` plays no part."""
        chunk = self.mode(prefix)
        return jnp.broadcast_to(chunk[None], (num_samples, *chunk.shape))
