"""Policy gradients on sampled actions: PPO, group-relative advantages, and the penalty to a reference policy."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def clipped_surrogate(
    log_prob: Float[Array, "*b"],
    old_log_prob: Float[Array, "*b"],
    advantages: Float[Array, "*b"],
    clip_range: float,
    clip_range_high: float | None = None,
) -> Float[Array, "*b"]:
    """PPO's loss: `-min(ratio * A, clip(ratio, 1 - low, 1 + high) * A)`, to be minimized.

    `clip_range_high` defaults to `clip_range`; DAPO (arXiv 2503.14476) takes it larger.
    Source: arXiv 1707.06347, eq. 7.
    """
    ratio = jnp.exp(log_prob - old_log_prob)
    high = clip_range if clip_range_high is None else clip_range_high
    return -jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - clip_range, 1 + high) * advantages)


def clipped_value_loss(
    values: Float[Array, "*b"], old_values: Float[Array, "*b"], targets: Float[Array, "*b"], clip_range: float
) -> Float[Array, "*b"]:
    """Half the squared error, the larger of that of the value and that of its step from the old value, clipped."""
    clipped = old_values + jnp.clip(values - old_values, -clip_range, clip_range)
    return 0.5 * jnp.maximum(jnp.square(values - targets), jnp.square(clipped - targets))


def group_advantages(
    returns: Float[Array, "b"], groups: Int[Array, "b"], num_groups: int, *, scaled: bool = True, epsilon: float = 1e-6
) -> Float[Array, "b"]:
    """Each return against the mean of its group (attempts at one task from one state), over their standard deviation.

    `scaled=False` leaves out the division, which favors groups that are nearly always or nearly never solved
    (arXiv 2503.20783). A group whose returns are all equal gets 0. The deviation is that of the population. Source:
    GRPO (arXiv 2402.03300), section 4.1.
    """
    one_hot = groups[:, None] == jnp.arange(num_groups)[None]
    count = jnp.maximum(one_hot.sum(0), 1)
    mean = jnp.where(one_hot, returns[:, None], 0).sum(0) / count
    centered = returns - mean[groups]
    if not scaled:
        return centered
    variance = jnp.where(one_hot, jnp.square(centered)[:, None], 0).sum(0) / count
    return centered / (jnp.sqrt(variance)[groups] + epsilon)


def reference_penalty(log_prob: Float[Array, "*b"], reference_log_prob: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """The k3 estimate of KL(policy || reference) from the policy's own samples: `r - 1 - log r`, `r = p_ref / p`.

    Unbiased and never negative. Source: GRPO (arXiv 2402.03300), eq. 4.
    """
    log_ratio = reference_log_prob - log_prob
    return jnp.expm1(log_ratio) - log_ratio


def masked_mean(values: Float[Array, "*b n"], mask: Bool[Array, "*b n"]) -> Float[Array, ""]:
    """The mean over all entries where the mask is True; 0 when there is none."""
    return jnp.where(mask, values, 0).sum() / jnp.maximum(mask.sum(), 1)
