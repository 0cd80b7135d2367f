"""pi0-FAST: a vision-language model that writes its actions as FAST tokens (arXiv 2501.09747).

    prefix  [ images, Task: pick up the cup, State: 12 200 127; ]          sees itself, both ways
    suffix                            [ Action: t0 t1 t2 | end ]           sees the prefix and earlier words

One cross-entropy over the suffix trains it; acting writes words until the end of the sequence and decodes them. The
chunk of a malformed sentence is zeros, and `sample_words` says which ones were.

Unlike openpi's sampling, the first written word stands directly behind the prompt, as it does in training; openpi's
leaves one position out.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from vla_jax.codecs.action_text import ActionText
from vla_jax.core import errors
from vla_jax.core.types import Demonstrations, Metrics, Observation
from vla_jax.losses.tokens import per_token_log_prob
from vla_jax.nets.language import Decoding, Generated
from vla_jax.policies.token_loss import WritesText, require_text, token_losses


@dataclasses.dataclass(frozen=True)
class FastConfig:
    text: ActionText  # with the codec, which fixes action_horizon and action_dim
    temperature: float = 0.0  # of sampling; 0 takes the likeliest word

    def __post_init__(self):
        if self.temperature < 0:
            raise errors.ConfigError("FastConfig.temperature", expected="0 or more", found=self.temperature)

    @property
    def action_horizon(self) -> int:
        return self.text.codec.action_horizon

    @property
    def action_dim(self) -> int:
        return self.text.codec.action_dim


class FastPolicy(nnx.Module):
    """`Policy`, `HasPrefix`, `HasLogProb` and `HasTokens`, without parameters of its own."""

    def __init__(self, config: FastConfig, backbone: WritesText, rngs: nnx.Rngs):
        del rngs
        require_text(backbone, config.text, "FastPolicy")
        self.config, self.backbone = config, backbone

    @property
    def action_horizon(self) -> int:
        return self.config.action_horizon

    @property
    def action_dim(self) -> int:
        return self.config.action_dim

    def loss(self, key: Key[Array, ""], batch: Demonstrations) -> tuple[Float[Array, "b"], Metrics]:
        """Cross-entropy in nats per word of the chunk; `key` is not used. See `token_losses` about masks."""
        del key
        return token_losses(self.backbone, self.prefix(batch.observation), self.config.text, batch)

    def sample(self, key: Key[Array, ""], observation: Observation, num_samples: int = 1) -> Float[Array, "n b h a"]:
        return self.sample_from(key, self.prefix(observation), num_samples)

    def prefix(self, observation: Observation) -> Any:
        return self.backbone.prefix(observation)

    def sample_from(self, key: Key[Array, ""], prefix: Any, num_samples: int = 1) -> Float[Array, "n b h a"]:
        """Chunks of independent sentences, whose zeros may mean that a sentence was malformed."""
        keys = jax.random.split(key, num_samples)
        return jax.vmap(lambda key: self.sample_words(key, prefix)[0])(keys)

    def sample_words(
        self, key: Key[Array, ""], prefix: Any
    ) -> tuple[Float[Array, "b h a"], Bool[Array, "b"], Generated]:
        """One chunk per example, whether its sentence was well formed, and the sentence."""
        text = self.config.text
        words = self.backbone.generate(key, prefix, Decoding(text.max_tokens, text.end_token, self.config.temperature))
        actions, is_valid = text.decode(words.tokens)
        return actions, is_valid, words

    def features(self, prefix: Any) -> Float[Array, "b f"]:
        return self.backbone.features(prefix)

    def log_prob(self, observation: Observation, actions: Float[Array, "b h a"]) -> Float[Array, "b"]:
        """Natural log probability of the sentence that says the chunk, at temperature 1."""
        tokens, mask, _ = self.config.text.encode(actions)
        logits = self.backbone.token_logits(self.prefix(observation), tokens)
        return jnp.where(mask, per_token_log_prob(logits, tokens), 0.0).sum(-1)

    def encode_actions(self, actions: Float[Array, "b h a"]) -> Int[Array, "b n"]:
        return self.config.text.encode(actions)[0]

    def decode_actions(self, tokens: Int[Array, "b n"]) -> Float[Array, "b h a"]:
        return self.config.text.decode(tokens)[0]
