import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.nets import examples
from vla_jax.codecs.bins import uniform_bins
from vla_jax.core import errors
from vla_jax.core.types import Demonstrations
from vla_jax.policies import base
from vla_jax.policies.bins import BinsConfig, BinsPolicy

KEY = jax.random.key(0)
H, A, BINS, B = 2, 2, 3, 3
CODEC = uniform_bins(A, BINS)
MADE = {}


def make(backbone, temperature=1.0):
    if (backbone, temperature) not in MADE:
        config = BinsConfig(H, CODEC, temperature)
        MADE[backbone, temperature] = examples.init(
            lambda rngs: BinsPolicy(config, backbone(H * A, False, rngs), rngs), KEY
        )
    return MADE[backbone, temperature]


def batch_of(actions, mask=None):
    mask = jnp.ones(actions.shape, bool) if mask is None else mask
    return Demonstrations(examples.observation(KEY, len(actions)), actions, mask, jnp.ones(len(actions)))


ACTIONS = jax.random.uniform(KEY, (B, H, A), minval=-1, maxval=1)
CENTRES = np.array([-2 / 3, 0, 2 / 3], np.float32)


@pytest.mark.parametrize("backbone", examples.BACKBONES)
def test_the_policy_has_its_capabilities_and_samples_bin_centres(backbone):
    net, params = make(backbone)
    base.require(BinsPolicy, base.Policy, base.HasPrefix, base.HasLogProb, base.HasTokens)
    assert isinstance(net.bind(params), base.Policy)
    observation = batch_of(ACTIONS).observation
    sample = jax.jit(lambda params, key: net.bind(params).sample(key, observation, 5))
    samples = sample(params, KEY)
    assert samples.shape == (5, B, H, A)
    assert jnp.isclose(samples[..., None], CENTRES[None, None, None, None], atol=1e-6).any(-1).all()
    assert (samples != samples[:1]).any()  # samples have keys of their own
    assert jnp.array_equal(samples, sample(params, KEY)) and (samples != sample(params, jax.random.key(5))).any()


@pytest.mark.parametrize("backbone", examples.BACKBONES)
def test_probabilities_of_all_chunks_sum_to_one_and_samples_follow_them(backbone):
    """3 bins, 4 tokens: all 81 chunks. A suffix that saw its own token would give sums away from 1."""
    net, params = make(backbone)
    # away from uniform, so that the comparison says something
    params = {**params, "logits_out": jax.tree.map(lambda x: 10 * x, params["logits_out"])}
    one = jax.tree.map(lambda x: x[:1], batch_of(ACTIONS).observation)
    chunks = jnp.array(list(itertools.product(CENTRES, repeat=H * A))).reshape(-1, H, A)
    repeated = jax.tree.map(lambda x: jnp.repeat(x, len(chunks), axis=0), one)
    probabilities = jnp.exp(jax.jit(lambda p: net.bind(p).log_prob(repeated, chunks))(params))
    assert jnp.allclose(probabilities.sum(), 1, atol=1e-4)
    samples = jax.jit(lambda p: net.bind(p).sample(KEY, one, 4000))(params)[:, 0]
    index = (net.bind(params).encode_actions(samples) * 3 ** jnp.arange(3, -1, -1)[None]).sum(-1)
    shares = jnp.bincount(index, length=81) / 4000
    assert probabilities.max() > 3 / 81
    assert jnp.abs(shares - probabilities).max() < 4 * jnp.sqrt(probabilities.max() / 4000)


@pytest.mark.parametrize("backbone", examples.BACKBONES)
def test_masked_entries_change_neither_the_loss_nor_any_gradient(backbone):
    net, params = make(backbone)
    mask = jnp.ones((B, H, A), bool).at[0, 1:].set(False).at[1, :, 1].set(False)

    @jax.jit
    def value_and_grad(params, actions):
        return jax.value_and_grad(lambda p: net.bind(p).loss(KEY, batch_of(actions, mask))[0].mean())(params)

    value, grads = value_and_grad(params, ACTIONS)
    other_value, other_grads = value_and_grad(params, jnp.where(mask, ACTIONS, 7.0))
    assert value == other_value
    assert all(map(jnp.array_equal, jax.tree.leaves(grads), jax.tree.leaves(other_grads)))


def test_the_loss_is_the_mean_negative_log_probability_of_the_tokens():
    net, params = make(examples.conv_film)
    batch = batch_of(ACTIONS)
    log_prob = net.bind(params).log_prob(batch.observation, ACTIONS)
    assert jnp.allclose(net.bind(params).loss(KEY, batch)[0], -log_prob / (H * A), atol=1e-5)


@pytest.mark.parametrize("backbone", examples.BACKBONES)
def test_both_modes_are_learned_and_chunks_stay_whole(backbone):
    """Whole chunks are +2/3 or -2/3 with equal chance: tokens drawn without regard to each other would mix signs."""
    net, params = make(backbone)
    observation = jax.tree.map(lambda x: x[:1].repeat(8, 0), examples.observation(KEY))
    signs = jnp.where(jnp.arange(8) % 2 == 0, 2 / 3, -2 / 3)[:, None, None]
    batch = batch_of(jnp.broadcast_to(signs, (8, H, A))).replace(observation=observation)
    params, losses = examples.train(
        lambda p, key: net.bind(p).loss(key, batch)[0].mean(), params, 150, optax.adam(5e-3)
    )
    # one coin for four tokens: log 2 / 4 nats per token is the floor
    assert losses[0] > 0.9 and losses[-1] < np.log(2) / 4 + 0.05
    samples = jax.jit(lambda p: net.bind(p).sample(KEY, observation, 8))(params).reshape(64, -1)
    same_sign = (samples > 0.5).all(-1) | (samples < -0.5).all(-1)
    assert same_sign.mean() > 0.9 and 0.2 < (samples[:, 0] > 0).mean() < 0.8


def test_temperature_zero_takes_the_likeliest_token_every_time():
    net, params = make(examples.conv_film, temperature=0.0)
    observation = batch_of(ACTIONS).observation
    samples = net.bind(params).sample(KEY, observation, 3)
    assert (samples == samples[:1]).all()


def test_impossible_configs_are_rejected():
    with pytest.raises(errors.ConfigError):
        BinsConfig(0, CODEC)
    with pytest.raises(errors.ConfigError):
        BinsConfig(H, CODEC, temperature=-1.0)
