"""What keeps values of actions outside the data from growing: CQL and Cal-QL, one value per head and example."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def calibrated(q_values: Float[Array, "e b n"], returns: Float[Array, "b"]) -> Float[Array, "e b n"]:
    """Values of the policy's actions, raised to the return that the data reached from there.

    Below it nothing is pushed further down, and no gradient flows. Source: Cal-QL (arXiv 2303.05479), eq. 5.1.
    """
    return jnp.maximum(q_values, returns[None, :, None])


def counted_gap(
    q_candidates: Float[Array, "e b n"], q_data: Float[Array, "e b"], temperature: float = 1.0
) -> Float[Array, "e b"]:
    """`t logsumexp(q / t) - t log n` over the candidates and the logged action, minus the logged action's value.

    With no densities to divide by (a policy that is chosen by its critic has none) the candidates count equally; the
    log of their number makes equal values cost nothing. `q_candidates` come without the logged action.
    Source: PA-RL (arXiv 2412.06685), its released critic.
    """
    every = jnp.concatenate([q_candidates, q_data[..., None]], axis=-1)
    total = jax.scipy.special.logsumexp(every / temperature, axis=-1)
    return temperature * (total - np.log(every.shape[-1])) - q_data


def importance_gap(
    q_candidates: Float[Array, "e b n"],
    log_densities: Float[Array, "b n"],
    q_data: Float[Array, "e b"],
    temperature: float = 1.0,
) -> Float[Array, "e b"]:
    """`t log mean(exp(q / t) / density) - q_data`: the integral of exp(q / t) over actions by importance sampling.

    `log_densities` are those that the candidates were drawn from: `-a log(high - low)` for uniform ones in a box of `a`
    dims, the policy's for its own. Source: CQL(H) (arXiv 2006.04779), eq. 4 and appendix F.
    """
    weighted = q_candidates / temperature - log_densities[None]
    mean = jax.scipy.special.logsumexp(weighted, axis=-1) - np.log(q_candidates.shape[-1])
    return temperature * mean - q_data
