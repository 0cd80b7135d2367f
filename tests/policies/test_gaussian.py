"""The squashed Gaussian and the regression policy on a backbone that is the state itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vla_jax.core import errors, functional
from vla_jax.core.types import Demonstrations, Observation
from vla_jax.nets.state_mlp import StateMLP, StateMLPConfig
from vla_jax.policies.base import HasLogProb, HasPrefix, require
from vla_jax.policies.gaussian import GaussianConfig, GaussianPolicy
from vla_jax.policies.regression import RegressionConfig, RegressionPolicy

H, A, S, B = 2, 1, 3, 5
KEY = jax.random.key(0)


def backbone(rngs):
    return StateMLP(StateMLPConfig(S, H, A, hidden_dims=(8,)), rngs)


def gaussian(rngs, **overrides):
    return GaussianPolicy(GaussianConfig(H, A, hidden_dims=(16,), **overrides), backbone(rngs), rngs)


def regression(rngs, **overrides):
    return RegressionPolicy(RegressionConfig(H, A, hidden_dims=(16,), **overrides), backbone(rngs), rngs)


def observation(state):
    ones = jnp.ones((state.shape[0], 1), bool)
    return Observation({}, {}, state, ones.astype(jnp.int32), ones)


def demonstrations(key, batch=B):
    state = jax.random.normal(key, (batch, S))
    actions = jnp.stack([jnp.tanh(state[:, :1]), 0.5 * jnp.ones((batch, 1))], axis=1)
    return Demonstrations(observation(state), actions, jnp.ones((batch, H, A), bool), jnp.ones(batch))


def trained(constructor, num_steps=300):
    net, params = functional.init(constructor, KEY)
    optimizer = optax.adam(1e-2)

    def step(carry, key):
        params, opt_state = carry
        batch = demonstrations(key, 64)
        grads = jax.grad(lambda p: net.bind(p).loss(key, batch)[0].mean())(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, jax.random.split(KEY, num_steps))[0][0])
    return net, run((params, optimizer.init(params)))


@pytest.fixture(scope="module")
def cloned():
    return functional.init(gaussian, KEY)


@pytest.fixture(scope="module")
def log_prob(cloned):
    net, params = cloned
    return jax.jit(lambda observation, chunks: net.bind(params).log_prob(observation, chunks))


ONE = jnp.array([[0.3, -0.2, 0.8]])


def test_the_density_integrates_to_one_over_the_chunks(log_prob):
    """On a grid over both entries of the chunk."""
    axis = (jnp.arange(100) + 0.5) / 50 - 1
    chunks = jnp.stack(jnp.meshgrid(axis, axis), -1).reshape(-1, H, A)
    same = observation(jnp.broadcast_to(ONE, (chunks.shape[0], S)))
    total = jnp.exp(log_prob(same, chunks)).sum() * 0.02**2
    assert float(total) == pytest.approx(1, abs=0.02)


def test_the_loss_is_the_negative_log_density_over_what_is_not_masked(cloned, log_prob):
    net, params = cloned
    losses = jax.jit(lambda batch: net.bind(params).loss(KEY, batch)[0])
    batch = demonstrations(KEY)
    np.testing.assert_allclose(losses(batch) * H * A, -log_prob(batch.observation, batch.actions), rtol=1e-5)
    mask = batch.action_mask.at[:, 1].set(False)
    half = losses(batch.replace(action_mask=mask))
    other = losses(batch.replace(action_mask=mask, actions=batch.actions.at[:, 1].set(-0.9)))
    np.testing.assert_allclose(half, other)
    np.testing.assert_array_equal(losses(batch.replace(action_mask=jnp.zeros_like(mask))), jnp.zeros(B))
    edge = batch.replace(actions=jnp.ones_like(batch.actions).at[0].set(-1.0))
    assert jnp.isfinite(losses(edge)).all()  # where the density of a squashed Gaussian has none


def test_samples_have_the_density_that_log_prob_says(cloned, log_prob):
    """Their mean log density is that of a histogram of them; both entries of the untrained chunk are alike."""
    net, params = cloned
    chunks = jax.jit(lambda: net.bind(params).sample(KEY, observation(ONE), 4000)[:, 0])()
    entropy = -log_prob(observation(jnp.broadcast_to(ONE, (4000, S))), chunks).mean()
    counts, _ = np.histogram(np.asarray(chunks[:, 0, 0]), bins=40, range=(-1, 1))
    share = counts[counts > 0] / 4000
    assert float(entropy) == pytest.approx(-2 * (share * np.log(share / 0.05)).sum(), abs=0.1)


@pytest.mark.parametrize("constructor", [gaussian, regression, lambda rngs: regression(rngs, squashed=True)])
def test_cloning_finds_the_demonstrated_chunk(constructor):
    net, params = trained(constructor)
    batch = demonstrations(jax.random.key(7), 64)

    def judge(params):
        policy = net.bind(params)
        return policy.mode(policy.prefix(batch.observation)), policy.loss(KEY, batch)[0]

    mode, loss = jax.jit(judge)(params)
    assert jnp.abs(mode - batch.actions).mean() < 0.05
    assert (loss * batch.weight).shape == (64,)


@pytest.mark.parametrize("constructor", [gaussian, regression])
def test_sampling_is_sampling_from_the_prefix(constructor):
    net, params = functional.init(constructor, KEY)
    require(net.bind(params), HasPrefix)

    def both(seen):
        policy = net.bind(params)
        return policy.sample(KEY, seen, 3), policy.sample_from(KEY, policy.prefix(seen), 3)

    direct, cached = jax.jit(both)(demonstrations(KEY).observation)
    assert direct.shape == (3, B, H, A)
    np.testing.assert_array_equal(direct, cached)
    varies = bool((direct[0] != direct[1]).any())
    assert varies == (constructor is gaussian)


def test_only_the_gaussian_has_a_density():
    require(GaussianPolicy, HasLogProb)
    with pytest.raises(errors.ConfigError, match="log_prob"):
        require(RegressionPolicy, HasLogProb)


def test_impossible_settings_are_refused():
    with pytest.raises(errors.ConfigError):
        GaussianConfig(H, A, std_range=(1.0, 0.5))
    with pytest.raises(errors.ConfigError):
        RegressionConfig(0, A)
