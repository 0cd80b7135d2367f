import colorsys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.core.errors import ConfigError
from vla_jax.core.types import Demonstrations, Observation, Transitions
from vla_jax.data.pictures import augment as module
from vla_jax.data.pictures.augment import AugmentConfig

KEY = jax.random.key(0)
augment = jax.jit(module.augment, static_argnums=2)
augment_batch = jax.jit(module.augment_batch, static_argnums=2)


@partial(jax.jit, static_argnums=(2, 3))
def augment_many(key, picture, config, number):
    return jax.vmap(lambda key: module.augment_frames(key, picture, config))(jax.random.split(key, number))


EVERYTHING = AugmentConfig(
    shift=2, crop=0.8, rotation=10.0, brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1, colour_only=("wrist",)
)


def noise(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 256, (*shape, 3)), jnp.uint8)


def observation(batch=4, history=(), size=(10, 12)):
    images = {name: noise(batch, *history, *size, seed=i) for i, name in enumerate(("front", "wrist"))}
    return Observation(
        images,
        {name: jnp.ones((batch, *history), bool) for name in images},
        jnp.zeros((batch, *history, 2)),
        jnp.zeros((batch, 3), jnp.int32),
        jnp.ones((batch, 3), bool),
    )


def test_a_config_of_zeros_gives_back_the_arrays():
    given = observation()
    found = module.augment(KEY, given, AugmentConfig())
    assert all(found.images[name] is given.images[name] for name in given.images)


@pytest.mark.parametrize("history", [(), (2,)])
def test_the_same_key_gives_the_same_pictures(history):
    given = observation(history=history)
    first, second, other = (augment(key, given, EVERYTHING) for key in (KEY, KEY, jax.random.key(1)))
    for name, pictures in given.images.items():
        assert first.images[name].shape == pictures.shape and first.images[name].dtype == jnp.uint8
        np.testing.assert_array_equal(first.images[name], second.images[name])
        assert (other.images[name] != second.images[name]).any()


def test_samples_and_cameras_draw_apart_and_a_history_alike():
    picture = noise(10, 12)
    same = jnp.broadcast_to(picture, (3, 2, 10, 12, 3))
    given = observation(batch=3, history=(2,)).replace(images={"front": same, "side": same})
    found = augment(KEY, given, EVERYTHING)
    for pictures in found.images.values():
        np.testing.assert_array_equal(pictures[:, 0], pictures[:, 1])
        assert (pictures[0] != pictures[1]).any() and (pictures[1] != pictures[2]).any()
    assert (found.images["front"] != found.images["side"]).any()


def test_what_a_sample_draws_does_not_depend_on_the_others():
    keys = jax.random.split(jax.random.fold_in(KEY, 0), 4)
    given = observation()
    alone = module.augment_frames(keys[2], given.images["front"][2], EVERYTHING)  # not even compiled
    together = augment(KEY, given, EVERYTHING).images["front"][2]
    # compiled arithmetic may round the other way
    assert np.abs(alone.astype(int) - together.astype(int)).max() <= 1


def test_a_shift_moves_pixels_and_repeats_the_border():
    """Every result is one of the 25 windows of the padded picture."""
    picture = noise(6, 7)
    padded = np.pad(picture, ((2, 2), (2, 2), (0, 0)), mode="edge")
    windows = {padded[i : i + 6, j : j + 7].tobytes(): (i, j) for i in range(5) for j in range(5)}
    found = augment_many(KEY, picture, AugmentConfig(shift=2), 300)
    seen = [windows[np.asarray(moved).tobytes()] for moved in found]
    assert set(seen) == set(windows.values())  # each with 1/25: missing one of 25 in 300 has odds of 1e-4


def test_cropping_stays_inside_and_magnifies():
    """On a ramp along the columns a crop is a shallower ramp between the same ends."""
    ramp = jnp.broadcast_to((5 * jnp.arange(40))[None, :, None], (30, 40, 3)).astype(jnp.uint8)
    found = np.asarray(augment_many(KEY, ramp, AugmentConfig(crop=0.5), 50)).astype(float)
    slope = (found[:, 0, -1, 0] - found[:, 0, 0, 0]) / 39 / 5
    assert (slope > 0.49).all() and (slope < 1.01).all() and slope.std() > 0.1
    assert found.min() >= 0 and found.max() <= 5 * 39
    assert found[:, 0, 0, 0].std() > 1  # the kept part lies in different places


def test_a_quarter_turn_is_a_quarter_turn():
    picture = noise(9, 9).astype(jnp.float32)[None]
    turned = module._sample(picture, 1.0, 0.0, 0.0, jnp.pi / 2)
    expected = [np.rot90(picture[0], turns) for turns in (1, 3)]
    assert any(np.abs(turned[0] - e).max() < 1e-2 for e in expected)


def test_rotation_keeps_the_centre():
    picture = np.zeros((11, 11, 3), np.uint8)
    picture[5, 5] = 255
    found = augment_many(KEY, jnp.asarray(picture), AugmentConfig(rotation=40.0), 3)
    assert (found[:, 5, 5, 0] >= 254).all()


def test_brightness_scales_all_pixels_alike():
    flat = jnp.full((4, 4, 3), 100, jnp.uint8)
    found = np.asarray(augment_many(KEY, flat, AugmentConfig(brightness=0.2), 400))
    assert (found == found[:, :1, :1, :1]).all()
    levels = found[:, 0, 0, 0].astype(int)
    assert levels.min() >= 80 and levels.max() <= 120 and abs(levels.mean() - 100) < 5 * 11.5 / 20


def test_contrast_keeps_the_mean_and_saturation_keeps_grey():
    grey = jnp.broadcast_to(jnp.array([90, 110], jnp.uint8)[None, :, None], (4, 2, 3))
    contrast = augment_many(KEY, grey, AugmentConfig(contrast=0.5), 1)[0].astype(float)
    assert abs(float(contrast.mean()) - 100) <= 0.5 and float(contrast[0, 0, 0]) != 90
    np.testing.assert_array_equal(augment_many(KEY, grey, AugmentConfig(saturation=1.0, hue=0.5), 1)[0], grey)


def test_hue_turns_the_colour_and_keeps_grey_levels():
    red = jnp.full((2, 2, 3), jnp.array([150, 100, 100]), jnp.uint8)
    found = np.asarray(augment_many(KEY, red, AugmentConfig(hue=0.5), 64))[:, 0, 0]
    luma = found @ np.array([0.299, 0.587, 0.114])
    assert np.abs(luma - (0.299 * 150 + 0.701 * 100)).max() < 1.5
    hues = [colorsys.rgb_to_hsv(*(colour / 255))[0] for colour in found]
    assert max(hues) - min(hues) > 0.7  # all around the wheel


def test_the_wrist_keeps_its_geometry():
    given = observation()
    found = module.augment(KEY, given, AugmentConfig(shift=3, rotation=20.0, crop=0.7))
    assert found.images["wrist"] is given.images["wrist"]
    assert (found.images["front"] != given.images["front"]).any()
    coloured = augment(KEY, given, AugmentConfig(shift=3, brightness=0.5))
    assert (coloured.images["wrist"] != given.images["wrist"]).any()


def test_every_observation_of_a_batch_is_augmented():
    seen = observation()
    actions, steps = jnp.zeros((4, 2, 1)), jnp.zeros((4, 2))
    demonstrations = Demonstrations(seen, actions, actions > 0, jnp.ones(4), future=seen)
    transitions = Transitions(seen, actions, steps, steps, steps > 0, seen, {}, goal=seen)
    config = AugmentConfig(brightness=0.5)
    for batch, names in ((demonstrations, ("observation", "future")), (transitions, ("next_observation", "goal"))):
        found = augment_batch(KEY, batch, config)
        for name in names:
            assert (getattr(found, name).images["front"] != seen.images["front"]).any()
    assert augment_batch(KEY, demonstrations, config).goal is None
    features = transitions.replace(observation=jnp.zeros((4, 8)))  # what a learner embedded has no pictures
    assert (augment_batch(KEY, features, config).observation == 0).all()


@pytest.mark.parametrize(
    "values", [{"shift": -1}, {"crop": 0.0}, {"crop": 1.5}, {"rotation": -1.0}, {"brightness": 2.0}, {"hue": 0.6}]
)
def test_impossible_amounts_are_refused(values):
    with pytest.raises(ConfigError, match=f"AugmentConfig.{next(iter(values))}"):
        AugmentConfig(**values)
