import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.nets import examples
from tests.policies.test_bins import batch_of
from vla_jax.codecs.bins import uniform_bins
from vla_jax.core import errors
from vla_jax.losses.tokens import cross_entropy
from vla_jax.policies import base
from vla_jax.policies.discrete_diffusion import (
    DiscreteDiffusionConfig,
    DiscreteDiffusionPolicy,
    corrupt,
    sample_ratio,
)
from vla_jax.samplers.maskgit import MaskedOptions, ReleasedOptions

KEY = jax.random.key(0)
H, A, BINS, B = 3, 2, 4, 3
CODEC = uniform_bins(A, BINS)
ACTIONS = jax.random.uniform(KEY, (B, H, A), minval=-1, maxval=1)


def make(backbone, decoding=None, loss_samples=2):
    config = DiscreteDiffusionConfig(H, CODEC, decoding or MaskedOptions(num_rounds=4, doubt=0.0), loss_samples)
    return examples.init(lambda rngs: DiscreteDiffusionPolicy(config, backbone(H * A, False, rngs), rngs), KEY)


@pytest.mark.parametrize("backbone", examples.BACKBONES)
def test_the_policy_samples_bin_centres_from_a_cached_prefix(backbone):
    net, params = make(backbone)
    base.require(DiscreteDiffusionPolicy, base.Policy, base.HasPrefix, base.HasTokens)
    observation = batch_of(ACTIONS).observation

    @jax.jit
    def both(params):
        policy = net.bind(params)
        return policy.sample(KEY, observation, 5), policy.sample_from(KEY, policy.prefix(observation), 5)

    whole, cached = both(params)
    assert whole.shape == (5, B, H, A) and jnp.array_equal(whole, cached)
    centres = jnp.array([-0.75, -0.25, 0.25, 0.75])[None, None, None, None]
    assert jnp.isclose(whole[..., None], centres, atol=1e-6).any(-1).all() and (whole != whole[:1]).any()


@pytest.mark.parametrize("backbone", examples.BACKBONES)
def test_unmasked_and_unreal_tokens_train_nothing(backbone):
    net, params = make(backbone)
    prefix = net.bind(params).prefix(batch_of(ACTIONS).observation)
    tokens = net.bind(params).encode_actions(ACTIONS)
    corrupted, masked = corrupt(KEY, tokens, jnp.array([0.3, 0.5, 1.0]), BINS)
    logits = net.bind(params).logits(prefix, corrupted)
    slope = jax.grad(lambda logits: cross_entropy(logits, tokens, masked).sum())(logits)
    assert ((jnp.abs(slope).sum(-1) > 0) == masked).all()
    mask = jnp.ones((B, H, A), bool).at[0, 1:].set(False)
    loss = jax.jit(lambda actions: net.bind(params).loss(KEY, batch_of(actions, mask))[0])
    np.testing.assert_array_equal(loss(ACTIONS), loss(ACTIONS.at[0, 1:].set(0.9)))
    assert (loss(ACTIONS) != loss(-ACTIONS)).all()


@pytest.mark.parametrize("backbone", examples.BACKBONES)
def test_every_slot_sees_every_other_and_not_what_hides_behind_a_mask(backbone):
    net, params = make(backbone)
    policy = net.bind(params)
    prefix = policy.prefix(batch_of(ACTIONS).observation)
    tokens = jnp.zeros((B, H * A), jnp.int32)
    before = policy.logits(prefix, tokens)
    for slot in (0, H * A - 1):
        moved = jnp.abs(policy.logits(prefix, tokens.at[:, slot].set(1)) - before).max((0, 2))
        assert (moved > 0).all()


def test_exactly_the_asked_share_is_masked_evenly():
    tokens = jnp.zeros((2000, 10), jnp.int32)
    ratio = jnp.where(jnp.arange(2000) % 2 == 0, 0.31, 1.0)
    corrupted, masked = corrupt(KEY, tokens, ratio, BINS)
    np.testing.assert_array_equal(masked.sum(-1), jnp.where(jnp.arange(2000) % 2 == 0, 4, 10))
    np.testing.assert_array_equal(corrupted == BINS, masked)
    np.testing.assert_allclose(masked[::2].mean(0), 0.4, atol=0.06)
    assert (corrupt(KEY, tokens, jnp.zeros(2000), BINS)[1].sum(-1) == 1).all()
    ratios = sample_ratio(KEY, (20_000,))
    assert float(ratios.mean()) == pytest.approx(2 / np.pi, abs=0.01) and ratios.max() <= 1 and ratios.min() > 0


def test_independent_tokens_reach_their_entropy():
    """The optimal cross-entropy of independent tokens is their entropy, whatever is masked."""
    net, params = make(examples.conv_film, loss_samples=32)
    probabilities = np.array([0.6, 0.2, 0.15, 0.05])
    entropy = -(probabilities * np.log(probabilities)).sum()
    centres = np.array([-0.75, -0.25, 0.25, 0.75], np.float32)

    def loss(params, key):
        draw_key, loss_key = jax.random.split(key)
        chosen = jax.random.choice(draw_key, jnp.asarray(centres), (8, H, A), p=jnp.asarray(probabilities))
        return net.bind(params).loss(loss_key, batch_of(chosen))[0].mean()

    _, losses = examples.train(loss, params, 500, optax.adam(2e-3))
    assert float(losses[-250:].mean()) == pytest.approx(entropy, abs=0.04)


def test_two_modes_are_kept_apart_by_rounds_and_mixed_by_one_draw():
    """All tokens of a chunk share a coin flip."""
    net, params = make(examples.conv_film, MaskedOptions(num_rounds=H * A), loss_samples=32)

    def loss(params, key):
        draw_key, loss_key = jax.random.split(key)
        sign = jnp.where(jax.random.bernoulli(draw_key, shape=(8, 1, 1)), 1.0, -1.0)
        return net.bind(params).loss(loss_key, batch_of(0.75 * sign * jnp.ones((8, H, A))))[0].mean()

    params, _ = examples.train(loss, params, 400, optax.adam(2e-3))
    one = jax.tree.map(lambda x: x[:1], batch_of(ACTIONS).observation)
    samples = jax.jit(lambda p: net.bind(p).sample(KEY, one, 400))(params)[:, 0].reshape(400, -1)
    consistent = (jnp.abs(samples.sum(-1)) > 0.75 * H * A - 1e-3).mean()
    assert float(consistent) > 0.95 and 0.35 < float((samples[:, 0] > 0).mean()) < 0.65
    at_once, _ = make(examples.conv_film, ReleasedOptions(num_rounds=1))
    samples = jax.jit(lambda p: at_once.bind(p).sample(KEY, one, 400))(params)[:, 0].reshape(400, -1)
    assert float((jnp.abs(samples.sum(-1)) > 0.75 * H * A - 1e-3).mean()) < 0.2


def test_empty_chunks_are_refused():
    with pytest.raises(errors.ConfigError, match="action_horizon=0"):
        DiscreteDiffusionConfig(0, CODEC)
