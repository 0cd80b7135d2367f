import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.nets import examples
from vla_jax.core import errors, functional
from vla_jax.nets.backbone import Backbone
from vla_jax.nets.gemma import GemmaConfig
from vla_jax.nets.language import Decoding
from vla_jax.nets.mixture import Stream, run_layers
from vla_jax.nets.paligemma import PaliGemma, PaliGemmaConfig, paligemma, pi0_fast, tiny_paligemma
from vla_jax.nets.siglip import SiglipConfig
from vla_jax.nets.state_text import StateText
from vla_jax.policies.token_loss import text_losses

KEY = jax.random.key(0)
B, N, END = 3, 5, 1
OBSERVATION = examples.observation(KEY, B)
TARGET = jax.random.randint(jax.random.key(1), (B, N), 2, examples.VOCAB)


def config(**changes):
    vision = SiglipConfig(16, depth=1, mlp_dim=16, num_heads=2, patch_size=8, image_size=examples.SIZE)
    language = GemmaConfig(16, depth=2, mlp_dim=24, num_heads=4, num_kv_heads=2, head_dim=8)
    read = dict(cameras=examples.CAMERAS, vocab_size=examples.VOCAB, prompt_length=examples.PROMPT)
    return PaliGemmaConfig(**read, vision=vision, language=language, **changes)


NET, PARAMS = examples.init(lambda rngs: PaliGemma(config(), rngs), KEY)
# Louder words: an untrained model's logits are too even to tell right from wrong.
PARAMS = {**PARAMS, "embedding": 4 * PARAMS["embedding"]}


@jax.jit
def scored(params, observation, target):
    model = NET.bind(params)
    return model.token_logits(model.prefix(observation), target)


@functools.partial(jax.jit, static_argnums=0)
def generate(decoding, params=PARAMS, observation=OBSERVATION):
    model = NET.bind(params)
    return model.generate(KEY, model.prefix(observation), decoding)


@pytest.mark.parametrize("config", [paligemma(), pi0_fast(("base", "left_wrist", "right_wrist"))])
def test_it_has_the_published_number_of_parameters_and_a_tiny_one_has_few(config):
    """Nothing is allocated. Hugging Face counts 2,923,466,480 in google/paligemma-3b-pt-224, whose embedding of 257216
    rows has 64 more."""
    _, params = functional.describe(lambda rngs: PaliGemma(config, rngs))
    assert functional.count(params) == 2_923_466_480 - 64 * 2048
    assert functional.count(params["embedding"]) == 257152 * 2048
    _, tiny = functional.describe(lambda rngs: PaliGemma(tiny_paligemma(), rngs))
    assert functional.count(tiny) < 1.2e6


def test_it_is_a_backbone_whose_suffix_may_see_itself_both_ways_or_not():
    model = NET.bind(PARAMS)
    assert isinstance(model, Backbone) and model.feature_dim == 16
    prefix = jax.jit(model.prefix)(OBSERVATION)
    tokens = jax.random.normal(KEY, (B, N, model.suffix_width))
    for causal in (True, False):
        suffix = jax.jit(functools.partial(model.suffix, prefix, causal=causal))
        assert jnp.array_equal(suffix(tokens)[:, 0], suffix(tokens.at[:, -1].add(1))[:, 0]) == causal
    with pytest.raises(errors.ConfigError, match="condition"):
        model.suffix(prefix, tokens, condition=jnp.zeros((B, 16)))


def test_scoring_against_the_cache_equals_one_pass_without_a_cache():
    """One pass over prefix and target, with the mask written out here."""

    @jax.jit
    def without_cache(params):
        model = NET.bind(params)
        parts = model.see_and_read(OBSERVATION)
        tokens = jnp.concatenate([*(part.tokens for part in parts), model.embed(TARGET[:, :-1])], axis=1)
        is_real = jnp.concatenate([*(part.mask for part in parts), jnp.ones((B, N - 1), bool)], axis=1)
        num_prefix = is_real.shape[1] - (N - 1)
        order = jnp.arange(is_real.shape[1])
        sees = (order[None] <= order[:, None]) | (order < num_prefix)[None]
        stream = Stream(tokens, jnp.cumsum(is_real, axis=1) - 1)
        out = model.norm(run_layers([model.layers], [stream], sees[None] & is_real[:, None]).tokens[0])
        last = jnp.max(jnp.where(is_real[:, :num_prefix], order[None, :num_prefix], 0), axis=1)
        rows = jnp.concatenate([last[:, None], jnp.broadcast_to(order[None, num_prefix:], (B, N - 1))], axis=1)
        return jnp.take_along_axis(out, rows[..., None], axis=1) @ params["embedding"].T

    np.testing.assert_allclose(scored(PARAMS, OBSERVATION, TARGET), without_cache(PARAMS), atol=1e-4)


def test_generation_with_the_growing_cache_takes_the_likeliest_token_of_the_scored_text():
    written = generate(Decoding(N, end_token=-1))
    assert written.mask.all()
    logits = scored(PARAMS, OBSERVATION, written.tokens)
    assert jnp.array_equal(logits.argmax(-1), written.tokens)
    assert len(set(map(tuple, written.tokens.tolist()))) > 1  # rows differ, so a row that read another's cache shows


def test_padding_of_the_prompt_changes_nothing():
    longer = OBSERVATION.replace(
        prompt=jnp.pad(OBSERVATION.prompt, ((0, 0), (0, 4)), constant_values=3),
        prompt_mask=jnp.pad(OBSERVATION.prompt_mask, ((0, 0), (0, 4))),
    )
    np.testing.assert_allclose(scored(PARAMS, longer, TARGET), scored(PARAMS, OBSERVATION, TARGET), atol=1e-4)
    decoding = Decoding(N, end_token=-1)
    assert jnp.array_equal(generate(decoding, observation=longer).tokens, generate(decoding).tokens)


def test_a_row_stops_at_its_end_token_and_the_others_go_on():
    free = generate(Decoding(N, end_token=-1)).tokens
    end = int(free[0, 1])
    stopped = generate(Decoding(N, end_token=end))
    for row, tokens, mask in zip(free, stopped.tokens, stopped.mask, strict=True):
        length = int(jnp.argmax(row == end)) + 1 if (row == end).any() else N
        assert jnp.array_equal(mask, jnp.arange(N) < length)
        assert jnp.array_equal(tokens, jnp.where(mask, row, 0))
    assert not stopped.mask[0, 2:].any()


def test_samples_follow_the_probabilities():
    decoding = Decoding(1, end_token=-1, temperature=5.0)
    many = jax.tree.map(lambda x: jnp.repeat(x[:1], 1000, axis=0), OBSERVATION)
    tokens = generate(decoding, observation=many).tokens[:, 0]
    expected = jax.nn.softmax(scored(PARAMS, OBSERVATION, TARGET)[0, 0] / 5)
    shares = jnp.bincount(tokens, length=examples.VOCAB) / 1000
    assert jnp.abs(shares - expected).max() < 4 * 0.5 / np.sqrt(1000)
    assert expected.max() < 0.95  # else a greedy choice would pass


def test_a_caption_is_memorized_and_written_back():
    """Two pictures, one prompt: the caption depends on the picture alone, and ends."""
    captions = jnp.array([[2, 3, 4, END, 0], [5, 3, END, 0, 0]])
    mask = jnp.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], bool)
    pair = jax.tree.map(lambda x: x[:2], OBSERVATION)
    pair = pair.replace(prompt=pair.prompt.at[1].set(pair.prompt[0]), prompt_mask=pair.prompt_mask.at[1].set(True))
    pair = pair.replace(prompt_mask=jnp.ones_like(pair.prompt_mask))

    def loss(params, key):
        model = NET.bind(params)
        return text_losses(model, model.prefix(pair), captions, mask)[0].mean()

    params, losses = examples.train(loss, PARAMS, 60, optax.adam(1e-2))
    assert losses[0] > 1 and losses[-1] < 0.05
    written = generate(Decoding(N, END), params=params, observation=pair)
    assert jnp.array_equal(written.tokens, captions) and jnp.array_equal(written.mask, mask)


def test_the_state_reaches_the_model_only_as_words():
    numbers = tuple((2 + k // 3, 2 + k % 3) if k else (2,) for k in range(8))
    text = StateText(numbers, end=(9,))
    net, _ = functional.describe(lambda rngs: PaliGemma(config(state_dim=examples.STATE_DIM, state_text=text), rngs))

    @jax.jit
    def logits(observation):
        model = net.bind(PARAMS)  # the state needs no parameters
        return model.token_logits(model.prefix(observation), TARGET)

    state = jnp.array([[-1.0, 0.3, 0.9]] * B)  # bins 0, 5, 7 of 8
    written = OBSERVATION.replace(
        prompt=jnp.concatenate([OBSERVATION.prompt, jnp.array([[2, 3, 4, 4, 3, 9]] * B)], axis=1),
        prompt_mask=jnp.concatenate([OBSERVATION.prompt_mask, jnp.ones((B, 6), bool)], axis=1),
    )
    np.testing.assert_allclose(logits(OBSERVATION.replace(state=state)), scored(PARAMS, written, TARGET), atol=1e-4)
    same_bins = OBSERVATION.replace(state=state + jnp.array([[-5.0, 0.1, 0.05]]))
    assert jnp.array_equal(logits(OBSERVATION.replace(state=state)), logits(same_bins))


def test_impossible_configs_are_named():
    with pytest.raises(errors.ConfigError, match="distinct names"):
        dataclasses.replace(config(), cameras=("front", "front"))
    with pytest.raises(errors.ConfigError, match="state_dim"):
        config(state_text=StateText(((2,), (3,)), ()))
    with pytest.raises(errors.ConfigError, match="temperature"):
        Decoding(4, temperature=-1.0)
