import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.core import errors
from vla_jax.samplers import maskgit
from vla_jax.samplers.maskgit import MaskedOptions, ReleasedOptions

KEY = jax.random.key(0)
B, L, K, T = 3, 14, 5, 6
MASK = K
ENDS = jnp.log(jnp.array([0.4, 0.15, 0.15, 0.15, 0.15]))
LOGITS = 2 * jax.random.normal(KEY, (B, L, K))


def fixed(tokens):
    """A model that does not look at the other tokens."""
    del tokens
    return LOGITS


def run(options, logits_fn=fixed, key=KEY, length=L, batch=B):
    return jax.jit(lambda key: maskgit.decode(key, logits_fn, batch, length, MASK, options))(key)


@pytest.mark.parametrize("rounds", [1, 2, 7, 12])
def test_masks_left_follow_the_cosine_exactly(rounds):
    expected = [math.floor(56 * round(math.cos(math.pi * s / (2 * rounds)), 12)) for s in range(1, rounds + 1)]
    assert maskgit.num_masked(56, rounds, "cosine").tolist() == expected and expected[-1] == 0
    _, trace = run(MaskedOptions(num_rounds=T, doubt=0.0))
    left = (trace.tokens == MASK).sum(-1)
    np.testing.assert_array_equal(left, maskgit.num_masked(L, T, "cosine")[:, None].repeat(B, 1))


def test_one_round_is_the_likeliest_token_everywhere():
    tokens, _ = run(MaskedOptions(num_rounds=1))
    np.testing.assert_array_equal(tokens, LOGITS.argmax(-1))


@pytest.mark.parametrize("score", ["max", "gap", "random"])
def test_without_doubt_committed_tokens_never_change(score):
    tokens, trace = run(MaskedOptions(num_rounds=T, score=score, doubt=0.0))
    rounds = np.asarray(trace.tokens)
    for before, after in itertools.pairwise(rounds):
        np.testing.assert_array_equal(after[before != MASK], before[before != MASK])
    np.testing.assert_array_equal(rounds[-1], tokens)
    assert (tokens < K).all() and (tokens >= 0).all()


def test_with_doubt_above_one_nothing_stays_before_the_last_round():
    tokens, trace = run(MaskedOptions(num_rounds=T, doubt=1e6))
    assert (trace.tokens[:-1] == MASK).all() and (tokens < K).all()


def test_a_token_that_became_unlikely_is_taken_back():
    """The model wants 0 while all is masked, and 1 as soon as anything is decided."""

    def fickle(tokens):
        wanted = jnp.where((tokens == MASK).all(-1, keepdims=True), 0, 1) * jnp.ones_like(tokens)
        return 20.0 * jax.nn.one_hot(wanted, K)

    kept, _ = run(MaskedOptions(num_rounds=T, doubt=0.0), fickle)
    revoked, _ = run(MaskedOptions(num_rounds=T, doubt=0.5), fickle)
    assert (kept == 0).any() and (revoked == 1).all()


def test_the_surest_positions_come_first():
    sure = jnp.arange(L)[None].repeat(B, 0).astype(float)  # the later the surer
    logits_fn = lambda tokens: sure[..., None] * jax.nn.one_hot(jnp.ones_like(tokens), K)  # noqa: E731
    _, trace = run(MaskedOptions(num_rounds=L, schedule="linear", temperature="zero", doubt=0.0), logits_fn)
    for s in range(L):  # one token per round, from the last to the first
        np.testing.assert_array_equal(trace.tokens[s] != MASK, np.arange(L)[None].repeat(B, 0) >= L - 1 - s)


def test_one_token_per_round_samples_the_joint_distribution():
    """Two correlated bits with exact conditionals; tokens drawn together would mix the modes half of the time."""

    def conditional(tokens):  # p(both 0) = 0.7, p(both 1) = 0.3
        other = tokens[:, ::-1]
        marginal = jnp.log(jnp.array([0.7, 0.3]))[None, None]
        given = 20.0 * jax.nn.one_hot(other, 2)
        two = jnp.where((other == MASK)[..., None], marginal, given)
        return jnp.concatenate([two, jnp.full((*two.shape[:2], K - 2), -30.0)], axis=-1)

    options = MaskedOptions(num_rounds=2, schedule="linear", temperature="one", doubt=0.0)
    tokens, _ = run(options, conditional, length=2, batch=4000)
    assert (tokens[:, 0] == tokens[:, 1]).mean() > 0.999
    assert float((tokens == 0).mean()) == pytest.approx(0.7, abs=0.03)
    together, _ = run(ReleasedOptions(num_rounds=1), conditional, length=2, batch=4000)
    assert float((together[:, 0] == together[:, 1]).mean()) == pytest.approx(0.7**2 + 0.3**2, abs=0.03)


@pytest.mark.parametrize("remask", [False, True])
def test_the_released_decoder_leaves_one_mask_and_returns_whole_chunks(remask):
    tokens, trace = run(ReleasedOptions(num_rounds=T, remask=remask))
    expected = np.clip(maskgit.num_masked(L, T, "cosine"), 1, L - 1)
    np.testing.assert_array_equal((trace.tokens == MASK).sum(-1), expected[:, None].repeat(B, 1))
    assert (tokens < K).all()
    rounds = np.asarray(trace.tokens)
    changed = any(
        (after[before != MASK] != before[before != MASK]).any() for before, after in itertools.pairwise(rounds)
    )
    assert changed == remask


@pytest.mark.parametrize("options", [MaskedOptions(num_rounds=T, doubt=0.0), ReleasedOptions(num_rounds=T)])
def test_keys_decide(options):
    again, other = run(options), run(options, key=jax.random.key(1))
    assert jnp.array_equal(run(options)[0], again[0]) and (again[0] != other[0]).any()


def test_a_distribution_flatter_than_the_doubt_ends_at_its_likeliest_tokens():
    flat = 0.1 * LOGITS
    tokens, _ = run(MaskedOptions(num_rounds=T), lambda tokens: flat)
    np.testing.assert_array_equal(tokens, flat.argmax(-1))


def test_the_likeliest_bin_may_be_an_end_although_most_of_the_mass_is_spread_over_the_middle():
    """Bins finer than the data's noise mislead greedy decoders: 0.4 at one end, 0.15 in each of four inner bins."""
    logits_fn = lambda tokens: jnp.broadcast_to(ENDS, (*tokens.shape, K))  # noqa: E731
    greedy, _ = run(MaskedOptions(num_rounds=T), logits_fn, batch=500)
    assert (greedy == 0).all()  # the draws are doubted, and the likeliest remain
    drawn, _ = run(MaskedOptions(num_rounds=T, score="random", temperature="one", doubt=0.0), logits_fn, batch=500)
    assert float((drawn == 0).mean()) == pytest.approx(0.4, abs=0.03)


def test_rounds_keep_what_tokens_have_in_common_and_one_draw_averages_it_out():
    """All tokens of a row are equal, 0 or 1: their sum's standard deviation is n / 2 in rounds, sqrt(n) / 2 at once."""
    n = 9

    def conditional(tokens):
        known = jnp.where(tokens == MASK, -1, tokens).max(-1)[:, None]
        two = jnp.where(known[..., None] < 0, 0.0, 40.0 * jax.nn.one_hot(known, 2))
        two = jnp.broadcast_to(two, (*tokens.shape, 2))
        return jnp.concatenate([two, jnp.full((*tokens.shape, K - 2), -40.0)], axis=-1)

    one_by_one = MaskedOptions(num_rounds=n, schedule="linear", score="random", temperature="one", doubt=0.0)
    together = ReleasedOptions(num_rounds=1)
    spread = [run(each, conditional, length=n, batch=2000)[0].sum(-1).std() for each in (one_by_one, together)]
    np.testing.assert_allclose(spread, [n / 2, n**0.5 / 2], rtol=0.06)


def test_bad_counts_are_refused():
    for options in (MaskedOptions, ReleasedOptions):
        with pytest.raises(errors.ConfigError, match="num_rounds=0"):
            options(num_rounds=0)
