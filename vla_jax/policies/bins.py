"""Actions as a sentence of bin tokens, one after the other (RT-2, arXiv 2307.15818; OpenVLA, arXiv 2406.09246).

A chunk is `h * a` tokens, the dims of the first step first. A causal suffix predicts each from those before it, so the
chunk has an exact probability. Unlike the papers, tokens are not words of the language model (`chunk_tokens.py`).

    suffix in    start   t0   t1   t2          each plus the embedding of its slot
    suffix out    t0     t1   t2   t3
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from vla_jax.codecs.bins import BinCodec
from vla_jax.core import errors
from vla_jax.core.types import Demonstrations, Metrics, Observation
from vla_jax.losses.tokens import cross_entropy, per_token_log_prob
from vla_jax.nets.backbone import Backbone
from vla_jax.policies.chunk_tokens import ChunkTokens


@dataclasses.dataclass(frozen=True)
class BinsConfig:
    action_horizon: int  # h
    codec: BinCodec  # its number of dims is the action_dim
    temperature: float = 1.0  # of sampling; 0 takes the likeliest token

    def __post_init__(self):
        if self.action_horizon < 1 or self.temperature < 0:
            raise errors.ConfigError(
                "BinsConfig",
                expected="action_horizon >= 1 and temperature >= 0",
                found=f"action_horizon={self.action_horizon}, temperature={self.temperature}",
            )

    @property
    def action_dim(self) -> int:
        return self.codec.action_dim


class BinsPolicy(ChunkTokens):
    """`Policy`, `HasPrefix`, `HasLogProb` and `HasTokens`; one suffix token per number of the chunk."""

    def __init__(self, config: BinsConfig, backbone: Backbone, rngs: nnx.Rngs):
        super().__init__(config.codec, config.action_horizon, backbone, rngs)
        self.config = config

    def loss(self, key: Key[Array, ""], batch: Demonstrations) -> tuple[Float[Array, "b"], Metrics]:
        """Teacher-forced cross-entropy in nats per unmasked token; `key` is not used.

        Actions under a False mask count as 0, so what stands there changes nothing.
        """
        del key
        tokens = self.encode_actions(jnp.where(batch.action_mask, batch.actions, 0.0))
        token_mask = batch.action_mask.reshape(tokens.shape)
        logits = self._logits(self.backbone.prefix(batch.observation), tokens)
        losses = cross_entropy(logits, tokens, token_mask)
        hits = (logits.argmax(-1) == tokens) & token_mask
        return losses, {"bins/loss": losses.mean(), "bins/accuracy": hits.sum() / jnp.maximum(token_mask.sum(), 1)}

    def sample(self, key: Key[Array, ""], observation: Observation, num_samples: int = 1) -> Float[Array, "n b h a"]:
        return self.sample_from(key, self.prefix(observation), num_samples)

    def prefix(self, observation: Observation) -> Any:
        return self.backbone.prefix(observation)

    def sample_from(self, key: Key[Array, ""], prefix: Any, num_samples: int = 1) -> Float[Array, "n b h a"]:
        """Token by token in one scan. Every step decodes the whole suffix anew against the cached prefix: the suffix is
        short, and a `Backbone` promises nothing about decoding one token alone.
        """
        batch_size = self.backbone.features(prefix).shape[0]

        def one_sample(key):
            def step(tokens, slot):
                logits = self._logits(prefix, tokens)[:, slot]
                return tokens.at[:, slot].set(self._choose(jax.random.fold_in(key, slot), logits)), None

            empty = jnp.zeros((batch_size, self.num_tokens), jnp.int32)
            tokens, _ = jax.lax.scan(step, empty, jnp.arange(self.num_tokens))
            return self.decode_actions(tokens)

        return jax.vmap(one_sample)(jax.random.split(key, num_samples))

    def features(self, prefix: Any) -> Float[Array, "b f"]:
        return self.backbone.features(prefix)

    def log_prob(self, observation: Observation, actions: Float[Array, "b h a"]) -> Float[Array, "b"]:
        """Natural log probability of the chunk's bins, at temperature 1 whatever the config samples with."""
        tokens = self.encode_actions(actions)
        return per_token_log_prob(self._logits(self.prefix(observation), tokens), tokens).sum(-1)

    def _logits(self, prefix: Any, tokens: Int[Array, "b n"]) -> Float[Array, "b n v"]:
        """Logits of every slot given the tokens before it; the token in the slot itself is not read."""
        before = jnp.pad(self.embed(tokens)[:, :-1], ((0, 0), (1, 0), (0, 0)))  # the start is the empty vector
        decoded = self.backbone.suffix(prefix, before + self.slots[...][None], causal=True)
        return self.logits_out(decoded).astype(jnp.float32)

    def _choose(self, key: Key[Array, ""], logits: Float[Array, "b v"]) -> Int[Array, "b"]:
        if self.config.temperature == 0:
            return logits.argmax(-1)
        return jax.random.categorical(key, logits / self.config.temperature)
