import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.core.types import Demonstrations, Observation
from vla_jax.learners import accumulate


def batch_of(size: int) -> Demonstrations:
    state, actions = jax.random.normal(jax.random.key(0), (size, 3)), jax.random.normal(jax.random.key(1), (size, 1, 2))
    # Weights differ from part to part, so a mean of the parts' means would be another number.
    weight = jnp.arange(size, dtype=jnp.float32)
    none = jnp.zeros((size, 1))
    observation = Observation({}, {}, state, none.astype(jnp.int32), none.astype(bool))
    return Demonstrations(observation, actions, jnp.ones((size, 1, 2), bool), weight)


def regression(params, key, batch):
    error = jnp.square(batch.observation.state @ params["kernel"] - batch.actions[:, 0]).sum(-1)
    loss = (error * batch.weight).sum() / jnp.maximum(batch.weight.sum(), 1e-6)
    return loss, {"loss": loss}


@pytest.mark.parametrize("microbatches", [2, 4])
def test_parts_give_the_gradient_of_the_whole(microbatches):
    params, batch = {"kernel": jax.random.normal(jax.random.key(2), (3, 2))}, batch_of(8)
    whole, metrics = accumulate.gradients(regression, params, jax.random.key(3), batch, 1)
    parts, by_parts = jax.jit(accumulate.gradients, static_argnums=(0, 4))(
        regression, params, jax.random.key(3), batch, microbatches
    )
    np.testing.assert_allclose(parts["kernel"], whole["kernel"], rtol=1e-5)
    np.testing.assert_allclose(by_parts["loss"], metrics["loss"], rtol=1e-5)


def test_parts_draw_with_keys_of_their_own():
    def noise(params, key, batch):
        draw = jax.random.normal(key, ()) * params["scale"]
        return draw, {"draw": draw}

    batch, key = batch_of(4).replace(weight=jnp.ones(4)), jax.random.key(5)
    grads, metrics = accumulate.gradients(noise, {"scale": jnp.ones(())}, key, batch, 2)
    draws = [jax.random.normal(jax.random.fold_in(key, part), ()) for part in range(2)]
    assert abs(draws[0] - draws[1]) > 1e-3
    np.testing.assert_allclose(metrics["draw"], sum(draws) / 2, rtol=1e-6)
    np.testing.assert_allclose(grads["scale"], sum(draws) / 2, rtol=1e-6)
