import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.losses import conservative

KEY = jax.random.key(0)
Q_POLICY = jax.random.normal(KEY, (2, 3, 4))
Q_DATA = jax.random.normal(jax.random.key(1), (2, 3))


def test_equal_values_cost_nothing():
    found = conservative.counted_gap(jnp.full((2, 3, 5), 1.7), jnp.full((2, 3), 1.7), temperature=0.5)
    np.testing.assert_allclose(found, 0, atol=1e-5)
    alone = conservative.counted_gap(jnp.zeros((2, 3, 0)), Q_DATA)
    np.testing.assert_allclose(alone, 0, atol=1e-6)


def test_the_gap_is_the_logsumexp_written_out():
    found = conservative.counted_gap(Q_POLICY, Q_DATA, 0.7)
    every = np.concatenate([Q_POLICY, Q_DATA[..., None]], -1)
    expected = 0.7 * np.log(np.exp(every / 0.7).mean(-1)) - Q_DATA
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_low_temperature_takes_the_largest():
    found = conservative.counted_gap(Q_POLICY, Q_DATA, 1e-3) + Q_DATA
    np.testing.assert_allclose(found, jnp.maximum(Q_POLICY.max(-1), Q_DATA), atol=1e-2)


def test_calibration_stops_the_push_below_the_return_and_only_there():
    def loss(q_values, returns):
        return conservative.counted_gap(conservative.calibrated(q_values, returns), Q_DATA).sum()

    np.testing.assert_array_equal(jax.grad(loss)(Q_POLICY, jnp.full(3, 1e3)), 0)
    free = jax.grad(loss)(Q_POLICY, jnp.full(3, -1e3))
    plain = jax.grad(lambda q: conservative.counted_gap(q, Q_DATA).sum())(Q_POLICY)
    np.testing.assert_allclose(free, plain, rtol=1e-6)
    assert (plain > 0).all()


def test_importance_sampling_integrates_over_the_box():
    """Of q(a) = a on [-1, 1] the log of the integral of exp(q) is log(e - 1/e), from two proposals alike."""
    uniform = jax.random.uniform(KEY, (1, 200_000), minval=-1, maxval=1)
    tilted = jnp.sqrt(jax.random.uniform(KEY, (1, 200_000)) * 4) - 1  # density (a + 1) / 2
    expected = np.log(np.e - 1 / np.e)
    for actions, log_density in ((uniform, jnp.full_like(uniform, -np.log(2))), (tilted, jnp.log((tilted + 1) / 2))):
        found = conservative.importance_gap(actions[None], log_density, jnp.zeros((1, 1)))
        assert float(found[0, 0]) == pytest.approx(expected, abs=0.02)
