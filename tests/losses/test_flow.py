import jax
import jax.numpy as jnp

from vla_jax.losses.flow import flow_matching_loss, interpolate

KEYS = jax.random.split(jax.random.key(0), 3)
NOISE, ACTIONS, VELOCITY = (jax.random.normal(key, (2, 3, 4)) for key in KEYS)


def test_time_zero_is_noise_and_time_one_is_data():
    assert jnp.allclose(interpolate(NOISE, ACTIONS, jnp.zeros(2)), NOISE)
    assert jnp.allclose(interpolate(NOISE, ACTIONS, jnp.ones(2)), ACTIONS)


def test_the_target_is_the_derivative_of_the_path():
    time = jnp.array([0.2, 0.9])
    _, derivative = jax.jvp(lambda time: interpolate(NOISE, ACTIONS, time), (time,), (jnp.ones(2),))
    assert jnp.allclose(flow_matching_loss(derivative, NOISE, ACTIONS, jnp.ones((2, 3, 4), bool)), 0, atol=1e-6)


def test_masked_entries_have_no_gradient_and_no_say_in_the_mean():
    mask = jnp.zeros((2, 3, 4), bool).at[0, 0, :2].set(True)
    losses, pull = jax.vjp(lambda v: flow_matching_loss(v, NOISE, ACTIONS, mask), VELOCITY)
    error = (VELOCITY - ACTIONS + NOISE)[0, 0, :2]
    # mean over the 2 real entries, not over 12; the second example has none and costs 0, not nan
    assert jnp.allclose(losses, jnp.array([jnp.square(error).mean(), 0.0]))
    (gradient,) = pull(jnp.ones(2))
    assert jnp.allclose(gradient[0, 0, :2], error) and jnp.count_nonzero(gradient) == 2


def test_leading_dims_are_free():
    mask = jax.random.bernoulli(KEYS[0], 0.5, (2, 3, 4))
    stacked = [jnp.stack([x, x]) for x in (VELOCITY, NOISE, ACTIONS, mask)]
    assert jnp.allclose(flow_matching_loss(*stacked)[1], flow_matching_loss(VELOCITY, NOISE, ACTIONS, mask))


def test_weights_of_action_dims_make_the_mean_a_weighted_one():
    mask = jax.random.bernoulli(KEYS[1], 0.5, (2, 3, 4)).at[1].set(False)
    weights = jnp.array([1.0, 0.5, 2.0, 0.1])
    error = jnp.square(VELOCITY - ACTIONS + NOISE)
    expected = (error * mask * weights[None, None])[0].sum() / (mask * weights[None, None])[0].sum()
    assert jnp.allclose(flow_matching_loss(VELOCITY, NOISE, ACTIONS, mask, weights), jnp.array([expected, 0.0]))
    equal = flow_matching_loss(VELOCITY, NOISE, ACTIONS, mask, 3 * jnp.ones(4))
    assert jnp.allclose(equal, flow_matching_loss(VELOCITY, NOISE, ACTIONS, mask), atol=1e-6)
