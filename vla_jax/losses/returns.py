"""Returns and advantages along a trajectory, time in the last axis.

`discounts` are 0 from termination on and 1 elsewhere, `truncated` is True on the last step of an episode that was cut
short (a time limit): the value of the state after it, `next_values`, still counts, and nothing flows across it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def monte_carlo_returns(
    rewards: Float[Array, "*b t"],
    discounts: Float[Array, "*b t"],
    truncated: Bool[Array, "*b t"],
    discount: float,
    tail_values: Float[Array, "*b t"] | None = None,
) -> Float[Array, "*b t"]:
    """The discounted sum of rewards from each step to the end of its episode.

    Where an episode is truncated, and after the last column, `tail_values` of that step stand for what would have
    followed (None: 0). In tasks with reward -1 until success the return of a failure is that of never arriving:
    `tail_values = -1 / (1 - discount)`. Source: Cal-QL (arXiv 2303.05479), section 5.
    """
    tails = jnp.zeros_like(rewards) if tail_values is None else tail_values
    return _backwards(rewards, discount * discounts, truncated, tails, jnp.ones_like(rewards))


def lambda_returns(
    rewards: Float[Array, "*b t"],
    discounts: Float[Array, "*b t"],
    truncated: Bool[Array, "*b t"],
    next_values: Float[Array, "*b t"],
    discount: float,
    trace_decay: float,
) -> Float[Array, "*b t"]:
    """TD(lambda) targets: `G_t = r_t + g_t ((1 - lambda) v_{t+1} + lambda G_{t+1})`, `g_t = discount * discounts_t`.

    On the last column and where an episode is truncated `G_{t+1}` is `v_{t+1}`. Source: Sutton and Barto, eq. 12.20.
    """
    decay = jnp.full_like(rewards, trace_decay)
    return _backwards(rewards, discount * discounts, truncated, next_values, decay)


def generalized_advantages(
    rewards: Float[Array, "*b t"],
    discounts: Float[Array, "*b t"],
    truncated: Bool[Array, "*b t"],
    values: Float[Array, "*b t"],
    next_values: Float[Array, "*b t"],
    discount: float,
    trace_decay: float,
) -> Float[Array, "*b t"]:
    """GAE: `lambda_returns - values`. Source: arXiv 1506.02438, eq. 16.

    `next_values` are those of the state that the step led to, before any reset; shifting `values` by one would give the
    first state of the next episode.
    """
    return lambda_returns(rewards, discounts, truncated, next_values, discount, trace_decay) - values


def _backwards(
    rewards: Float[Array, "*b t"],
    factors: Float[Array, "*b t"],
    truncated: Bool[Array, "*b t"],
    next_values: Float[Array, "*b t"],
    decay: Float[Array, "*b t"],
) -> Float[Array, "*b t"]:
    ends = truncated.at[..., -1].set(True)

    def step(following: Float[Array, "*b"], column):
        reward, factor, is_end, value, trace = column
        after = jnp.where(is_end, value, (1 - trace) * value + trace * following)
        here = reward + factor * after
        return here, here

    columns = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, -1, 0), (rewards, factors, ends, next_values, decay))
    _, found = jax.lax.scan(step, jnp.zeros_like(rewards[..., 0]), columns, reverse=True)
    return jnp.moveaxis(found, 0, -1)
