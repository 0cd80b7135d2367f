"""Resizing inside a jit gives PIL's bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_jax.data.pictures.resize import resize
from vla_jax.data.pictures.resize_traced import resize_batch, resize_integers

sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


@settings(max_examples=200, deadline=None)
@given(before=sizes, after=sizes, fit=st.sampled_from(["pad", "crop", "stretch"]))
def test_any_size_gives_the_bytes_of_pil(before, after, fit):
    picture, size = noise(*before), (*after, fit)
    np.testing.assert_array_equal(resize_integers(picture, size), resize(picture, size))


@pytest.mark.parametrize(
    ("before", "size"),
    [((180, 320), (224, 224, "pad")), ((180, 320), (96, 128, "crop")), ((64, 64), (48, 40, "stretch"))],
)
def test_the_sizes_of_robots_give_the_bytes_of_pil_in_one_program(before, size):
    pictures = noise(2, 2, *before)
    traced = jax.jit(lambda images: resize_batch(images, size))(pictures)
    assert traced.dtype == jnp.uint8
    on_the_host = resize_batch(pictures, size)
    np.testing.assert_array_equal(traced, on_the_host)
    np.testing.assert_array_equal(on_the_host[1, 0], resize(pictures[1, 0], size))


def test_extremes_do_not_overflow():
    for level in (0, 255):
        flat = np.full((37, 23, 3), level, np.uint8)
        assert (resize_integers(flat, (5, 5, "stretch")) == level).all()


def test_a_picture_of_the_right_size_is_left_alone():
    picture = noise(6, 8)
    assert resize_integers(picture, (6, 8, "pad")) is picture
