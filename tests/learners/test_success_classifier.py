"""Classifiers of success on small synthetic pictures: a square at the goal, or anywhere else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vla_jax.core import errors
from vla_jax.core.types import Observation
from vla_jax.learners import vice
from vla_jax.learners.labelled import Examples
from vla_jax.learners.success_classifier import ClassifierConfig, SuccessClassifier
from vla_jax.learners.vice import Vice, ViceConfig
from vla_jax.nets.pixels import PixelConfig

SIZE = 16
PIXELS = PixelConfig(("front",), (SIZE, SIZE), filters=8, stages=(1,), spatial_features=2, bottleneck=16)


CLASSIFIER = SuccessClassifier(PIXELS, optax.adam(3e-3), ClassifierConfig(hidden=16, crop_pad=1, frozen_trunk=False))
KEY = jax.random.key(0)


def seen(pictures):
    batch = pictures.shape[0]
    mask, ones = {"front": jnp.ones(batch, bool)}, jnp.ones((batch, 1), bool)
    return Observation({"front": pictures}, mask, jnp.zeros((batch, 1)), ones.astype(jnp.int32), ones)


def draw(key, count):
    """Noise with a bright square of 4 x 4 in the middle (positives), or at least 4 pixels away from there."""
    place_key, noise_key = jax.random.split(key)
    angle = jax.random.uniform(place_key, (count,), maxval=2 * jnp.pi)
    away = jnp.round(5.5 * jnp.stack([jnp.sin(angle), jnp.cos(angle)], -1)).astype(jnp.int32)
    corner = SIZE // 2 - 2 + jnp.concatenate([jnp.zeros_like(away), away])
    grid = jnp.arange(SIZE)[None]
    inside = [(grid >= corner[:, i, None]) & (grid < corner[:, i, None] + 4) for i in (0, 1)]
    square = (inside[0][:, :, None] & inside[1][:, None, :])[..., None]
    noise = jax.random.randint(noise_key, (2 * count, SIZE, SIZE, 3), 0, 100)
    pictures = (noise + 150 * square).astype(jnp.uint8)
    return Examples(seen(pictures[:count]), seen(pictures[count:]))


def test_it_learns_to_tell_success_and_holds_on_new_pictures():
    def step(state, key):
        data_key, update_key = jax.random.split(key)
        return CLASSIFIER.update(state, update_key, draw(data_key, 32))

    state = CLASSIFIER.init(KEY)
    state, metrics = jax.jit(lambda state: jax.lax.scan(step, state, jax.random.split(KEY, 100)))(state)
    held_out = draw(jax.random.key(9), 100)
    judge = jax.jit(CLASSIFIER.probability)
    right = [judge(state, side) >= 0.5 for side in (held_out.positives, held_out.negatives)]
    accuracy = (right[0].mean() + 1 - right[1].mean()) / 2
    assert accuracy >= 0.97
    assert metrics["classifier/loss"][-10:].mean() < metrics["classifier/loss"][:10].mean() / 2


def test_a_batch_with_more_of_one_label_is_refused():
    batch = draw(KEY, 4)
    short = jax.tree.map(lambda leaf: leaf[:3], batch.negatives)
    with pytest.raises(errors.DataError, match="as many of both"):
        CLASSIFIER.update(CLASSIFIER.init(KEY), KEY, Examples(batch.positives, short))


def test_a_frozen_trunk_stays_as_it_is_and_the_rest_trains():
    frozen = dataclasses.replace(CLASSIFIER, config=ClassifierConfig(hidden=16))
    before = frozen.init(KEY)
    update = jax.jit(frozen.update)
    after, _ = update(before, KEY, draw(KEY, 4))
    jax.tree.map(np.testing.assert_array_equal, after.frozen, before.frozen)
    assert "trunk" not in before.params["encoder"] and before.frozen["trunk"]
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after.params, before.params)
    assert all(jax.tree.leaves(moved["out"])) and any(jax.tree.leaves(moved["encoder"]))


def test_dropout_is_for_training_alone():
    state, batch = CLASSIFIER.init(KEY), draw(KEY, 4)
    net = CLASSIFIER.net
    logits = jax.jit(lambda key: net.bind(state.params)(batch.positives, key, 0.5))
    plain = jax.jit(CLASSIFIER.probability)(state, batch.positives)
    none = jax.jit(lambda: net.bind(state.params)(batch.positives, KEY, 0.0))()
    np.testing.assert_allclose(plain, jax.nn.sigmoid(none), rtol=1e-5)
    assert (logits(jax.random.key(0)) != logits(jax.random.key(1))).any()


def test_the_gradient_penalty_is_zero_for_a_linear_function_of_unit_slope():
    maps = {"front": jax.random.normal(KEY, (3, 2, 2, 4)), "wrist": jax.random.normal(KEY, (3, 1, 1, 2))}
    slope = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape[1:]), maps)
    norm = jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(slope)))

    def linear(maps, factor):
        products = jax.tree.map(lambda a, b: jnp.einsum("bhwc,hwc->b", a, factor * b / norm), maps, slope)
        return sum(jax.tree.leaves(products))

    np.testing.assert_allclose(vice.gradient_penalty(lambda m: linear(m, 1.0), maps), 0, atol=1e-5)
    np.testing.assert_allclose(vice.gradient_penalty(lambda m: linear(m, 3.0), maps), 4, rtol=1e-4)


def test_vice_prefers_pictures_of_the_goal():
    learner = Vice(PIXELS, optax.adam(3e-3), ViceConfig(hidden=16, crop_pad=1, dropout=0.0, gradient_penalty=0.1))

    def step(state, key):
        data_key, update_key = jax.random.split(key)
        return learner.update(state, update_key, draw(data_key, 16))

    state = learner.init(KEY)
    before = state.frozen
    state, metrics = jax.jit(lambda state: jax.lax.scan(step, state, jax.random.split(KEY, 100)))(state)
    held_out = draw(jax.random.key(9), 100)
    judge = jax.jit(learner.reward)
    rewards = [judge(state, side) for side in (held_out.positives, held_out.negatives)]
    assert rewards[0].mean() > rewards[1].mean() + 0.2
    assert all(((r > 0) & (r < 1)).all() for r in rewards)
    jax.tree.map(np.testing.assert_array_equal, state.frozen, before)
    assert jnp.isfinite(metrics["vice/gradient_penalty"]).all()


def test_impossible_settings_are_refused():
    with pytest.raises(errors.ConfigError, match="dropout"):
        ClassifierConfig(dropout=1.0)
    with pytest.raises(errors.ConfigError, match="ViceConfig"):
        ViceConfig(mixup_alpha=0.0)
