"""Regression that leans to one side, on squared errors, absolute errors or logits; elementwise."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float


def asymmetric_weight(predictions: Float[Array, "*b"], targets: Float[Array, "*b"], level: float) -> Float[Array, "*b"]:
    """`level` where the target is at least the prediction, `1 - level` where it is below. No gradient flows through it.

    A level above one half makes the regression optimistic.
    """
    above = jax.lax.stop_gradient(targets) >= jax.lax.stop_gradient(predictions)
    return jnp.where(above, level, 1 - level)


def expectile_loss(predictions: Float[Array, "*b"], targets: Float[Array, "*b"], level: float) -> Float[Array, "*b"]:
    """Weighted squared error, minimized by the `level`-expectile of the targets; 0.5 is half the squared error.

    Source: IQL (arXiv 2110.06169), eq. 4.
    """
    return asymmetric_weight(predictions, targets, level) * jnp.square(predictions - targets)


def quantile_loss(predictions: Float[Array, "*b"], targets: Float[Array, "*b"], level: float) -> Float[Array, "*b"]:
    """Weighted absolute error ("pinball"), minimized by the `level`-quantile of the targets."""
    return asymmetric_weight(predictions, targets, level) * jnp.abs(predictions - targets)


def logit(probabilities: Float[Array, "*b"], margin: float = 1e-5) -> Float[Array, "*b"]:
    """The inverse of the sigmoid of probabilities kept `margin` away from 0 and 1."""
    inside = jnp.clip(probabilities, margin, 1 - margin)
    return jnp.log(inside) - jnp.log1p(-inside)


def binary_value_loss(logits: Float[Array, "*b"], targets: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Binary cross-entropy in nats of a value `sigmoid(logits)` in [0, 1] to a soft target there.

    Minimized by the mean of the targets, as the squared error is, with gradients that do not vanish at the ends.
    """
    return optax.sigmoid_binary_cross_entropy(logits, targets)


def binary_expectile_loss(logits: Float[Array, "*b"], targets: Float[Array, "*b"], level: float) -> Float[Array, "*b"]:
    """`binary_value_loss` with the weights of an expectile, the comparison made between values.

    Source: DQC (arXiv 2512.10926), the distillation of the chunk critic.
    """
    return asymmetric_weight(jax.nn.sigmoid(logits), targets, level) * binary_value_loss(logits, targets)


def binary_quantile_loss(logits: Float[Array, "*b"], targets: Float[Array, "*b"], level: float) -> Float[Array, "*b"]:
    """The quantile loss between logits, of a value `sigmoid(logits)` and a target in [0, 1].

    A quantile commutes with the sigmoid: its minimizer is the quantile of the targets themselves. Source: DQC
    (arXiv 2512.10926), the implicit value backup.
    """
    return quantile_loss(logits, logit(targets), level)
