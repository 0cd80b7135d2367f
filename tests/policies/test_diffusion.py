import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.nets import examples
from tests.policies.test_bins import batch_of
from vla_jax.core import errors
from vla_jax.policies import base
from vla_jax.policies.diffusion import DiffusionConfig, DiffusionPolicy
from vla_jax.samplers.diffusion import NoiseSchedule

KEY = jax.random.key(0)
H, A, B = 3, 2, 3
ACTIONS = jax.random.uniform(KEY, (B, H, A), minval=-1, maxval=1)


def make(backbone, **changes):
    config = DiffusionConfig(H, A, **changes)
    adaptive = config.time_conditioning == "adaptive_norm"
    return examples.init(lambda rngs: DiffusionPolicy(config, backbone(H, adaptive, rngs), rngs), KEY)


@pytest.mark.parametrize("backbone", examples.BACKBONES)
@pytest.mark.parametrize("ddim_steps", [None, 3])
def test_samples_come_from_a_cached_prefix_and_stay_in_the_box(backbone, ddim_steps):
    net, params = make(backbone, ddim_steps=ddim_steps, time_conditioning="adaptive_norm")
    base.require(DiffusionPolicy, base.Policy, base.HasPrefix)
    observation = batch_of(ACTIONS).observation

    @jax.jit
    def both(params):
        policy = net.bind(params)
        return policy.sample(KEY, observation, 5), policy.sample_from(KEY, policy.prefix(observation), 5)

    whole, cached = both(params)
    assert whole.shape == (5, B, H, A) and jnp.array_equal(whole, cached)
    assert jnp.abs(whole).max() <= 1 and (whole != whole[:1]).any()


@pytest.mark.parametrize("backbone", examples.BACKBONES)
def test_masked_entries_change_neither_the_loss_nor_any_gradient(backbone):
    net, params = make(backbone, loss_samples=2)
    mask = jnp.ones((B, H, A), bool).at[0, 1:].set(False).at[1, :, 1].set(False)

    @jax.jit
    def value_and_grad(params, actions):
        return jax.value_and_grad(lambda p: net.bind(p).loss(KEY, batch_of(actions, mask))[0].mean())(params)

    plain = value_and_grad(params, ACTIONS)
    jax.tree.map(np.testing.assert_array_equal, plain, value_and_grad(params, jnp.where(mask, ACTIONS, 0.77)))
    assert plain[0] != value_and_grad(params, -ACTIONS)[0]


def test_an_untrained_loss_is_the_variance_of_the_noise():
    net, params = make(examples.conv_film, loss_samples=64)
    assert float(net.bind(params).loss(KEY, batch_of(ACTIONS))[0].mean()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("ddim_steps", [None, 10])
def test_both_modes_are_learned(ddim_steps):
    net, params = make(examples.conv_film, schedule=NoiseSchedule(20), ddim_steps=ddim_steps, loss_samples=64)

    def loss(params, key):
        draw_key, loss_key = jax.random.split(key)
        sign = jnp.where(jax.random.bernoulli(draw_key, shape=(8, 1, 1)), 1.0, -1.0)
        return net.bind(params).loss(loss_key, batch_of(0.7 * sign * jnp.ones((8, H, A))))[0].mean()

    params, _ = examples.train(loss, params, 600, optax.adam(2e-3))
    one = jax.tree.map(lambda x: x[:1], batch_of(ACTIONS).observation)
    samples = jax.jit(lambda p: net.bind(p).sample(KEY, one, 400))(params)[:, 0].reshape(400, -1)
    sign = jnp.sign(samples[:, :1])
    assert 0.35 < float((sign > 0).mean()) < 0.65
    assert float((jnp.abs(samples - 0.7 * sign).max(-1) < 0.25).mean()) > 0.9


def test_more_levels_than_there_are_is_refused():
    with pytest.raises(errors.ConfigError, match="1 to 10 levels"):
        DiffusionConfig(H, A, ddim_steps=11)
