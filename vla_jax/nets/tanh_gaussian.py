"""The squashed Gaussian of SAC with a range: `actions = scale * tanh(mean + std * noise)`."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vla_jax.nets.mlp import MLP, Activation, Norm

LOG_STD_RANGE = (-20.0, 2.0)
_MARGIN = 1e-6  # of given actions from the ends of the range, where the density of the squashed Gaussian has none


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
        log_std_range: tuple[float, float] = LOG_STD_RANGE,
        norm: Norm = "before",
        activation: Activation = "relu",
    ):
        self.mlp = MLP(in_dim, hidden_dims, 2 * out_dim, rngs, norm=norm, activation=activation, output_scale=0.01)
        self.scale, self.initial_log_std, self.log_std_range = scale, initial_log_std, log_std_range

    def parameters(self, x: Float[Array, "*b i"]) -> tuple[Float[Array, "*b o"], Float[Array, "*b o"]]:
        """Mean and log standard deviation before the squashing; the latter clipped to its range."""
        mean, log_std = jnp.split(self.mlp(x), 2, axis=-1)
        return mean, jnp.clip(log_std + self.initial_log_std, *self.log_std_range)

    def mode(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        return self.scale * jnp.tanh(self.parameters(x)[0])

    def sample(self, key: Key[Array, ""], x: Float[Array, "*b i"]) -> tuple[Float[Array, "*b o"], Float[Array, "*b"]]:
        """A reparameterized sample and its log density, in the scaled space (`tanh` and `scale` Jacobians included)."""
        mean, log_std = self.parameters(x)
        return _squash(mean, log_std, jax.random.normal(key, mean.shape), self.scale)

    def sample_from(
        self, x: Float[Array, "*b i"], noise: Float[Array, "*b o"]
    ) -> tuple[Float[Array, "*b o"], Float[Array, "*b"]]:
        """As `sample`, from standard normal noise that was drawn elsewhere."""
        return _squash(*self.parameters(x), noise, self.scale)

    def log_densities(self, x: Float[Array, "*b i"], actions: Float[Array, "*b o"]) -> Float[Array, "*b o"]:
        """Log density of given actions, one value per dim; those at the end of the range count as just inside."""
        mean, log_std = self.parameters(x)
        inside = jnp.clip(actions / self.scale, -1 + _MARGIN, 1 - _MARGIN)
        return log_densities(jnp.arctanh(inside), mean, log_std, self.scale)


def _squash(mean: Float[Array, "*b o"], log_std: Float[Array, "*b o"], noise: Float[Array, "*b o"], scale: float):
    pre_tanh = mean + jnp.exp(log_std) * noise
    return scale * jnp.tanh(pre_tanh), log_density(pre_tanh, mean, log_std, scale)


def log_density(
    pre_tanh: Float[Array, "*b o"], mean: Float[Array, "*b o"], log_std: Float[Array, "*b o"], scale: float
) -> Float[Array, "*b"]:
    """log p(scale * tanh(u)) at `u = pre_tanh`, summed over the last axis."""
    return log_densities(pre_tanh, mean, log_std, scale).sum(axis=-1)


def log_densities(
    pre_tanh: Float[Array, "*b o"], mean: Float[Array, "*b o"], log_std: Float[Array, "*b o"], scale: float
) -> Float[Array, "*b o"]:
    """log p(scale * tanh(u)) at `u = pre_tanh`, one value per dim.

    The tanh Jacobian is written as log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)), which stays finite where the
    plain form rounds to log 0. Source: SAC (arXiv 1812.05905), appendix C; the scale adds -log(scale) per dim.
    """
    gaussian = -0.5 * jnp.square((pre_tanh - mean) / jnp.exp(log_std)) - log_std - 0.5 * math.log(2 * math.pi)
    jacobian = 2 * (math.log(2) - pre_tanh - jax.nn.softplus(-2 * pre_tanh)) + math.log(scale)
    return gaussian - jacobian
