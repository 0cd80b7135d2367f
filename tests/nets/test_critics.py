import jax
import jax.numpy as jnp
import numpy as np

from vla_jax.core import functional
from vla_jax.nets import critics


def test_values_depend_on_every_action_of_the_chunk():
    net, params = functional.init(
        lambda rngs: critics.ChunkCritic(3, 4, 2, critics.CriticConfig((16, 16)), rngs), jax.random.key(0)
    )
    features, actions = jnp.ones((1, 3)), jnp.zeros((1, 4, 2))
    gradient = jax.grad(lambda a: net.bind(params)(features, a).sum())(actions)
    assert (jnp.abs(gradient) > 0).all()


def test_expected_minimum_of_two_of_ten_heads_is_the_analytic_one():
    # heads 0..9: E[min] = sum_k k * (9 - k) / C(10, 2) = 120 / 45 without replacement, sum_k (k / 10)^2 = 2.85 with it
    q_values = jnp.arange(10.0)[:, None]
    keys = jax.random.split(jax.random.key(0), 4000)
    draws = jax.vmap(
        lambda key: critics.take_heads({"q": q_values}, critics.random_heads(key, 10, 2))["q"].min(axis=0)
    )(keys)
    np.testing.assert_allclose(draws.mean(), 120 / 45, atol=0.1)
    with_replacement = jax.vmap(
        lambda key: critics.take_heads({"q": q_values}, critics.random_heads(key, 10, 2, replace=True))["q"].min(axis=0)
    )(keys)
    np.testing.assert_allclose(with_replacement.mean(), 2.85, atol=0.1)


def test_many_chunks_of_one_state_are_scored_as_each_alone():
    net, params = functional.init(
        lambda rngs: critics.ChunkCritic(3, 4, 2, critics.CriticConfig((16, 16)), rngs), jax.random.key(0)
    )
    features = jax.random.normal(jax.random.key(1), (5, 3))
    actions = jax.random.normal(jax.random.key(2), (5, 6, 4, 2))
    together = net.bind(params)(features, actions)
    alone = jnp.stack([net.bind(params)(features, actions[:, i]) for i in range(6)], axis=1)
    np.testing.assert_allclose(together, alone, atol=1e-5)
