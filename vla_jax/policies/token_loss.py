"""What policies share that say their actions in words: the loss of the words against a backbone with text."""

from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vla_jax.codecs.action_text import ActionText
from vla_jax.core import errors
from vla_jax.core.types import Demonstrations, Metrics
from vla_jax.losses.tokens import cross_entropy
from vla_jax.nets.backbone import Backbone
from vla_jax.nets.language import Decoding, Generated


@runtime_checkable
class WritesText(Backbone, Protocol):
    """`nets/paligemma.py`, and `nets/vla_transformer.py` with `with_text`."""

    def token_logits(self, prefix: Any, tokens: Int[Array, "b n"]) -> Float[Array, "b n v"]: ...

    def generate(self, key: Key[Array, ""], prefix: Any, decoding: Decoding) -> Generated: ...


def require_text(backbone: Backbone, text: ActionText, place: str) -> None:
    """Raise ConfigError unless the backbone writes words and knows those of the actions."""
    if not isinstance(backbone, WritesText) or getattr(backbone.config, "with_text", True) is False:
        raise errors.ConfigError(
            f"{place}: the backbone writes no words",
            expected="PaliGemma, or VlaTransformer with with_text=True",
            found=type(backbone).__name__,
        )
    if backbone.config.vocab_size < text.vocab_size:
        raise errors.ConfigError(
            f"{place}: the backbone does not know the words of the actions",
            expected=f"vocab_size of at least {text.vocab_size}",
            found=backbone.config.vocab_size,
        )


def token_losses(
    backbone: WritesText, prefix: Any, text: ActionText, batch: Demonstrations
) -> tuple[Float[Array, "b"], Metrics]:
    """Teacher-forced cross-entropy of the chunk's words in nats, one mean per example over start, actions and end.

    Actions under a False mask count as 0, so what stands there changes nothing; an example without any real action
    costs 0.
    """
    tokens, mask, fits = text.encode(jnp.where(batch.action_mask, batch.actions, 0.0))
    mask &= batch.action_mask.any((1, 2))[:, None]
    logits = backbone.token_logits(prefix, tokens)
    losses = cross_entropy(logits, tokens, mask)
    hits = (logits.argmax(-1) == tokens) & mask
    metrics = {
        "tokens/loss": losses.mean(),
        "tokens/accuracy": hits.sum() / jnp.maximum(mask.sum(), 1),
        "tokens/count": mask.sum(1).mean(),
        "tokens/cut_off": (~fits).mean(),
    }
    return losses, metrics
