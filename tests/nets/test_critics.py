import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.core import functional, runtime
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


@pytest.mark.parametrize("num_cores", [1, 2])
def test_means_made_head_by_head_or_at_once_have_the_values_and_gradients_of_the_plain_ones(num_cores, monkeypatch):
    """In heads, features and chunks; under a vmap too, since seeds may run side by side."""
    monkeypatch.setattr(runtime, "num_cores", lambda: num_cores)
    net, heads = functional.init_ensemble(
        lambda rngs: critics.ChunkCritic(3, 2, 1, critics.CriticConfig((8,)), rngs), jax.random.key(0), 4
    )
    keys = jax.random.split(jax.random.key(1), 3)
    features, chunks = jax.random.normal(keys[0], (5, 3)), jax.random.normal(keys[1], (5, 2, 1))
    targets = jax.random.normal(keys[2], (5,))

    def of_head(head, features, chunks, targets):
        q_values = net.bind(head)(features, chunks)
        return jnp.square(q_values - targets).mean(), q_values.mean()

    def plain(heads, features):
        q_values = functional.apply_ensemble(net, heads, lambda critic: critic(features, chunks))
        return jnp.square(q_values - targets[None]).mean(), q_values.mean()

    def by_head(heads, features):
        return critics.mean_loss(of_head, heads, features, chunks, targets)

    def twice(function):
        both = jax.vmap(jax.value_and_grad(function, argnums=(0, 1), has_aux=True), in_axes=(None, 0))
        return jax.jit(both)(heads, jnp.stack([features, -features]))

    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # noqa: E731
    jax.tree.map(close, twice(by_head), twice(plain))

    def value(chunks):
        of_head = lambda head, chunks: net.bind(head)(features, chunks)  # noqa: E731
        return (jnp.arange(5.0) * critics.mean_value(of_head, heads, chunks)).sum()

    def plain_value(chunks):
        q_values = functional.apply_ensemble(net, heads, lambda critic: critic(features, chunks))
        return (jnp.arange(5.0) * q_values.mean(0)).sum()

    jax.tree.map(close, jax.jit(jax.value_and_grad(value))(chunks), jax.jit(jax.value_and_grad(plain_value))(chunks))
    assert ("while" in jax.jit(value).lower(chunks).as_text()) == (num_cores == 1)


def test_the_joint_product_has_the_gradients_of_the_plain_one_and_those_in_chunks_alone_cost_no_others():
    keys = jax.random.split(jax.random.key(0), 4)
    features, chunks, kernel, weights = (
        jax.random.normal(key, shape) for key, shape in zip(keys, [(5, 300), (5, 4), (304, 6), (5, 6)], strict=True)
    )

    def plain(features, chunks, kernel):
        return (jnp.concatenate([features, chunks], -1) @ kernel * weights).sum()

    def joint(features, chunks, kernel):
        return (critics._product(features, chunks, kernel) * weights).sum()

    wanted, found = (jax.grad(f, argnums=(0, 1, 2))(features, chunks, kernel) for f in (plain, joint))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, wanted)
    in_chunks = jax.jit(jax.grad(joint, argnums=1)).lower(features, chunks, kernel).compile().cost_analysis()["flops"]
    assert in_chunks < 0.2 * 2 * features.size * kernel.shape[1]
