"""Discrete Diffusion VLA (arXiv 2508.20072): a chunk's tokens, masked at random in training and unmasked by confidence.

One suffix token per number of the chunk, each seeing all others. Training masks a share of them, drawn from the cosine
schedule, and asks for what stood there; acting starts from masks alone and decodes in parallel (`samplers/maskgit.py`),
so that the number of rounds does not grow with the chunk. A pi0-style backbone in place of OpenVLA; the prefix does not
see the suffix, so that its cache is exact.

    suffix in    t0  [M]  [M]  t3        each plus the embedding of its slot
    suffix out   .    t1   t2   .        cross-entropy, averaged over the masked ones
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from vla_jax.codecs.bins import BinCodec
from vla_jax.core import errors, functional
from vla_jax.core.types import Demonstrations, Metrics, Observation
from vla_jax.losses.tokens import cross_entropy
from vla_jax.nets.backbone import Backbone
from vla_jax.policies.chunk_tokens import ChunkTokens
from vla_jax.samplers import maskgit


@dataclasses.dataclass(frozen=True)
class DiscreteDiffusionConfig:
    action_horizon: int  # h
    codec: BinCodec  # its number of dims is the action_dim; the paper: 256 bins between the 1 % and 99 % quantiles
    decoding: maskgit.MaskedOptions | maskgit.ReleasedOptions = maskgit.MaskedOptions()
    loss_samples: int = 1  # draws of masks per encoded observation

    def __post_init__(self):
        if self.action_horizon < 1 or self.loss_samples < 1:
            raise errors.ConfigError(
                "DiscreteDiffusionConfig",
                expected="action_horizon and loss_samples of at least 1",
                found=f"action_horizon={self.action_horizon}, loss_samples={self.loss_samples}",
            )

    @property
    def action_dim(self) -> int:
        return self.codec.action_dim


class DiscreteDiffusionPolicy(ChunkTokens):
    """`Policy`, `HasPrefix` and `HasTokens`."""

    def __init__(self, config: DiscreteDiffusionConfig, backbone: Backbone, rngs: nnx.Rngs):
        super().__init__(config.codec, config.action_horizon, backbone, rngs, num_extra_ids=1)
        self.config = config

    @property
    def mask_id(self) -> int:
        return self.codec.num_bins

    def loss(self, key: Key[Array, ""], batch: Demonstrations) -> tuple[Float[Array, "b"], Metrics]:
        """Cross-entropy in nats per masked token, the mean over `loss_samples` draws of ratio and positions.

        Entries under a False `action_mask` count as 0, are read like any other and train nothing.
        """
        tokens = self.encode_actions(jnp.where(batch.action_mask, batch.actions, 0.0))
        real = batch.action_mask.reshape(tokens.shape)
        prefix = self.backbone.prefix(batch.observation)

        def one_draw(key):
            ratio_key, mask_key = jax.random.split(key)
            corrupted, masked = corrupt(mask_key, tokens, sample_ratio(ratio_key, tokens.shape[:1]), self.mask_id)
            logits = self.logits(prefix, corrupted)
            hits = (logits.argmax(-1) == tokens) & masked & real
            return cross_entropy(logits, tokens, masked & real), hits.sum() / jnp.maximum((masked & real).sum(), 1)

        losses, accuracy = functional.each_draw(one_draw, jax.random.split(key, self.config.loss_samples))
        losses = losses.mean(0)
        return losses, {"discrete_diffusion/loss": losses.mean(), "discrete_diffusion/accuracy": accuracy.mean()}

    def sample(self, key: Key[Array, ""], observation: Observation, num_samples: int = 1) -> Float[Array, "n b h a"]:
        return self.sample_from(key, self.prefix(observation), num_samples)

    def prefix(self, observation: Observation) -> Any:
        return self.backbone.prefix(observation)

    def sample_from(self, key: Key[Array, ""], prefix: Any, num_samples: int = 1) -> Float[Array, "n b h a"]:
        batch_size = self.backbone.features(prefix).shape[0]

        def one_sample(key):
            sizes = (batch_size, self.num_tokens, self.mask_id)
            tokens, _ = maskgit.decode(key, lambda tokens: self.logits(prefix, tokens), *sizes, self.config.decoding)
            return self.decode_actions(tokens)

        return jax.vmap(one_sample)(jax.random.split(key, num_samples))

    def features(self, prefix: Any) -> Float[Array, "b f"]:
        return self.backbone.features(prefix)

    def logits(self, prefix: Any, tokens: Int[Array, "b n"]) -> Float[Array, "b n v"]:
        """Of the bins at every slot, from all tokens; the mask is an id that is read and never an answer."""
        decoded = self.backbone.suffix(prefix, self.embed(tokens) + self.slots[...][None])
        return self.logits_out(decoded).astype(jnp.float32)


def sample_ratio(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Shares to mask in (0, 1]: `cos(pi u / 2)` of a uniform `u`. Source: section 3.2."""
    return jnp.cos(jnp.pi / 2 * jax.random.uniform(key, shape))


def corrupt(
    key: Key[Array, ""], tokens: Int[Array, "b n"], ratio: Float[Array, "b"], mask_id: int
) -> tuple[Int[Array, "b n"], Bool[Array, "b n"]]:
    """Exactly `ceil(ratio * n)` tokens of each row masked, at least one, chosen evenly; and where."""
    num_tokens = tokens.shape[-1]
    count = jnp.clip(jnp.ceil(ratio * num_tokens), 1, num_tokens)
    rank = jnp.argsort(jax.random.uniform(key, tokens.shape), axis=-1)
    masked = rank < count[:, None]
    return jnp.where(masked, mask_id, tokens), masked
