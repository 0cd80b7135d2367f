import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.core import errors
from vla_jax.samplers.flow import EulerOptions, euler
from vla_jax.samplers.guided import GuidanceOptions, guidance_weight, guided_euler, prefix_weights

KEY = jax.random.key(0)
HORIZON = 8


def constant(velocity):
    return lambda x, time: velocity * jnp.ones_like(x)


def two_chunks(x, time):
    """The exact field when the data are two chunks, all +1 or all -1, equally often.

    E[data | x] = tanh(time * sum(x) / (1 - time)**2), and the velocity is (E[data | x] - x) / (1 - time).
    """
    mean = jnp.tanh(time * x.sum(-1, keepdims=True) / (1 - time) ** 2)
    return (mean - x) / (1 - time)


def test_the_weights_are_those_of_the_paper():
    # h 8, 2 frozen, overlap 5: c = (5 - i) / 4 for i = 2, 3, 4, that is 3/4, 1/2, 1/4; weight c (e^c - 1) / (e - 1)
    soft = [c * (np.e**c - 1) / (np.e - 1) for c in (0.75, 0.5, 0.25)]
    np.testing.assert_allclose(prefix_weights(8, 2, 5), [1, 1, *soft, 0, 0, 0], rtol=1e-6)


def test_weights_never_rise_and_nothing_is_held_past_the_overlap():
    for overlap in range(9):
        for frozen in range(overlap + 1):
            weights = np.asarray(prefix_weights(8, frozen, overlap))
            assert (np.diff(weights) <= 0).all() and (weights[:frozen] == 1).all() and (weights[overlap:] == 0).all()
            assert (weights >= 0).all() and (weights <= 1).all()


def test_the_guidance_weight_is_bounded_at_the_noise_and_grows_again_near_the_data():
    assert guidance_weight(jnp.array(0.0), 5.0) == 5.0
    # time 1/2: (1/4 + 1/4) / (1/4) = 2
    assert guidance_weight(jnp.array(0.5), 5.0) == pytest.approx(2.0)
    assert guidance_weight(jnp.array(0.9), 100.0) == pytest.approx((0.81 + 0.01) / 0.09, rel=1e-5)


@pytest.mark.parametrize("num_steps", [1, 5, 10])
def test_at_the_limit_of_the_weight_the_frozen_prefix_is_reproduced_exactly(num_steps):
    """A constant field's guess of the end moves with x one to one. At time 0 the weight is num_steps, so one step of
    1 / num_steps removes the whole difference, and the guess never leaves the target again."""
    target, noise = jnp.linspace(-1, 1, HORIZON), jax.random.normal(KEY, (HORIZON,))
    weights = prefix_weights(HORIZON, 3, 3)
    x, _ = guided_euler(KEY, constant(0.3), noise, target, weights, GuidanceOptions(num_steps, float(num_steps)))
    np.testing.assert_allclose(x[:3], target[:3], atol=1e-6)
    np.testing.assert_allclose(x[3:], noise[3:] + 0.3, atol=1e-6)


def test_below_the_limit_the_rest_of_the_difference_is_a_product_over_the_steps():
    options = GuidanceOptions(4, 2.0)
    x, _ = guided_euler(KEY, constant(0.0), jnp.zeros(2), jnp.ones(2), jnp.ones(2), options)
    # the guess is x itself; each step leaves 1 - weight / 4 of the difference; weights 2 (bound), 2, 2, 2:
    # ideal weights at 1/4, 1/2, 3/4 are 10/3, 2, 10/3
    np.testing.assert_allclose(x, 1 - 0.5**4, rtol=1e-6)


@pytest.mark.parametrize("field", [constant(0.7), two_chunks, lambda x, time: jnp.sin(3 * x) + time])
def test_without_frozen_steps_it_is_plain_sampling_to_the_last_bit(field):
    noise = jax.random.normal(KEY, (3, HORIZON))
    plain, _ = jax.jit(lambda noise: euler(KEY, field, noise, EulerOptions(10)))(noise)
    nothing = jnp.full_like(noise, jnp.nan)  # what stands under a weight of 0 must not matter
    guided, _ = jax.jit(
        lambda noise: guided_euler(KEY, field, noise, nothing, jnp.zeros_like(noise), GuidanceOptions(10))
    )(noise)
    np.testing.assert_array_equal(plain, guided)


def test_the_gradient_goes_through_the_field():
    """velocity = k x: the guess is (1 + (1 - time) k) x, so its derivative is that factor, not 1."""
    k, target = 0.5, 2.0
    x, _ = guided_euler(
        KEY, lambda x, time: k * x, jnp.ones(1), jnp.full(1, target), jnp.ones(1), GuidanceOptions(1, 1)
    )
    # one step from time 0: x + k x + weight * (target - 1.5) * 1.5 = 1 + 0.5 + 0.75
    np.testing.assert_allclose(x, 2.25, rtol=1e-6)


def test_a_frozen_prefix_decides_which_of_two_chunks_is_sampled():
    noise = jax.random.normal(KEY, (64, HORIZON))
    plain, _ = euler(KEY, two_chunks, noise, EulerOptions(20))
    assert 16 < int((plain[:, -1] > 0).sum()) < 48  # both are drawn
    weights = jnp.broadcast_to(prefix_weights(HORIZON, 3, 5), noise.shape)
    guided, _ = guided_euler(KEY, two_chunks, noise, jnp.ones_like(noise), weights, GuidanceOptions(20, 5.0))
    agree = (guided[:, -1] > 0).mean()
    assert agree > 0.95, agree  # the steps that nobody froze follow


@pytest.mark.parametrize("options", [dict(num_steps=0), dict(max_weight=-1.0), dict(num_steps=4, max_weight=4.5)])
def test_impossible_options_are_rejected(options):
    with pytest.raises(errors.ConfigError):
        GuidanceOptions(**options)
