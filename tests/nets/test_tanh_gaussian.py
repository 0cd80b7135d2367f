import jax
import jax.numpy as jnp
import pytest

from vla_jax.core import functional
from vla_jax.nets import tanh_gaussian
from vla_jax.nets.tanh_gaussian import TanhGaussian


@pytest.mark.parametrize("scale", [0.05, 0.2, 1.0])
def test_density_integrates_to_one_over_the_range(scale):
    # substitution a = scale * tanh(u); a missing log(scale) would give `scale` instead of 1
    u = jnp.linspace(-9, 9, 20001)[:, None]
    actions = scale * jnp.tanh(u[:, 0])
    log_p = tanh_gaussian.log_density(u, jnp.full_like(u, 0.3), jnp.full_like(u, -0.5), scale)
    assert jnp.trapezoid(jnp.exp(log_p), actions) == pytest.approx(1.0, abs=1e-3)


def test_samples_stay_in_range_and_their_log_prob_is_the_density_there():
    net, params = functional.init(lambda rngs: TanhGaussian(3, (8,), 2, rngs, scale=0.1), jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (64, 3))
    head = net.bind(params)
    actions, log_prob = head.sample(jax.random.key(2), x)
    assert jnp.abs(actions).max() <= 0.1
    mean, log_std = head.parameters(x)
    expected = tanh_gaussian.log_density(jnp.arctanh(actions / 0.1), mean, log_std, 0.1)
    assert jnp.allclose(log_prob, expected, atol=1e-2)
