"""The loss of words against a backbone that writes them: any text, and the words that say a chunk of actions."""

from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

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
            expected="PaliGemma, QwenVL, or VlaTransformer with with_text=True",
            found=type(backbone).__name__,
        )
    if backbone.config.vocab_size < text.vocab_size:
        raise errors.ConfigError(
            f"{place}: the backbone does not know the words of the actions",
            expected=f"vocab_size of at least {text.vocab_size}",
            found=backbone.config.vocab_size,
        )


def text_losses(
    model: WritesText, prefix: Any, target: Int[Array, "b n"], target_mask: Bool[Array, "b n"]
) -> tuple[Float[Array, "b"], Float[Array, ""]]:
    """The loss of a prefix language model: cross-entropy in nats per word of the target given images and prompt, one
    mean per example, and the share of words that are the likeliest. Words under a False mask train nothing."""
    logits = model.token_logits(prefix, target)
    hits = (logits.argmax(-1) == target) & target_mask
    return cross_entropy(logits, target, target_mask), hits.sum() / jnp.maximum(target_mask.sum(), 1)


def token_losses(
    backbone: WritesText, prefix: Any, text: ActionText, batch: Demonstrations
) -> tuple[Float[Array, "b"], Metrics]:
    """Teacher-forced cross-entropy of the chunk's words in nats, one mean per example over start, actions and end.

    Actions under a False mask count as 0, so what stands there changes nothing; an example without any real action
    costs 0.
    """
    tokens, mask, fits = text.encode(jnp.where(batch.action_mask, batch.actions, 0.0))
    mask &= batch.action_mask.any((1, 2))[:, None]
    losses, accuracy = text_losses(backbone, prefix, tokens, mask)
    metrics = {
        "tokens/loss": losses.mean(),
        "tokens/accuracy": accuracy,
        "tokens/count": mask.sum(1).mean(),
        "tokens/cut_off": (~fits).mean(),
    }
    return losses, metrics
