import jax
import jax.numpy as jnp
import pytest

from vla_jax.core import errors
from vla_jax.samplers.flow import EulerOptions, euler

KEY = jax.random.key(0)


@pytest.mark.parametrize("num_steps", [1, 2, 10])
def test_the_field_of_a_dirac_carries_noise_to_it_exactly(num_steps):
    """For data that is always `target`, the field is (target - x) / (1 - time), and its paths are straight lines, so
    Euler steps are exact. With time reversed (1 = noise) the field would push away from the target.
    """
    target = jnp.array([[0.3, -0.7], [0.1, 0.9]])
    noise = jax.random.normal(KEY, (2, 2))
    x, trace = euler(KEY, lambda x, time: (target - x) / (1 - time), noise, EulerOptions(num_steps))
    assert jnp.allclose(x, target, atol=1e-5)
    assert trace.x.shape == trace.velocity.shape == (num_steps, 2, 2)
    assert jnp.allclose(trace.x[0], noise) and trace.time[0] == 0


def test_starting_late_covers_only_the_rest_of_the_time():
    # velocity 1 for the remaining 0.75 of the time
    x, trace = euler(KEY, lambda x, time: jnp.ones_like(x), jnp.zeros(3), EulerOptions(5, start_time=0.25))
    assert jnp.allclose(x, 0.75)
    assert jnp.allclose(trace.time, 0.25 + 0.15 * jnp.arange(5))


def test_a_batch_equals_a_loop_over_its_examples():
    def field(x, time):
        return jnp.sin(3 * x) + time

    noise = jax.random.normal(KEY, (4, 5))
    batched, _ = euler(KEY, field, noise, EulerOptions())
    looped = jnp.stack([euler(KEY, field, row, EulerOptions())[0] for row in noise])
    assert jnp.allclose(batched, looped, atol=1e-6)


@pytest.mark.parametrize("options", [dict(num_steps=0), dict(start_time=1.0), dict(start_time=-0.1)])
def test_impossible_options_are_rejected(options):
    with pytest.raises(errors.ConfigError):
        EulerOptions(**options)
