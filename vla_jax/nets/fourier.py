"""Learnable Fourier features of a scalar such as the time or level of a diffusion."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class FourierFeatures(nnx.Module):
    """Sines and cosines of a scalar at learned frequencies, drawn at first from a Gaussian of `scale`.

    Source: Tancik et al. (arXiv 2006.10739), eq. 2; learned as in IDQL (arXiv 2304.10573), appendix B.
    """

    def __init__(self, features: int, rngs: nnx.Rngs, *, scale: float = 0.2):
        self.frequencies = nnx.Param(scale * nnx.initializers.normal(1.0)(rngs.params(), (features // 2,)))

    def __call__(self, time: Float[Array, "*b"]) -> Float[Array, "*b d"]:
        frequencies = self.frequencies[...].reshape((1,) * time.ndim + (-1,))
        angles = 2 * jnp.pi * time[..., None] * frequencies
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
