"""Parallel decoding of tokens by confidence: all start masked, and every round commits the surest of them.

    round s of T    logits of all positions -> a draw and a score at every masked one
                    -> the best stay so that floor(L * schedule(s / T)) masks are left -> doubtful ones masked again

`MaskedOptions` is the paper of Discrete Diffusion VLA (arXiv 2508.20072, section 3.3), `ReleasedOptions` its released
decoder, which is that of MaskGIT (arXiv 2202.04200). Neither is told the time: how many masks are left says it.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from vla_jax.core import errors

LogitsFn = Callable[[Int[Array, "b n"]], Float[Array, "b n v"]]


@dataclasses.dataclass(frozen=True)
class MaskedOptions:
    """The paper's decoder. Where its text allows two readings: the temperature divides the logits, so that the last
    round, at 0, takes the likeliest token; a committed token is doubted by the probability of that very token. Where no
    token is likelier than the doubt the draws are all taken back and the likeliest remain: for samples that differ from
    each other set `doubt=0` or take `ReleasedOptions`."""

    num_rounds: int = 12
    schedule: Literal["cosine", "linear"] = "cosine"  # linear with as many rounds as tokens: one token per round
    score: Literal["max", "gap", "random"] = "max"  # likeliest token, its lead over the second, or any order
    temperature: Literal["linear", "one", "zero"] = "linear"  # from 1 to 0, or constant
    doubt: float = 0.5  # after round s, tokens below doubt * s / T in probability are masked again; 0: none

    def __post_init__(self):
        _require(self, self.num_rounds >= 1 and self.doubt >= 0, "num_rounds >= 1 and doubt >= 0")


@dataclasses.dataclass(frozen=True)
class ReleasedOptions:
    """The released decoder: tokens drawn at temperature 1, kept by log probability and fading Gumbel noise, at least
    one masked after every round, and the draws of the last round returned whole."""

    num_rounds: int = 12
    schedule: Literal["cosine", "linear"] = "cosine"
    choice_temperature: float = 1.0  # of the Gumbel noise, times 1 - s / T
    remask: bool = False  # known tokens compete, at their probability times 1 - s / T, instead of being safe

    def __post_init__(self):
        fits = self.num_rounds >= 1 and self.choice_temperature >= 0
        _require(self, fits, "num_rounds >= 1 and choice_temperature >= 0")


class MaskedTrace(struct.PyTreeNode):
    """After every round; masked positions hold the id of the mask."""

    tokens: Int[Array, "rounds b n"]


def num_masked(num_tokens: int, num_rounds: int, schedule: str) -> Int[np.ndarray, "rounds"]:
    """How many of the tokens the schedule leaves masked after rounds 1 to `num_rounds`."""
    rounds = np.arange(1, num_rounds + 1)
    if schedule == "linear":
        return num_tokens * (num_rounds - rounds) // num_rounds
    # A cosine that should be exactly 0 is 6e-17, and one of exact thirds falls short of 1 / 2: 1e-9 of a token decides.
    return np.floor(num_tokens * np.cos(np.pi * rounds / (2 * num_rounds)) + 1e-9).astype(int)


def decode(
    key: Key[Array, ""],
    logits_fn: LogitsFn,
    batch_size: int,
    num_tokens: int,
    mask_id: int,
    options: MaskedOptions | ReleasedOptions,
) -> tuple[Int[Array, "b n"], MaskedTrace]:
    """Tokens in `[0, v)` from `num_rounds` calls of `logits_fn`, which sees `mask_id` where nothing is decided."""
    left = jnp.asarray(num_masked(num_tokens, options.num_rounds, options.schedule))
    progress = jnp.arange(1, options.num_rounds + 1) / options.num_rounds
    one_round = _masked_round if isinstance(options, MaskedOptions) else _released_round

    def step(carry, inputs):
        tokens, _ = carry
        key, progress, left = inputs
        known = tokens != mask_id
        drawn, kept = one_round(key, logits_fn(tokens), tokens, known, progress, left, options)
        tokens = jnp.where(kept, drawn, mask_id)
        return (tokens, drawn), tokens

    empty = jnp.full((batch_size, num_tokens), mask_id, jnp.int32)
    keys = jax.random.split(key, options.num_rounds)
    (_, drawn), trace = jax.lax.scan(step, (empty, empty), (keys, progress, left))
    return drawn, MaskedTrace(trace)


def _masked_round(key, logits, tokens, known, progress, left, options: MaskedOptions):
    draw_key, order_key = jax.random.split(key)
    temperature = {"linear": 1 - progress, "one": jnp.ones(()), "zero": jnp.zeros(())}[options.temperature]
    likeliest = logits.argmax(-1)
    random = jax.random.categorical(draw_key, logits / jnp.maximum(temperature, 1e-6))
    drawn = jnp.where(known, tokens, jnp.where(temperature > 0, random, likeliest))
    probabilities = jax.nn.softmax(logits, axis=-1)
    score = _score(order_key, probabilities, options.score)
    kept = _best(jnp.where(known, jnp.inf, score), left)
    doubted = _probability_of(probabilities, drawn) < options.doubt * progress
    return drawn, kept & (~doubted | (progress == 1))


def _released_round(key, logits, tokens, known, progress, left, options: ReleasedOptions):
    draw_key, choice_key = jax.random.split(key)
    drawn = jnp.where(known, tokens, jax.random.categorical(draw_key, logits))
    probability = _probability_of(jax.nn.softmax(logits, axis=-1), drawn)
    of_known = probability * (1 - progress) if options.remask else jnp.inf
    confidence = jnp.log(jnp.where(known, of_known, probability))
    noise = options.choice_temperature * (1 - progress) * jax.random.gumbel(choice_key, confidence.shape)
    return drawn, _best(confidence + noise, jnp.clip(left, 1, tokens.shape[-1] - 1))


def _score(key: Key[Array, ""], probabilities: Float[Array, "b n v"], kind: str) -> Float[Array, "b n"]:
    if kind == "random":
        return jax.random.uniform(key, probabilities.shape[:-1])
    best, second = jnp.moveaxis(jax.lax.top_k(probabilities, 2)[0], -1, 0)
    return best if kind == "max" else best - second


def _best(score: Float[Array, "b n"], left: Int[Array, ""]) -> Bool[Array, "b n"]:
    """True for all but the `left` lowest of each row; of equal scores the earlier positions stay."""
    rank = jnp.argsort(jnp.argsort(-score, axis=-1, stable=True), axis=-1)
    return rank < score.shape[-1] - left


def _probability_of(probabilities: Float[Array, "b n v"], tokens: Int[Array, "b n"]) -> Float[Array, "b n"]:
    return jnp.take_along_axis(probabilities, tokens[..., None], axis=-1)[..., 0]


def _require(options: MaskedOptions | ReleasedOptions, fits: bool, expected: str) -> None:
    if not fits:
        raise errors.ConfigError(type(options).__name__, expected=expected, found=options)
