"""Schedules, decay masks, accumulation and freezing do what their configs say."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vla_jax.core import errors
from vla_jax.training import optimizers
from vla_jax.training.optimizers import Adam, AdamW

PARAMS = {
    "backbone": {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}, "norm": {"scale": jnp.ones((4, 2))}},
    "head": {"kernel": jnp.full((2, 2), 2.0)},
}


def _apply(optimizer, params, grads, times=1):
    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(times):
        params, state = step(params, state)
    return params, state


def test_the_schedule_warms_up_and_follows_a_cosine():
    schedule = AdamW(peak_lr=1e-3, warmup_steps=10, decay_steps=110, end_lr=1e-4).schedule()
    # Halfway from 10 to 110 the cosine is at the mean of peak and end: 5.5e-4.
    for update, expected in ((0, 0.0), (5, 5e-4), (10, 1e-3), (60, 5.5e-4), (110, 1e-4), (500, 1e-4)):
        assert float(schedule(update)) == pytest.approx(expected, abs=1e-9)
    assert float(AdamW(peak_lr=1e-3, warmup_steps=10).schedule()(1000)) == pytest.approx(1e-3)
    assert float(AdamW(peak_lr=1e-3, decay_steps=100).schedule()(0)) == pytest.approx(1e-3)


def test_weight_decay_leaves_biases_and_norms_alone_even_when_stacked():
    mask = optimizers.decayed(PARAMS)
    assert mask == {
        "backbone": {"dense": {"kernel": True, "bias": False}, "norm": {"scale": False}},
        "head": {"kernel": True},
    }
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    params, _ = _apply(AdamW(peak_lr=0.1, weight_decay=0.5).build(), PARAMS, zero)
    np.testing.assert_allclose(params["head"]["kernel"], 2.0 * (1 - 0.1 * 0.5), rtol=1e-6)
    np.testing.assert_array_equal(params["backbone"]["norm"]["scale"], 1.0)


@pytest.mark.parametrize("config", [AdamW(eps=1.0, weight_decay=0.1, clip_norm=0.5), Adam(eps=1.0, clip_norm=0.5)])
def test_accumulated_small_batches_are_one_large_batch(config):
    x = jax.random.normal(jax.random.key(0), (32, 3))
    y = jax.random.normal(jax.random.key(1), (32, 2))
    params = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}

    def grad(params, x, y):
        return jax.grad(lambda p: jnp.square(x @ p["kernel"] + p["bias"][None] - y).mean())(params)

    large, _ = _apply(config.build(), params, grad(params, x, y))
    optimizer = type(config)(**{**vars(config), "accumulate_steps": 4}).build()
    state, small = optimizer.init(params), params
    for rows in range(0, 32, 8):
        np.testing.assert_array_equal(small["kernel"], params["kernel"])  # nothing moves before the fourth
        updates, state = optimizer.update(grad(small, x[rows : rows + 8], y[rows : rows + 8]), state, small)
        small = optax.apply_updates(small, updates)
    # Clipping each small batch instead of their mean would differ in the second digit.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), small, large)


def test_frozen_parameters_stay_and_have_no_moments():
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    params, state = _apply(AdamW(freeze=("backbone/*",), accumulate_steps=2).build(), PARAMS, grads, times=4)
    jax.tree.map(np.testing.assert_array_equal, params["backbone"], PARAMS["backbone"])
    assert (params["head"]["kernel"] != PARAMS["head"]["kernel"]).all()
    # head/kernel alone: first and second moments and the accumulated gradient.
    assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim) == 3 * 4


@pytest.mark.parametrize(("clip_norm", "clipped"), [(1.0, 0.25), (0.25, 0.125)])  # the trained norm is 0.5
def test_the_norm_that_is_clipped_is_that_of_the_trained_parameters(clip_norm, clipped):
    # b1 = b2 = 0 and eps = 1 make the update -g / (|g| + 1), in which a wrong scale shows.
    grads = {"frozen": jnp.full(4, 100.0), "trained": jnp.full(4, 0.25)}
    params = jax.tree.map(jnp.zeros_like, grads)
    optimizer = Adam(peak_lr=1.0, b1=0.0, b2=0.0, eps=1.0, clip_norm=clip_norm, freeze=("frozen",)).build()
    updated, _ = _apply(optimizer, params, grads)
    np.testing.assert_allclose(updated["trained"], -clipped / (1 + clipped), rtol=1e-5)


def test_a_freeze_pattern_that_matches_nothing_names_the_closest_path():
    with pytest.raises(errors.ConfigError, match=r"'heads/kernel' matches no parameter\n.*did you mean 'head/kernel'"):
        AdamW(freeze=("heads/kernel",)).build().init(PARAMS)


@pytest.mark.parametrize(
    "fields",
    [
        {"peak_lr": 0.0},
        {"end_lr": 1.0},
        {"end_lr": 1e-5},
        {"warmup_steps": 5, "decay_steps": 5},
        {"accumulate_steps": 0},
    ],
)
def test_impossible_schedules_are_refused(fields):
    for config in (Adam, AdamW):
        with pytest.raises(errors.ConfigError):
            config(**fields)
