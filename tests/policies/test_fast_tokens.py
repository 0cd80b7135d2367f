import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nets import examples
from tests.policies import words
from vla_jax.core import errors, functional
from vla_jax.core.types import Demonstrations
from vla_jax.nets.paligemma import PaliGemma
from vla_jax.policies import base
from vla_jax.policies.fast_tokens import FastConfig, FastPolicy

KEY = jax.random.key(0)
H, A, B = words.H, words.A, 3
ACTIONS = jax.random.uniform(KEY, (B, H, A), minval=-0.6, maxval=0.6)


@functools.cache
def make(temperature=0.0):
    config, backbone = FastConfig(words.TEXT, temperature), words.paligemma_config()
    return examples.init(lambda rngs: FastPolicy(config, PaliGemma(backbone, rngs), rngs), KEY)


@jax.jit
def losses_of(params, batch):
    return make()[0].bind(params).loss(KEY, batch)


def batch_of(actions, mask=None):
    mask = jnp.ones(actions.shape, bool) if mask is None else mask
    return Demonstrations(examples.observation(KEY, len(actions)), actions, mask, jnp.ones(len(actions)))


def test_the_policy_has_its_capabilities_and_the_loss_is_the_log_probability_per_word():
    net, params = make()
    base.require(FastPolicy, base.Policy, base.HasPrefix, base.HasLogProb, base.HasTokens)
    batch = batch_of(ACTIONS)

    losses, metrics = losses_of(params, batch)
    log_prob = jax.jit(lambda params: net.bind(params).log_prob(batch.observation, ACTIONS))(params)
    lengths = jax.jit(words.TEXT.encode)(ACTIONS)[1].sum(1)
    np.testing.assert_allclose(losses, -log_prob / lengths, rtol=1e-4)
    assert metrics["tokens/cut_off"] == 0 and metrics["tokens/count"] == lengths.mean()


def test_only_the_sentence_of_the_actions_is_scored():
    """Even logits cost log(vocabulary) per word, whatever the prompt's length; prompt words would change the mean."""
    losses, _ = losses_of(jax.tree.map(jnp.zeros_like, make()[1]), batch_of(ACTIONS))
    np.testing.assert_allclose(losses, np.log(words.VOCAB), rtol=1e-5)


def test_masked_entries_change_neither_the_loss_nor_any_gradient():
    net, params = make()
    mask = jnp.ones((B, H, A), bool).at[0, 2:].set(False).at[1].set(False)

    @jax.jit
    def value_and_grad(actions):
        def loss(params):
            losses = net.bind(params).loss(KEY, batch_of(actions, mask))[0]
            return losses.sum(), losses

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, losses), grads = value_and_grad(ACTIONS)
    (_, others), other_grads = value_and_grad(jnp.where(mask, ACTIONS, 0.9))
    assert jnp.array_equal(losses, others) and losses[1] == 0 and losses[0] > 0
    assert all(map(jnp.array_equal, jax.tree.leaves(grads), jax.tree.leaves(other_grads)))


def test_samples_are_chunks_of_written_sentences_and_malformed_ones_are_zeros():
    net, params = make(temperature=1.0)
    observation = batch_of(ACTIONS).observation

    @jax.jit
    def run(params):
        policy = net.bind(params)
        return policy.sample(KEY, observation, 2), policy.sample_words(KEY, policy.prefix(observation))

    samples, (actions, is_valid, sentence) = run(params)
    assert samples.shape == (2, B, H, A)
    # An untrained model writes anything but a chunk.
    assert not is_valid.any() and (actions == 0).all() and (samples == 0).all()
    assert len(np.unique(sentence.tokens)) > 3


def test_the_state_is_part_of_the_prompt():
    batch, state = batch_of(ACTIONS), jnp.zeros((B, examples.STATE_DIM))
    before, after = (
        losses_of(make()[1], batch.replace(observation=batch.observation.replace(state=x)))[0]
        for x in (state, state.at[:, 0].set(0.9))
    )
    assert (before != after).all()


def test_backbones_without_the_words_are_refused():
    backbones = [
        ("writes no words", lambda rngs: examples.conv_film(4, False, rngs)),
        ("writes no words", lambda rngs: examples.transformer(4, False, rngs)),
        ("vocab_size of at least", lambda rngs: PaliGemma(words.paligemma_config(vocab_size=20), rngs)),
    ]
    for message, backbone in backbones:
        with pytest.raises(errors.ConfigError, match=message):
            functional.describe(lambda rngs, b=backbone: FastPolicy(FastConfig(words.TEXT), b(rngs), rngs))
    with pytest.raises(errors.ConfigError, match="temperature"):
        FastConfig(words.TEXT, temperature=-1.0)
