"""What learners may ask of a policy.

A policy is an NNX module, bound to its parameters inside the trace, that is a conditional distribution over action
chunks. Every policy has `Policy`; the other protocols are capabilities that a learner asks for with `require`.
"""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float, Int, Key

from vla_jax.core import errors
from vla_jax.core.types import Demonstrations, Metrics, Observation


@runtime_checkable
class Policy(Protocol):
    action_horizon: int  # h
    action_dim: int  # a, the width the model sees

    def loss(self, key: Key[Array, ""], batch: Demonstrations) -> tuple[Float[Array, "b"], Metrics]:
        """One non-negative value per example, averaged over its unmasked action entries, not yet weighted."""
        ...

    def sample(self, key: Key[Array, ""], observation: Observation, num_samples: int = 1) -> Float[Array, "n b h a"]:
        """Independent chunks of normalized actions per observation."""
        ...


@runtime_checkable
class HasPrefix(Protocol):
    """Encode once, decode many times; `sample` equals `sample_from(key, prefix(observation), n)` exactly."""

    def prefix(self, observation: Observation) -> Any: ...

    def sample_from(self, key: Key[Array, ""], prefix: Any, num_samples: int = 1) -> Float[Array, "n b h a"]: ...

    def features(self, prefix: Any) -> Float[Array, "b f"]: ...


@runtime_checkable
class HasLogProb(Protocol):
    def log_prob(self, observation: Observation, actions: Float[Array, "b h a"]) -> Float[Array, "b"]:
        """Natural log density (or probability, for tokens) of whole chunks."""
        ...


@runtime_checkable
class HasVelocity(Protocol):
    """Flow policies: time 0 is noise, time 1 is data, `x = (1 - time) * noise + time * actions`."""

    def velocity(self, prefix: Any, x: Float[Array, "b h a"], time: Float[Array, "b"]) -> Float[Array, "b h a"]: ...


@runtime_checkable
class HasTokens(Protocol):
    def encode_actions(self, actions: Float[Array, "b h a"]) -> Int[Array, "b n"]: ...

    def decode_actions(self, tokens: Int[Array, "b n"]) -> Float[Array, "b h a"]: ...


def require(policy: object, *capabilities: type) -> None:
    """Raise ConfigError unless the policy (bound or its class) has all the capabilities a learner needs."""
    for capability in capabilities:
        # typing's own list of a protocol's members exists from Python 3.12 on
        members = sorted(name for name in vars(capability) if not name.startswith("_"))
        missing = [member for member in members if not hasattr(policy, member)]
        if missing:
            name = policy.__name__ if isinstance(policy, type) else type(policy).__name__
            raise errors.ConfigError(
                f"policy {name} cannot be used by this learner",
                expected=f"{capability.__name__}: {', '.join(members)}",
                found=f"no {', '.join(missing)}",
                fix="choose a policy with this capability (docs/architecture.md lists them)",
            )
