"""The plain multilayer perceptron that critics, edits and small heads share."""

import itertools
from collections.abc import Callable, Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float


class MLP(nnx.Module):
    """Hidden layers of linear, optional LayerNorm, activation; then one linear output layer.

    `output_scale` multiplies the initial output kernel: a small one starts a head near zero.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dims: Sequence[int],
        out_dim: int,
        rngs: nnx.Rngs,
        *,
        layer_norm: bool = False,
        activation: Callable[[Array], Array] = jax.nn.relu,
        output_scale: float = 1.0,
    ):
        dims = (in_dim, *hidden_dims)
        self.hidden = nnx.List(
            [nnx.Linear(a, b, rngs=rngs, kernel_init=_he_normal) for a, b in itertools.pairwise(dims)]
        )
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for width in hidden_dims] if layer_norm else [])
        output_init = nnx.initializers.variance_scaling(output_scale**2, "fan_in", "truncated_normal")
        self.output = nnx.Linear(dims[-1], out_dim, rngs=rngs, kernel_init=output_init)
        self.activation = activation

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        for i, layer in enumerate(self.hidden):
            x = layer(x)
            x = self.norms[i](x) if self.norms else x
            x = self.activation(x)
        return self.output(x)


_he_normal = nnx.initializers.he_normal()
