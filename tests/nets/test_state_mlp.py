import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vla_jax.core import errors, functional
from vla_jax.core.types import Demonstrations, Observation
from vla_jax.nets.fourier import FourierFeatures
from vla_jax.nets.state_mlp import StateMLP, StateMLPConfig
from vla_jax.policies.diffusion import DiffusionConfig, DiffusionPolicy
from vla_jax.policies.flow import FlowConfig, FlowPolicy
from vla_jax.samplers.diffusion import NoiseSchedule

CONFIG = StateMLPConfig(state_dim=3, action_horizon=2, action_dim=2, hidden_dims=(32, 32))


def observe(batch_size):
    state = jax.random.normal(jax.random.key(1), (batch_size, 3))
    return Observation({}, {}, state, jnp.ones((batch_size, 1), jnp.int32), jnp.ones((batch_size, 1), bool))


@pytest.mark.parametrize("changes", [{}, {"residual_blocks": 2, "time_features": 16, "activation": "silu"}])
@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_a_dirac_distribution_is_learned_and_sampled(kind, changes):
    config = StateMLPConfig(**{"state_dim": 3, "action_horizon": 2, "action_dim": 2, "hidden_dims": (64, 64)} | changes)
    target = jnp.array([[0.5, -0.3], [0.2, 0.7]])
    decoder = {
        "flow": lambda rngs: FlowPolicy(FlowConfig(2, 2), StateMLP(config, rngs), rngs),
        "diffusion": lambda rngs: DiffusionPolicy(
            DiffusionConfig(2, 2, NoiseSchedule(num_steps=5)), StateMLP(config, rngs), rngs
        ),
    }[kind]
    net, params = functional.init(decoder, jax.random.key(0))
    observation, actions = observe(64), jnp.broadcast_to(target, (64, 2, 2))
    batch = Demonstrations(observation, actions, jnp.ones(actions.shape, bool), jnp.ones(64))
    optimizer = optax.adam(3e-3)

    @jax.jit
    def train(params):
        def step(carry, key):
            params, opt_state = carry
            grads = jax.grad(lambda p: net.bind(p).loss(key, batch)[0].mean())(params)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        carry = (params, optimizer.init(params))
        return jax.lax.scan(step, carry, jax.random.split(jax.random.key(2), 400))[0][0]

    samples = net.bind(train(params)).sample(jax.random.key(3), observation, 4)
    assert samples.shape == (4, 64, 2, 2)
    np.testing.assert_allclose(samples.mean((0, 1)), target, atol=0.15)


def test_fourier_features_are_cosines_and_sines_of_the_learned_frequencies():
    net, _ = functional.init(lambda rngs: FourierFeatures(4, rngs), jax.random.key(0))
    frequencies = jnp.array([0.5, 1.0])
    found = net.bind({"frequencies": frequencies})(jnp.array([0.25, 0.0]))
    angles = np.array([[0.25, 0.5], [0.0, 0.0]]) * np.pi
    np.testing.assert_allclose(found, np.concatenate([np.cos(angles), np.sin(angles)], -1), atol=1e-6)


def test_it_sees_no_pictures():
    with pytest.raises(errors.ConfigError):
        StateMLPConfig(3, 2, 2, cameras=("front",))
