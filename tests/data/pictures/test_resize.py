import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from vla_jax.core.errors import ConfigError
from vla_jax.core.images import average_blocks
from vla_jax.data.pictures.resize import averaged_pictures, check_size, resize, resized_pictures

PICTURE = np.random.default_rng(0).integers(0, 256, (18, 32, 3), np.uint8)


class Pictures:
    """Frame `i` is `PICTURE + i`; frame 2 is damaged."""

    num_frames = 5

    def image_shape(self, name):
        return PICTURE.shape

    def read_images(self, frames, name, out):
        out[...] = PICTURE + frames[:, None, None, None].astype(np.uint8)
        out[frames == 2] = 0
        return frames != 2


def test_stretching_is_what_pil_does():
    expected = np.asarray(Image.fromarray(PICTURE).resize((8, 8), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resize(PICTURE, (8, 8, "stretch")), expected)


def test_halving_a_flat_picture_keeps_it_flat():
    flat = np.full((18, 32, 3), 77, np.uint8)
    for fit in ("crop", "stretch"):
        assert (resize(flat, (9, 9, fit)) == 77).all()


def test_padding_keeps_proportions_and_centres():
    # 32 x 18 into 16 x 16: half the size is 16 x 9, with 3 black rows above and 4 below.
    padded = resize(PICTURE, (16, 16, "pad"))
    expected = np.asarray(Image.fromarray(PICTURE).resize((16, 9), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(padded[3:12], expected)
    assert not padded[:3].any() and not padded[12:].any()


def test_cropping_takes_the_centred_square():
    # The height fits, so 7 columns are lost on either side.
    np.testing.assert_array_equal(resize(PICTURE, (18, 18, "crop")), PICTURE[:, 7:25])


def test_a_picture_of_the_right_size_is_copied():
    out = np.zeros_like(PICTURE)
    assert resize(PICTURE, (18, 32, "pad"), out) is out
    np.testing.assert_array_equal(out, PICTURE)


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(["pad", "crop", "stretch"]),
)
@example((7, 1), (25, 1), "crop")  # (7 - 25 * (7 / 25)) / 2 is below zero
def test_any_size_becomes_any_other_without_new_levels(before, after, fit):
    picture = np.full((*before, 3), 100, np.uint8)
    found = resize(picture, (*after, fit))
    assert found.shape == (*after, 3)
    assert set(np.unique(found)) <= ({0, 100} if fit == "pad" else {100})
    assert (found == 100).any()


def test_a_source_scales_every_picture_and_passes_on_which_are_real():
    source = resized_pictures(Pictures(), (6, 6, "crop"))
    out = np.empty((3, *source.image_shape("front")), np.uint8)
    assert source.read_images(np.array([4, 2, 0]), "front", out).tolist() == [True, False, True]
    np.testing.assert_array_equal(out[0], resize(PICTURE + np.uint8(4), (6, 6, "crop")))
    np.testing.assert_array_equal(out[2], resize(PICTURE, (6, 6, "crop")))
    assert not out[1].any()


def test_a_source_can_average_blocks():
    source = averaged_pictures(Pictures(), 2)
    assert source.image_shape("front") == (9, 16, 3)
    out = np.empty((2, 9, 16, 3), np.uint8)
    assert source.read_images(np.array([0, 2]), "front", out).tolist() == [True, False]
    np.testing.assert_array_equal(out[0], average_blocks(PICTURE, 2))
    with pytest.raises(ConfigError, match="divides 18 x 32"):
        averaged_pictures(Pictures(), 4).image_shape("front")


@pytest.mark.parametrize("size", [(0, 4, "pad"), (4, -1, "crop"), (4, 4, "squeeze")])
def test_impossible_sizes_are_refused(size):
    with pytest.raises(ConfigError, match=r"DatasetConfig\.resize"):
        check_size(size, "DatasetConfig.resize")
