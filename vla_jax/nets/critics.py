"""State-action values of action chunks, and the reductions over an ensemble of them.

An ensemble is `functional.init_ensemble(lambda rngs: ChunkCritic(...), key, n)`; its values carry the ensemble axis `e`
first.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from vla_jax.nets.mlp import MLP


class ChunkCritic(nnx.Module):
    """Q(features, chunk): an MLP with LayerNorm over the features and the flattened chunk."""

    def __init__(
        self, feature_dim: int, action_horizon: int, action_dim: int, hidden_dims: Sequence[int], rngs: nnx.Rngs
    ):
        self.mlp = MLP(
            feature_dim + action_horizon * action_dim, hidden_dims, 1, rngs, layer_norm=True, output_scale=0.1
        )

    def __call__(self, features: Float[Array, "*b f"], actions: Float[Array, "*b h a"]) -> Float[Array, "*b"]:
        flat = actions.reshape(*actions.shape[:-2], -1)
        return self.mlp(jnp.concatenate([features, flat], axis=-1))[..., 0]


def random_heads(
    key: Key[Array, ""], ensemble_size: int, subset_size: int, *, replace: bool = False
) -> Int[Array, "m"]:
    """Which heads of an ensemble a target looks at.

    Source: REDQ (arXiv 2101.05982), algorithm 1, draws without replacement; some code draws with.
    """
    return jax.random.choice(key, ensemble_size, (subset_size,), replace=replace)


def subset_min(q_values: Float[Array, "e *b"], heads: Int[Array, "m"]) -> Float[Array, "*b"]:
    """The minimum over the chosen heads."""
    return q_values[heads].min(axis=0)
