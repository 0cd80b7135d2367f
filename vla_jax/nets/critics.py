"""State-action values of action chunks, and the reductions over an ensemble of them.

An ensemble is `functional.init_ensemble(lambda rngs: ChunkCritic(...), key, n)`; its values carry the ensemble axis `e`
first.
"""

import math
from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from vla_jax.core.types import Params
from vla_jax.nets.mlp import MLP


class ChunkCritic(nnx.Module):
    """Q(features, chunk): an MLP with LayerNorm over the features and the flattened chunk.

    The first layer keeps the two inputs apart, so that scoring many chunks of one state multiplies its features once.
    """

    def __init__(
        self, feature_dim: int, action_horizon: int, action_dim: int, hidden_dims: Sequence[int], rngs: nnx.Rngs
    ):
        width, chunk_dim = hidden_dims[0], action_horizon * action_dim
        init = nnx.initializers.normal(math.sqrt(2 / (feature_dim + chunk_dim)))  # He's, for the joint input
        self.from_features = nnx.Linear(feature_dim, width, rngs=rngs, kernel_init=init)
        self.from_actions = nnx.Linear(chunk_dim, width, rngs=rngs, kernel_init=init, use_bias=False)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.trunk = MLP(width, hidden_dims[1:], 1, rngs, layer_norm=True, output_scale=0.1)

    def __call__(self, features: Float[Array, "b f"], actions: Float[Array, "b *n h a"]) -> Float[Array, "b *n"]:
        batch, *samples, h, a = actions.shape
        from_features = self.from_features(features).reshape(batch, *(1 for _ in samples), -1)
        x = from_features + self.from_actions(actions.reshape(batch, *samples, h * a))
        return self.trunk(jax.nn.relu(self.norm(x)))[..., 0]


def random_heads(
    key: Key[Array, ""], ensemble_size: int, subset_size: int, *, replace: bool = False
) -> Int[Array, "m"]:
    """Which heads of an ensemble a target looks at.

    Source: REDQ (arXiv 2101.05982), algorithm 1, draws without replacement; some code draws with.
    """
    return jax.random.choice(key, ensemble_size, (subset_size,), replace=replace)


def take_heads(params: Params, heads: Int[Array, "m"]) -> Params:
    """The parameters of some members of an ensemble: evaluating these alone costs `m / e` of the whole."""
    return jax.tree.map(lambda leaf: leaf[heads], params)
