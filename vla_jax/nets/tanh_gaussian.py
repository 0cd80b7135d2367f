"""The squashed Gaussian of SAC with a range: `actions = scale * tanh(mean + std * noise)`."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vla_jax.nets.mlp import MLP

LOG_STD_RANGE = (-20.0, 2.0)


class TanhGaussian(nnx.Module):
    """An MLP that outputs mean and log standard deviation of a squashed Gaussian in [-scale, scale] per dim."""

    def __init__(
        self,
        in_dim: int,
        hidden_dims: Sequence[int],
        out_dim: int,
        rngs: nnx.Rngs,
        *,
        scale: float = 1.0,
        initial_log_std: float = 0.0,
    ):
        self.mlp = MLP(in_dim, hidden_dims, 2 * out_dim, rngs, norm="before", output_scale=0.01)
        self.scale, self.initial_log_std = scale, initial_log_std

    def parameters(self, x: Float[Array, "*b i"]) -> tuple[Float[Array, "*b o"], Float[Array, "*b o"]]:
        """Mean and log standard deviation before the squashing; the latter clipped to [-20, 2]."""
        mean, log_std = jnp.split(self.mlp(x), 2, axis=-1)
        return mean, jnp.clip(log_std + self.initial_log_std, *LOG_STD_RANGE)

    def mode(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        return self.scale * jnp.tanh(self.parameters(x)[0])

    def sample(self, key: Key[Array, ""], x: Float[Array, "*b i"]) -> tuple[Float[Array, "*b o"], Float[Array, "*b"]]:
        """A reparameterized sample and its log density, in the scaled space (`tanh` and `scale` Jacobians included)."""
        mean, log_std = self.parameters(x)
        pre_tanh = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        return self.scale * jnp.tanh(pre_tanh), log_density(pre_tanh, mean, log_std, self.scale)


def log_density(
    pre_tanh: Float[Array, "*b o"], mean: Float[Array, "*b o"], log_std: Float[Array, "*b o"], scale: float
) -> Float[Array, "*b"]:
    """log p(scale * tanh(u)) at `u = pre_tanh`, summed over the last axis.

    The tanh Jacobian is written as log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)), which stays finite where the
    plain form rounds to log 0. Source: SAC (arXiv 1812.05905), appendix C; the scale adds -log(scale) per dim.
    """
    gaussian = -0.5 * jnp.square((pre_tanh - mean) / jnp.exp(log_std)) - log_std - 0.5 * math.log(2 * math.pi)
    jacobian = 2 * (math.log(2) - pre_tanh - jax.nn.softplus(-2 * pre_tanh)) + math.log(scale)
    return (gaussian - jacobian).sum(axis=-1)
