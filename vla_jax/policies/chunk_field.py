"""What policies that move a noisy chunk share: one suffix token per step of the chunk, and the time told to it.

A backbone that has a `field` of its own (`nets/state_mlp.py`) is asked for it instead: nothing is made of tokens then.
"""

from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vla_jax.core.types import Observation
from vla_jax.nets.backbone import Backbone
from vla_jax.nets.linear import Dense, fan_in, sincos

TimeConditioning = Literal["concat", "adaptive_norm"]  # into the action tokens (pi0), or into every norm (pi0.5)


@runtime_checkable
class HasField(Protocol):
    def field(self, prefix: Any, x: Float[Array, "b h a"], time: Float[Array, "b"]) -> Float[Array, "b h a"]: ...


class ChunkField(nnx.Module):
    """A function of a noisy chunk and its time, with values like the chunk: a velocity, or the noise in it."""

    def __init__(
        self,
        action_horizon: int,
        action_dim: int,
        time_conditioning: TimeConditioning,
        backbone: Backbone,
        rngs: nnx.Rngs,
    ):
        self.action_horizon, self.action_dim = action_horizon, action_dim
        self.time_conditioning, self.backbone = time_conditioning, backbone
        if isinstance(backbone, HasField):
            return
        width = backbone.suffix_width
        self.action_in = Dense(action_dim, width, rngs, axes=(None, "embed"))
        time_inputs = 2 * width if time_conditioning == "concat" else width
        self.time_in = Dense(time_inputs, width, rngs, axes=("embed", "mlp"))
        self.time_out = Dense(width, width, rngs, axes=("mlp", "embed"))
        # Small at first: the untrained field is near zero, so the first loss is the variance of the target.
        self.action_out = Dense(width, action_dim, rngs, axes=("embed", None), kernel_init=fan_in(0.1))

    def prefix(self, observation: Observation) -> Any:
        return self.backbone.prefix(observation)

    def features(self, prefix: Any) -> Float[Array, "b f"]:
        return self.backbone.features(prefix)

    def field(self, prefix: Any, x: Float[Array, "b h a"], time: Float[Array, "b"]) -> Float[Array, "b h a"]:
        if isinstance(self.backbone, HasField):
            return self.backbone.field(prefix, x, time)
        tokens = self.action_in(x)
        embedded_time = sincos(time, self.backbone.suffix_width)
        if self.time_conditioning == "concat":
            embedded_time = jnp.broadcast_to(embedded_time[:, None], tokens.shape)
            tokens = self.time_out(jax.nn.silu(self.time_in(jnp.concatenate([tokens, embedded_time], axis=-1))))
            condition = None
        else:
            condition = jax.nn.silu(self.time_out(jax.nn.silu(self.time_in(embedded_time))))
        decoded = self.backbone.suffix(prefix, tokens, condition=condition)
        return self.action_out(decoded).astype(jnp.float32)
