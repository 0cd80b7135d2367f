"""Temporal-difference targets and errors, one value per example."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def chunk_return(
    rewards: Float[Array, "b h"], discounts: Float[Array, "b h"], action_mask: Bool[Array, "b h"], discount: float
) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
    """The discounted reward inside an executed chunk, and the factor on the value of the state after it.

    With `g_i = discount * discounts_i` (1 for steps that were not run) the return is `sum_i rewards_i prod_{j<i} g_j`
    over the steps that were run, and the factor is the product of all `g_i`: 0 from termination on, `discount ** k`
    after `k` steps cut short by a time limit. Source: Q-chunking (arXiv 2507.07969), eq. 5, with termination inside
    the chunk.
    """
    per_step = jnp.where(action_mask, discount * discounts, 1.0)
    through = jnp.cumprod(per_step, axis=-1)
    before = jnp.concatenate([jnp.ones_like(through[:, :1]), through[:, :-1]], axis=-1)
    return jnp.where(action_mask, rewards * before, 0.0).sum(axis=-1), through[:, -1]


def squared_error(q_values: Float[Array, "e b"], targets: Float[Array, "b"]) -> Float[Array, "b"]:
    """Squared TD error per example, averaged over the ensemble; the caller stops gradients in `targets`."""
    return jnp.square(q_values - targets[None]).mean(axis=0)


def double_q_targets(
    rewards: Float[Array, "b"],
    factor: Float[Array, "b"],
    next_q_values: Float[Array, "b n"],
    next_target_q_values: Float[Array, "b n"],
) -> Float[Array, "b"]:
    """`rewards + factor * target value of the action that the other values prefer`, for `n` discrete actions.

    `factor` is the discount, 0 where the task ended (`chunk_return` gives both). Source: double DQN (arXiv 1509.06461),
    section "Double DQN".
    """
    best = next_q_values.argmax(axis=-1)
    return rewards + factor * jnp.take_along_axis(next_target_q_values, best[:, None], axis=-1)[:, 0]
