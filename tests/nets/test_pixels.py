"""The encoder of pictures in closed form where it has one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vla_jax.core import errors, functional, images
from vla_jax.core.types import Observation
from vla_jax.nets import pixels
from vla_jax.nets.pixels import PixelConfig, PixelEncoder

CONFIG = PixelConfig(("front", "wrist"), (16, 12), 3, filters=4, stages=(1, 1), bottleneck=8, state_features=5)
KEY = jax.random.key(0)


def observation(key, batch=4, present=True):
    keys = jax.random.split(key, 3)
    pictures = {
        name: jax.random.randint(k, (batch, *CONFIG.image_size, 3), 0, 256).astype(jnp.uint8)
        for name, k in zip(CONFIG.cameras, keys, strict=False)
    }
    mask = {"front": jnp.ones(batch, bool), "wrist": jnp.full(batch, present)}
    state = jax.random.normal(keys[2], (batch, 3))
    return Observation(pictures, mask, state, jnp.zeros((batch, 1), jnp.int32), jnp.ones((batch, 1), bool))


@pytest.fixture(scope="module")
def encoder():
    net, params = functional.init(lambda rngs: PixelEncoder(CONFIG, rngs), KEY)
    return net, params, jax.jit(lambda params, seen: net.bind(params)(seen))


def test_features_are_bounded_and_as_many_as_the_config_says(encoder):
    net, params, run = encoder
    features = run(params, observation(KEY))
    maps = jax.eval_shape(lambda params, seen: net.bind(params).maps(seen), params, observation(KEY))
    assert maps["front"].shape == (4, *CONFIG.map_shape) and CONFIG.map_shape == (2, 2, 8)
    assert features.shape == (4, 2 * 8 + 5) and jnp.abs(features).max() <= 1


@pytest.mark.parametrize("size", [(128, 128), (84, 84), (33, 57)])
def test_the_map_has_the_shape_that_the_config_says(size):
    config = dataclasses.replace(CONFIG, image_size=size, stages=(1, 1, 1, 1), filters=64)
    net, params = functional.describe(lambda rngs: pixels.ResidualTrunk(64, (1, 1, 1, 1), rngs))
    pictures = jax.ShapeDtypeStruct((2, *size, 3), jnp.uint8)
    shape = jax.eval_shape(lambda params, pictures: net.bind(params)(pictures), params, pictures).shape
    assert shape == (2, *config.map_shape)


def test_an_embedding_of_a_constant_map_is_the_sum_of_its_weights():
    module = pixels.SpatialEmbeddings((2, 3, 4), 5, nnx.Rngs(0))
    levels = jnp.arange(1.0, 5.0)  # per channel
    embedded = module(jnp.broadcast_to(levels.reshape(1, 1, 1, 4), (1, 2, 3, 4)))
    expected = levels[:, None] * module.kernel[...].sum((0, 1))
    np.testing.assert_allclose(embedded.reshape(4, 5), expected, rtol=1e-5)


def test_a_camera_that_is_absent_changes_nothing(encoder):
    _, params, run = encoder
    absent = observation(KEY, present=False)
    other = absent.replace(images={**absent.images, "wrist": 255 - absent.images["wrist"]})
    np.testing.assert_array_equal(run(params, absent), run(params, other))
    assert (run(params, absent) != run(params, observation(KEY))).any()


def test_the_trunk_is_one_subtree_and_shared_by_the_cameras(encoder):
    """The same pictures from both cameras, by the heads of one: the same features."""
    _, params, run = encoder
    assert set(params) == {"trunk", "cameras", "state"}
    seen = observation(KEY)
    same = seen.replace(images={name: seen.images["front"] for name in CONFIG.cameras})
    alike = {**params, "cameras": {name: params["cameras"]["front"] for name in CONFIG.cameras}}
    features = run(alike, same)
    np.testing.assert_allclose(features[:, :8], features[:, 8:16], rtol=1e-5, atol=1e-6)


def test_wrong_pictures_are_refused_by_name(encoder):
    net, params, _ = encoder
    seen = observation(KEY)
    with pytest.raises(errors.ConfigError, match="lacks camera 'wrist'"):
        net.bind(params)(seen.replace(images={"front": seen.images["front"]}))
    with pytest.raises(errors.ConfigError, match="'front' has another size"):
        net.bind(params)(seen.replace(images={**seen.images, "front": jnp.zeros((4, 8, 8, 3), jnp.uint8)}))
    with pytest.raises(errors.ConfigError, match="filters"):
        dataclasses.replace(CONFIG, filters=6)


def test_a_crop_moves_a_picture_whole_and_every_one_on_its_own():
    picture = jnp.arange(6 * 5).reshape(1, 6, 5, 1)
    batch = jnp.tile(picture, (64, 1, 1, 3)).astype(jnp.uint8)
    moved = np.asarray(images.random_crop(KEY, batch, 2))
    padded = np.pad(np.asarray(batch[0]), ((2, 2), (2, 2), (0, 0)), mode="edge")
    windows = [padded[i : i + 6, j : j + 5] for i in range(5) for j in range(5)]
    found = [next(n for n, window in enumerate(windows) if (window == each).all()) for each in moved]
    assert len(set(found)) > 12  # of 25 places, in 64 draws
    np.testing.assert_array_equal(images.random_crop(KEY, batch, 0), batch)
