import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.core import functional
from vla_jax.nets.critics import ChunkCritic, CriticConfig, StateValue
from vla_jax.nets.mlp import MLP


def _normed(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


@pytest.mark.parametrize("norm", ["none", "before", "after"])
def test_the_norm_stands_where_it_is_asked_for(norm):
    net, params = functional.init(lambda rngs: MLP(3, (8,), 2, rngs, norm=norm, activation="tanh"), jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (5, 3))
    hidden = np.asarray(x @ params["hidden"]["0"]["kernel"])
    by_hand = {
        "none": np.tanh(hidden),
        "before": np.tanh(_normed(hidden)),
        "after": _normed(np.tanh(hidden)),
    }[norm]
    np.testing.assert_allclose(net.bind(params)(x), by_hand @ params["output"]["kernel"], atol=1e-5)


def test_a_critic_with_bins_gives_logits_per_chunk():
    config = CriticConfig((16, 16), num_bins=7)
    net, params = functional.init(lambda rngs: ChunkCritic(3, 2, 2, config, rngs), jax.random.key(0))
    assert net.bind(params)(jnp.ones((4, 3)), jnp.ones((4, 5, 2, 2))).shape == (4, 5, 7)
    value, params = functional.init(lambda rngs: StateValue(3, CriticConfig((16,)), rngs), jax.random.key(0))
    assert value.bind(params)(jnp.ones((4, 3))).shape == (4,)
