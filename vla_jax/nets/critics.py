"""State-action values of action chunks, state values, and the reductions over an ensemble of them.

An ensemble is `functional.init_ensemble(lambda rngs: ChunkCritic(...), key, n)`; its values carry the ensemble axis `e`
first.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from vla_jax.core import functional, runtime
from vla_jax.core.types import Params
from vla_jax.nets.mlp import MLP, Activation, Norm


@dataclasses.dataclass(frozen=True)
class CriticConfig:
    """The network of a critic; the defaults are RLPD's, with three layers (arXiv 2302.02948)."""

    hidden_dims: tuple[int, ...] = (256, 256, 256)
    norm: Norm = "before"
    activation: Activation = "relu"
    output_scale: float = 0.1
    num_bins: int | None = None  # outputs are logits of a distribution over so many bins (losses/categorical.py)


class ChunkCritic(nnx.Module):
    """Q(features, chunk): an MLP with LayerNorm over the features and the flattened chunk.

    Scoring many chunks of one state multiplies its features once. With `num_bins` the values have a last axis of
    logits.
    """

    def __init__(self, feature_dim: int, action_horizon: int, action_dim: int, config: CriticConfig, rngs: nnx.Rngs):
        self.mlp = _mlp(feature_dim + action_horizon * action_dim, config.hidden_dims, config, rngs)
        self.config = config

    def __call__(self, features: Float[Array, "b f"], actions: Float[Array, "b *n h a"]) -> Float[Array, "b *n"]:
        *rows, h, a = actions.shape
        chunks = actions.reshape(*rows, h * a)
        first = self.mlp.hidden[0]
        kernel, split = first.kernel[...], features.shape[-1]
        if chunks.ndim == 2:
            x = _product(features, chunks, kernel)
        else:
            of_features = features @ kernel[:split]
            x = jnp.expand_dims(of_features, tuple(range(1, chunks.ndim - 1))) + chunks @ kernel[split:]
        return _values(self.mlp.after_first(x + jnp.broadcast_to(first.bias[...], x.shape)), self.config)


class StateValue(nnx.Module):
    """V(features), with the layers of a critic."""

    def __init__(self, feature_dim: int, config: CriticConfig, rngs: nnx.Rngs):
        self.mlp = _mlp(feature_dim, config.hidden_dims, config, rngs)
        self.config = config

    def __call__(self, features: Float[Array, "*b f"]) -> Float[Array, "*b"]:
        return _values(self.mlp(features), self.config)


def _mlp(in_dim: int, hidden_dims: tuple[int, ...], config: CriticConfig, rngs: nnx.Rngs) -> MLP:
    return MLP(
        in_dim,
        hidden_dims,
        config.num_bins or 1,
        rngs,
        norm=config.norm,
        activation=config.activation,
        output_scale=config.output_scale,
    )


@jax.custom_vjp
def _product(
    features: Float[Array, "b f"], chunks: Float[Array, "b c"], kernel: Float[Array, "i d"]
) -> Float[Array, "b d"]:
    """`[features, chunks] @ kernel`; the gradient in one of the two costs no product for the other."""
    return jnp.concatenate([features, chunks], axis=-1) @ kernel


def _product_forward(features, chunks, kernel):
    return _product(features, chunks, kernel), (features, chunks, kernel)


def _product_backward(kept, slopes):
    features, chunks, kernel = kept
    split = features.shape[-1]
    of_kernel = jnp.concatenate([features, chunks], axis=-1).T @ slopes
    return slopes @ kernel[:split].T, slopes @ kernel[split:].T, of_kernel


_product.defvjp(_product_forward, _product_backward)


def _values(outputs: Float[Array, "*b o"], config: CriticConfig) -> Float[Array, "..."]:
    return outputs[..., 0] if config.num_bins is None else outputs


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


def mean_loss(
    function: Callable[..., tuple[Float[Array, ""], Any]], heads: Params, features: Float[Array, "b f"], *rest: Array
) -> tuple[Float[Array, ""], Any]:
    """The mean over an ensemble of `function(head, features, *rest) -> (loss, aux)`, and that of what comes besides.

    Its gradients in heads and features are made one head after another where one core does it all: what one head holds
    fits its cache, what ten do does not. Several cores have all heads at once. There is no gradient in `rest`, nor of
    `aux`.
    """
    graded = jax.value_and_grad(function, argnums=(0, 1), has_aux=True)

    @jax.custom_vjp
    def mean(heads, features, *rest):
        return _mean(_each_head(lambda head: function(head, features, *rest), heads))

    def forward(heads, features, *rest):
        values, (of_heads, of_features) = _each_head(lambda head: graded(head, features, *rest), heads)
        return _mean(values), (of_heads, of_features.mean(axis=0), rest)

    def backward(made, cotangents):
        of_heads, of_features, rest = made
        scale = cotangents[0] / jax.tree.leaves(of_heads)[0].shape[0]
        none = jax.tree.map(jnp.zeros_like, rest)
        return (jax.tree.map(lambda leaf: scale * leaf, of_heads), cotangents[0] * of_features, *none)

    mean.defvjp(forward, backward)
    return mean(heads, features, *rest)


def mean_value(
    function: Callable[[Params, Float[Array, "b h a"]], Float[Array, "b"]], heads: Params, chunks: Float[Array, "b h a"]
) -> Float[Array, "b"]:
    """The mean over an ensemble of `function(head, chunks)`, with a gradient in the chunks alone; rows must not mix.

    Made one head after another on one core, as `mean_loss` is.
    """

    def with_slope(head: Params):
        q_values, back = jax.vjp(lambda chunks: function(head, chunks), still)
        return q_values, back(jnp.ones_like(q_values))[0]

    still = jax.lax.stop_gradient(chunks)
    q_values, slopes = _mean(_each_head(with_slope, heads))
    # adds nothing but the gradient
    return jax.lax.stop_gradient(q_values) + (jax.lax.stop_gradient(slopes) * (chunks - still)).sum((-2, -1))


def _each_head(function: Callable[[Params], Any], heads: Params) -> Any:
    one_core = jax.default_backend() == "cpu" and runtime.num_cores() == 1
    return jax.lax.map(function, heads) if one_core else functional.each_member(function, heads)


def _mean(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.mean(axis=0), tree)
