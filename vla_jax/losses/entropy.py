"""Entropy-regularized policy objectives, one value per example."""

from jaxtyping import Array, Float


def soft_policy_loss(
    log_prob: Float[Array, "b"], q_values: Float[Array, "b"], temperature: Float[Array, ""]
) -> Float[Array, "b"]:
    """`temperature * log_prob - q_values`, to be minimized through reparameterized actions.

    The caller stops gradients in `temperature` and in the critic's parameters. Source: SAC (arXiv 1812.05905), eq. 7.
    """
    return temperature * log_prob - q_values


def temperature_loss(
    temperature: Float[Array, ""], log_prob: Float[Array, "b"], target_entropy: float
) -> Float[Array, "b"]:
    """`temperature * (entropy - target_entropy)` with `entropy = -log_prob`: the temperature falls while the policy
    is more random than wanted. The caller stops gradients in `log_prob`. Source: SAC (arXiv 1812.05905), eq. 18."""
    return temperature * (-log_prob - target_entropy)
