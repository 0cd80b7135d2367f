"""A backbone without pictures: the state of the robot is all that is seen, and an MLP moves the whole chunk at once.

Small state-based tasks of the reinforcement learning papers use it. It is a `Backbone` whose suffix is not made of
tokens: it is itself the field of a chunk (`ChunkField` asks for that), so flow and diffusion decode with it.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vla_jax.core import errors
from vla_jax.core.types import Observation
from vla_jax.nets.fourier import FourierFeatures
from vla_jax.nets.mlp import ACTIVATIONS, MLP, Activation, Norm


@dataclasses.dataclass(frozen=True)
class StateMLPConfig:
    state_dim: int  # s
    action_horizon: int  # h, as the decoder's
    action_dim: int  # a
    hidden_dims: tuple[int, ...] = (256, 256, 256)
    norm: Norm = "after"
    activation: Activation = "gelu"
    residual_blocks: int = 0  # above 0: so many residual blocks of width hidden_dims[0] in place of the hidden layers
    time_features: int | None = None  # learned Fourier features of the time; None: the time itself is an input
    cameras: tuple[str, ...] = ()
    image_size: tuple[int, int] = (0, 0)
    vocab_size: int = 2
    prompt_length: int = 1

    def __post_init__(self):
        if min(self.state_dim, self.action_horizon, self.action_dim, *self.hidden_dims) < 1 or self.cameras:
            raise errors.ConfigError("StateMLPConfig", expected="positive sizes and no cameras", found=self)

    @property
    def feature_dim(self) -> int:
        return self.state_dim


class StateMLP(nnx.Module):
    def __init__(self, config: StateMLPConfig, rngs: nnx.Rngs):
        self.config, self.feature_dim = config, config.feature_dim
        self.suffix_width = config.action_dim
        chunk_dim = config.action_horizon * config.action_dim
        if config.time_features is None:
            self.time_in, time_dim = None, 1
        else:
            self.time_in, time_dim = TimeEmbedding(config.time_features, rngs), config.time_features
        in_dim = config.state_dim + chunk_dim + time_dim
        if config.residual_blocks:
            width, blocks = config.hidden_dims[0], config.residual_blocks
            self.mlp = ResidualMLP(in_dim, width, blocks, chunk_dim, rngs, activation=config.activation)
        else:
            shape = dict(norm=config.norm, activation=config.activation)
            self.mlp = MLP(in_dim, config.hidden_dims, chunk_dim, rngs, **shape)

    def prefix(self, observation: Observation) -> Float[Array, "b s"]:
        return observation.state

    def features(self, prefix: Float[Array, "b s"]) -> Float[Array, "b s"]:
        return prefix

    def field(
        self, prefix: Float[Array, "b s"], x: Float[Array, "b h a"], time: Float[Array, "b"]
    ) -> Float[Array, "b h a"]:
        """The field of the whole chunk from state, noisy chunk and time, one vector together."""
        embedded = time[:, None] if self.time_in is None else self.time_in(time)
        joint = jnp.concatenate([prefix, x.reshape(x.shape[0], -1), embedded], axis=-1)
        return self.mlp(joint).reshape(x.shape)


class TimeEmbedding(nnx.Module):
    """Fourier features and two linear layers, the first of twice the width. Source: IDQL (arXiv 2304.10573)."""

    def __init__(self, features: int, rngs: nnx.Rngs):
        self.fourier = FourierFeatures(features, rngs)
        self.mlp = MLP(features, (2 * features,), features, rngs, activation="silu")

    def __call__(self, time: Float[Array, "b"]) -> Float[Array, "b d"]:
        return self.mlp(self.fourier(time))


class ResidualMLP(nnx.Module):
    """Pre-norm residual blocks that widen fourfold, after IDQL's score network (arXiv 2304.10573, appendix B)."""

    def __init__(
        self, in_dim: int, width: int, num_blocks: int, out_dim: int, rngs: nnx.Rngs, *, activation: Activation
    ):
        self.embed = nnx.Linear(in_dim, width, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(num_blocks)])
        self.wide = nnx.List([nnx.Linear(width, 4 * width, rngs=rngs) for _ in range(num_blocks)])
        self.back = nnx.List([nnx.Linear(4 * width, width, rngs=rngs) for _ in range(num_blocks)])
        self.output = nnx.Linear(width, out_dim, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Float[Array, "b i"]) -> Float[Array, "b o"]:
        activation = ACTIVATIONS[self.activation]
        x = self.embed(x)
        for norm, wide, back in zip(self.norms, self.wide, self.back, strict=True):
            x = x + back(activation(wide(norm(x))))
        return self.output(activation(x))
