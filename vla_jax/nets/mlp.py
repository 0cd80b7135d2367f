"""The plain multilayer perceptron that critics, edits and small heads share."""

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import jax
from flax import nnx
from jaxtyping import Array, Float

from vla_jax.nets.layer_norm import layer_norm

Norm = Literal["none", "before", "after"]  # where LayerNorm stands in a hidden layer, seen from its activation
Activation = Literal["relu", "tanh", "gelu", "silu"]  # gelu in its tanh form, flax's default
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "tanh": jax.nn.tanh,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
}


class MLP(nnx.Module):
    """Hidden layers of linear, activation and LayerNorm, the latter before or after it; then one linear output layer.

    `output_scale` multiplies the initial output kernel: a small one starts a head near zero.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dims: Sequence[int],
        out_dim: int,
        rngs: nnx.Rngs,
        *,
        norm: Norm = "none",
        activation: Activation = "relu",
        output_scale: float = 1.0,
    ):
        dims = (in_dim, *hidden_dims)
        self.hidden = nnx.List(
            [nnx.Linear(a, b, rngs=rngs, kernel_init=_he_normal) for a, b in itertools.pairwise(dims)]
        )
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for width in hidden_dims] if norm != "none" else [])
        output_init = nnx.initializers.variance_scaling(output_scale**2, "fan_in", "truncated_normal")
        self.output = nnx.Linear(dims[-1], out_dim, rngs=rngs, kernel_init=output_init)
        self.norm, self.activation = norm, activation

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        return self.after_first(self.hidden[0](x)) if self.hidden else self.output(x)

    def after_first(self, x: Float[Array, "*b d"]) -> Float[Array, "*b o"]:
        """The rest of the network, from what its first hidden layer's product gives."""
        x = self._activate(x, 0)
        for i, layer in enumerate(self.hidden[1:], start=1):
            x = self._activate(layer(x), i)
        return self.output(x)

    def _activate(self, x: Float[Array, "*b d"], i: int) -> Float[Array, "*b d"]:
        if self.norm == "before":
            x = layer_norm(self.norms[i], x)
        x = ACTIVATIONS[self.activation](x)
        return layer_norm(self.norms[i], x) if self.norm == "after" else x


_he_normal = nnx.initializers.he_normal()
