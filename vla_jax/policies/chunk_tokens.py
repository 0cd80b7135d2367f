"""What policies that say a chunk in bins share: `h * a` slots, each with a table of token vectors for its action dim.

Tokens have an embedding of their own instead of rare words of a language model's vocabulary, and bins may sit at
quantiles. The dims of the first step come first.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vla_jax.codecs.bins import BinCodec
from vla_jax.nets.backbone import Backbone
from vla_jax.nets.linear import Dense, fan_in


class ChunkTokens(nnx.Module):
    """Vectors in, logits out, and chunks to tokens and back (`HasTokens`)."""

    def __init__(
        self, codec: BinCodec, action_horizon: int, backbone: Backbone, rngs: nnx.Rngs, *, num_extra_ids: int = 0
    ):
        """`num_extra_ids` are ids that may be read and are never written, from `codec.num_bins` on."""
        self.codec, self.action_horizon, self.backbone = codec, action_horizon, backbone
        width, num_ids = backbone.suffix_width, codec.num_bins + num_extra_ids
        embedding = 0.5 * jax.random.normal(rngs.params(), (codec.action_dim, num_ids, width))
        slots = 0.5 * jax.random.normal(rngs.params(), (self.num_tokens, width))
        self.embedding = nnx.Param(embedding, logical_axes=(None, "vocab", "embed"))
        self.slots = nnx.Param(slots, logical_axes=(None, "embed"))
        self.logits_out = Dense(width, codec.num_bins, rngs, axes=("embed", "vocab"), kernel_init=fan_in(0.1))

    @property
    def action_dim(self) -> int:
        return self.codec.action_dim

    @property
    def num_tokens(self) -> int:
        return self.action_horizon * self.action_dim

    def encode_actions(self, actions: Float[Array, "b h a"]) -> Int[Array, "b n"]:
        return self.codec.encode(actions).reshape(actions.shape[0], -1)

    def decode_actions(self, tokens: Int[Array, "b n"]) -> Float[Array, "b h a"]:
        return self.codec.decode(tokens.reshape(-1, self.action_horizon, self.action_dim))

    def embed(self, tokens: Int[Array, "b n"]) -> Float[Array, "b n d"]:
        """The vector of each token in the table of its slot's action dim, without the slot's own."""
        dims = jnp.tile(jnp.arange(self.action_dim), self.action_horizon)[None]
        return self.embedding[...][dims, tokens]
