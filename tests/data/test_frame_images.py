import numpy as np
import pytest

from tests.data.toy_rlds import LENGTHS
from vla_jax.core import images
from vla_jax.core.errors import ConfigError
from vla_jax.data.formats import image_codec
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.data.frame_images import FrameImages, SmallPictures

TOTAL = sum(LENGTHS)


class Counting:
    """A set of 6 pictures, one of them damaged, that counts what is read from it."""

    num_frames = 6

    def __init__(self):
        self.read = []

    def image_shape(self, name):
        return 4, 4, 3

    def read_images(self, frames, name, out):
        self.read += frames.tolist()
        out[...] = frames[:, None, None, None]
        out[frames == 2] = 0
        return frames != 2


def test_every_frame_is_read_once_and_keeps_its_shape():
    source = Counting()
    kept = FrameImages(source, "front", keep=True)
    for frames in ([[0, 1], [2, 1]], [[2, 0], [5, 5]]):
        pictures, ok = kept.gather(np.array(frames))
        assert pictures.shape == (2, 2, 4, 4, 3)
        np.testing.assert_array_equal(ok, np.array(frames) != 2)
        np.testing.assert_array_equal(pictures[..., 0, 0, 0], np.where(ok, frames, 0))
    assert sorted(source.read) == [0, 1, 2, 5]


def test_pictures_are_those_of_the_set(toy):
    dataset = RldsDataset(toy)
    frames = np.array([[3, 0], [TOTAL - 1, 3]])
    pictures, ok = FrameImages(dataset, "observation/front", keep=True).gather(frames)
    assert ok.all()
    for place in np.ndindex(*frames.shape):
        np.testing.assert_array_equal(pictures[place], dataset.image(int(frames[place]), "observation/front"))


def test_small_pictures_are_scaled_in_the_decoder(toy):
    dataset = RldsDataset(toy)
    small = SmallPictures(dataset, 2)
    out = np.empty((TOTAL, *small.image_shape("observation/front")), np.uint8)
    assert out.shape[1:] == (8, 12, 3) and small.num_frames == TOTAL
    assert small.read_images(np.arange(TOTAL), "observation/front", out).all()
    for frame in range(TOTAL):
        data = dataset.image_bytes(frame, "observation/front")
        np.testing.assert_array_equal(out[frame], image_codec.decode(data, scale=2))
        near = images.average_blocks(image_codec.decode(data), 2)
        assert np.abs(out[frame].astype(int) - near.astype(int)).max() <= 5


def test_a_scale_that_does_not_divide_is_refused(toy):
    with pytest.raises(ConfigError, match=r"(?s)divisor of 16 x 24.*found\s+8|2, 4 or 8"):
        SmallPictures(RldsDataset(toy), 3)
    assert SmallPictures(RldsDataset(toy), 8).image_shape("observation/front") == (2, 3, 3)
