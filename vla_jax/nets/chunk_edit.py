"""A bounded correction of an action chunk: a squashed Gaussian that sees the state's features and the chunk itself."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vla_jax.nets.tanh_gaussian import TanhGaussian


class ChunkEdit(nnx.Module):
    """`actions + delta` with `delta` in [-scale, scale] per entry; with `clip` the sum stays in [-1, 1]."""

    def __init__(
        self, feature_dim: int, chunk_dim: int, hidden_dims: Sequence[int], scale: float, clip: bool, rngs: nnx.Rngs
    ):
        self.delta = TanhGaussian(feature_dim + chunk_dim, hidden_dims, chunk_dim, rngs, scale=scale)
        self.clip = clip

    def mode(self, features: Float[Array, "b f"], actions: Float[Array, "b *n h a"]) -> Float[Array, "b *n h a"]:
        return self._add(actions, self.delta.mode(_joint(features, actions)))

    def sample(
        self, key: Key[Array, ""], features: Float[Array, "b f"], actions: Float[Array, "b *n h a"]
    ) -> tuple[Float[Array, "b *n h a"], Float[Array, "b *n"]]:
        """Reparameterized edited chunks, and the log density of their `delta`."""
        delta, log_prob = self.delta.sample(key, _joint(features, actions))
        return self._add(actions, delta), log_prob

    def _add(self, actions: Float[Array, "*b h a"], delta: Float[Array, "*b i"]) -> Float[Array, "*b h a"]:
        edited = actions + delta.reshape(actions.shape)
        return jnp.clip(edited, -1, 1) if self.clip else edited


def _joint(features: Float[Array, "b f"], actions: Float[Array, "b *n h a"]) -> Float[Array, "b *n i"]:
    flat = actions.reshape(*actions.shape[:-2], -1)
    features = features.reshape(features.shape[0], *(1 for _ in flat.shape[1:-1]), features.shape[-1])
    return jnp.concatenate([jnp.broadcast_to(features, (*flat.shape[:-1], features.shape[-1])), flat], axis=-1)
