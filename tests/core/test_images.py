import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.core import errors, images


def test_blocks_become_their_rounded_mean():
    picture = np.array([[0, 1], [1, 0]], np.uint8)[..., None].repeat(3, -1)
    np.testing.assert_array_equal(images.average_blocks(picture, 2), np.full((1, 1, 3), 1))  # 0.5 rounds up
    white = np.full((4, 4, 3), 255, np.uint8)
    np.testing.assert_array_equal(images.average_blocks(white, 4), np.full((1, 1, 3), 255))  # uint8 sums would wrap


def test_host_and_device_agree_to_the_byte():
    batch = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 12, 3)).astype(np.uint8)
    found = jax.jit(lambda x: images.average_blocks(x, 4))(jnp.asarray(batch))
    np.testing.assert_array_equal(found, images.average_blocks(batch, 4))
    assert images.average_blocks(batch, 4).shape == (2, 3, 2, 3, 3)


def test_a_factor_that_does_not_divide_is_refused():
    with pytest.raises(errors.ConfigError, match="divides 8 x 12"):
        images.average_blocks(np.zeros((8, 12, 3), np.uint8), 3)
