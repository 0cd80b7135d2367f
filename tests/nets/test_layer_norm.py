import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vla_jax.core import functional, placement
from vla_jax.nets.layer_norm import layer_norm
from vla_jax.nets.mlp import MLP


def _norm(width):
    norm = nnx.LayerNorm(width, rngs=nnx.Rngs(0))
    norm.scale[...] = 1 + 0.3 * jax.random.normal(jax.random.key(1), (width,))
    norm.bias[...] = jax.random.normal(jax.random.key(2), (width,))
    return norm


@pytest.mark.parametrize("shape", [(7, 256), (5, 96), (4, 3, 64), (6, 32), (9, 20)])
def test_side_by_side_it_is_flaxs_with_the_same_gradients(shape):
    norm = _norm(shape[-1])
    graph, params = nnx.split(norm)
    x, weights = (jax.random.normal(jax.random.key(seed), shape) for seed in (3, 4))

    def total(function, params, x):
        return (function(nnx.merge(graph, params), 2 + 3 * x) * weights).sum()

    expected, wanted = jax.value_and_grad(lambda p, x: total(lambda norm, x: norm(x), p, x), (0, 1))(params, x)
    with placement.side_by_side():
        found, grads = jax.jit(jax.value_and_grad(lambda p, x: total(layer_norm, p, x), (0, 1)))(params, x)
        values = layer_norm(norm, x)
    np.testing.assert_allclose(values, norm(x), atol=1e-5)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), grads, wanted)


def test_elsewhere_it_is_flaxs_own():
    norm, x = _norm(64), jax.random.normal(jax.random.key(3), (7, 64))
    assert "custom_vjp" not in str(jax.make_jaxpr(lambda x: layer_norm(norm, x))(x))
    with placement.side_by_side():
        assert "custom_vjp" in str(jax.make_jaxpr(lambda x: layer_norm(norm, x))(x))


def test_an_ensemble_of_networks_side_by_side_is_one_by_vmap():
    def make(rngs):
        return MLP(3, (64, 64), 2, rngs, norm="after", activation="gelu")

    net, params = functional.init_ensemble(make, jax.random.key(0), 3)
    x = jax.random.normal(jax.random.key(1), (8, 3))

    def loss(params):
        return jnp.square(functional.apply_ensemble(net, params, lambda mlp: mlp(x))).sum()

    expected = jax.value_and_grad(loss)(params)
    with placement.side_by_side():
        found = jax.value_and_grad(loss)(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)
