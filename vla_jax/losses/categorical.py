"""Scalars as distributions over bins: HL-Gauss and C51 targets, their cross-entropy and their mean."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vla_jax.core import errors


@dataclasses.dataclass(frozen=True)
class Support:
    """Where the bins of a categorical value lie, in the units of the value.

    Raises ConfigError for an empty range or fewer than two bins.
    """

    low: float
    high: float
    num_bins: int

    def __post_init__(self):
        if self.low >= self.high or self.num_bins < 2:
            raise errors.ConfigError(
                "Support",
                expected="low < high and num_bins >= 2",
                found=f"low={self.low}, high={self.high}, num_bins={self.num_bins}",
            )

    @property
    def bin_width(self) -> float:
        return (self.high - self.low) / self.num_bins

    @property
    def edges(self) -> Float[Array, "edges"]:
        return jnp.linspace(self.low, self.high, self.num_bins + 1)

    @property
    def centers(self) -> Float[Array, "n"]:
        """The middle of every bin: what HL-Gauss decodes to."""
        return self.low + self.bin_width * (jnp.arange(self.num_bins) + 0.5)

    @property
    def atoms(self) -> Float[Array, "n"]:
        """Points from `low` to `high`, both included: what C51 decodes to."""
        return jnp.linspace(self.low, self.high, self.num_bins)


def hl_gauss(
    values: Float[Array, "*b"], support: Support, sigma_ratio: float = 0.75, *, widened: bool = False
) -> Float[Array, "*b n"]:
    """Each value as a Gaussian around it, integrated over the bins and normalized to what falls on the support.

    Its standard deviation is `sigma_ratio` bin widths. `widened` multiplies it by sqrt(2): released code (PA-RL's among
    it) divides by `sqrt(2) * sigma`, which the error function wants, and then uses the Gaussian's own distribution
    function, which divides once more. Values outside the support count as its nearer end. Source: Farebrother et al.
    (arXiv 2403.03950), eq. 3.
    """
    sigma = sigma_ratio * support.bin_width * (2**0.5 if widened else 1.0)
    inside = jnp.clip(values, support.low, support.high)
    below = jax.scipy.stats.norm.cdf((_beside(support.edges, values) - inside[..., None]) / sigma)
    mass = below[..., 1:] - below[..., :-1]
    return mass / mass.sum(-1, keepdims=True)


def two_hot(values: Float[Array, "*b"], support: Support) -> Float[Array, "*b n"]:
    """Each value on the two atoms beside it, in the shares that keep its mean; clipped to the support."""
    return project(values[..., None], jnp.ones((*values.shape, 1), values.dtype), support)


def project(atoms: Float[Array, "*b m"], probabilities: Float[Array, "*b m"], support: Support) -> Float[Array, "*b n"]:
    """A distribution on any atoms moved to the atoms of the support, the mean kept except for clipping at its ends.

    For a C51 target the atoms are `reward + factor * support.atoms`. Source: C51 (arXiv 1707.06887), eq. 7.
    """
    step = (support.high - support.low) / (support.num_bins - 1)
    places = (jnp.clip(atoms, support.low, support.high) - support.low) / step
    bins = _beside(jnp.arange(support.num_bins), places)
    shares = jnp.clip(1 - jnp.abs(places[..., None] - bins), 0, 1)
    return (probabilities[..., None] * shares).sum(-2)


def cross_entropy(logits: Float[Array, "*b n"], targets: Float[Array, "*b n"]) -> Float[Array, "*b"]:
    """`-sum targets * log softmax(logits)`, in nats."""
    return -(targets * jax.nn.log_softmax(logits, axis=-1)).sum(-1)


def expected(logits: Float[Array, "*b n"], points: Float[Array, "n"]) -> Float[Array, "*b"]:
    """The mean of `points` (the support's centers for HL-Gauss, its atoms for C51) under the softmax of the logits."""
    return jnp.einsum("...n,n->...", jax.nn.softmax(logits, axis=-1), points)


def _beside(points: Float[Array, "n"], values: Float[Array, "*b"]) -> Float[Array, "*ones n"]:
    """Points in a last axis of their own, after the axes of the values."""
    return points.reshape((1,) * values.ndim + points.shape)
