import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.core import errors
from vla_jax.samplers import diffusion
from vla_jax.samplers.diffusion import DDIMOptions, DDPMOptions, EDMOptions, NoiseSchedule

KEY = jax.random.key(0)
MEAN, STD, MANY = 0.4, 0.3, 20_000


def gaussian_noise(schedule):
    """The exact expected noise at every level when the data is Gaussian."""

    def noise_fn(x, time):
        level = jnp.round((1 - time) * schedule.num_steps).astype(int)
        signal, sigma = jnp.asarray(schedule.signal)[level], jnp.asarray(schedule.sigma)[level]
        return sigma * (x - signal * MEAN) / (jnp.square(signal * STD) + jnp.square(sigma))

    return noise_fn


@pytest.mark.parametrize("kind", ["cosine", "vp"])
def test_schedules_keep_the_variance_and_end_in_noise(kind):
    schedule = NoiseSchedule(20, kind)
    np.testing.assert_allclose(np.square(schedule.signal) + np.square(schedule.sigma), 1, atol=1e-6)
    assert schedule.signal[0] == 1 and (np.diff(schedule.signal) < 0).all() and schedule.signal[-1] < 0.1
    assert schedule.time(jnp.array([20, 10, 0])).tolist() == [0.0, 0.5, 1.0]


def test_the_vp_schedule_is_its_closed_form():
    n = 10
    found = np.square(NoiseSchedule(n, "vp").signal[1:] / NoiseSchedule(n, "vp").signal[:-1])
    k = np.arange(1, n + 1)
    np.testing.assert_allclose(found, np.exp(-0.1 / n - 0.5 * 9.9 * (2 * k - 1) / n**2), rtol=1e-4)


@pytest.mark.parametrize("kind", ["cosine", "vp"])
def test_ddpm_samples_the_data(kind):
    schedule = NoiseSchedule(200, kind)
    noise = jax.random.normal(KEY, (MANY,))
    x, _ = jax.jit(lambda key: diffusion.ddpm(key, gaussian_noise(schedule), noise, DDPMOptions(schedule)))(KEY)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.02) and float(x.std()) == pytest.approx(STD, abs=0.02)


def test_ddim_carries_quantiles_to_quantiles():
    """Of Gaussian data the deterministic map is x -> MEAN + STD * x."""
    schedule = NoiseSchedule(400, "vp")
    noise = jnp.linspace(-2, 2, 9)
    x, trace = diffusion.ddim(KEY, gaussian_noise(schedule), noise, DDIMOptions(schedule, 400))
    np.testing.assert_allclose(x, MEAN + STD * noise, atol=0.02)
    assert trace.x.shape == (400, 9)
    few, _ = diffusion.ddim(KEY, gaussian_noise(schedule), noise, DDIMOptions(schedule, 40))
    np.testing.assert_allclose(few, x, atol=0.05)


@pytest.mark.parametrize("churn", [0.0, 40.0])
def test_edm_samples_the_data(churn):
    options = EDMOptions(num_steps=40, churn=churn)

    def denoise_fn(x, sigma):
        return (jnp.square(STD) * x + jnp.square(sigma) * MEAN) / (jnp.square(STD) + jnp.square(sigma))

    start = options.sigma_max * jax.random.normal(KEY, (MANY,))
    x, _ = jax.jit(lambda key: diffusion.edm(key, denoise_fn, start, options))(KEY)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.02) and float(x.std()) == pytest.approx(STD, abs=0.02)
    one, other = (diffusion.edm(jax.random.key(k), denoise_fn, start[:8], options)[0] for k in (1, 2))
    assert jnp.array_equal(one, other) == (churn == 0)  # the key only matters where noise is put back


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_a_single_point_is_found_and_batches_equal_loops(sampler):
    schedule = NoiseSchedule(5)
    point = jnp.array([0.5, -0.5])
    signal, sigma = jnp.asarray(schedule.signal), jnp.asarray(schedule.sigma)

    def noise_fn(x, time):
        level = jnp.round((1 - time) * 5).astype(int)
        return (x - signal[level] * point) / sigma[level]

    options = DDPMOptions(schedule) if sampler == "ddpm" else DDIMOptions(schedule, 5)
    x, _ = getattr(diffusion, sampler)(KEY, noise_fn, jax.random.normal(KEY, (2,)), options)
    np.testing.assert_allclose(x, point, atol=1e-4)


def test_clipping_holds_in_every_step():
    schedule = NoiseSchedule(5)
    wild = lambda x, time: -30.0 * jnp.ones_like(x)  # noqa: E731
    x, trace = diffusion.ddpm(KEY, wild, jax.random.normal(KEY, (64,)), DDPMOptions(schedule, clip=True))
    assert jnp.abs(x).max() <= 1 and jnp.abs(trace.x[1:]).max() <= 1
    x, _ = diffusion.ddim(KEY, wild, jax.random.normal(KEY, (64,)), DDIMOptions(schedule, 5, clip=True))
    assert jnp.abs(x).max() <= 1


def test_bad_options_are_refused():
    with pytest.raises(errors.ConfigError, match="1 to 10 levels"):
        DDIMOptions(num_steps=11)
    with pytest.raises(errors.ConfigError, match="1 or more"):
        NoiseSchedule(0)
    with pytest.raises(errors.ConfigError, match="num_steps=1"):
        EDMOptions(num_steps=1)
