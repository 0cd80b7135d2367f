import dataclasses

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.data.formats.raw_set import write_set
from tests.data.toy_rlds import LENGTHS
from vla_jax.core import images
from vla_jax.core.errors import ConfigError
from vla_jax.data.formats import image_codec
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.data.picture_sources import sized_pictures
from vla_jax.data.pictures.frame_images import FrameImages, SmallPictures
from vla_jax.data.schema import DatasetConfig

TOTAL = sum(LENGTHS)
PICTURE = np.zeros((10, 12, 3), np.uint8)
ODD = tfds.features.FeaturesDict({"steps": tfds.features.Dataset({"front": tfds.features.Image(shape=(10, 12, 3))})})


class Counting:
    """A set of 6 pictures, one of them damaged, that counts what is read from it."""

    num_frames, place = 6, "counting"

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
    kept = FrameImages(source, "front")
    for frames in ([[0, 1], [2, 1]], [[2, 0], [5, 5]]):
        pictures, ok = kept.gather(np.array(frames))
        assert pictures.shape == (2, 2, 4, 4, 3)
        np.testing.assert_array_equal(ok, np.array(frames) != 2)
        np.testing.assert_array_equal(pictures[..., 0, 0, 0], np.where(ok, frames, 0))
    assert sorted(source.read) == [0, 1, 2, 5]


def test_pictures_are_those_of_the_set(toy):
    dataset = RldsDataset(toy)
    frames = np.array([[3, 0], [TOTAL - 1, 3]])
    pictures, ok = FrameImages(dataset, "observation/front").gather(frames)
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


def test_a_scale_that_does_not_divide_is_refused(toy, tmp_path):
    with pytest.raises(ConfigError, match="2, 4 or 8"):
        SmallPictures(RldsDataset(toy), 3)
    odd = RldsDataset(write_set(tmp_path / "d", ODD, [[{"steps/front": [image_codec.encode_jpeg(PICTURE)]}]]))
    with pytest.raises(ConfigError, match=r"(?s)divisor of 10 x 12.*found\s+4"):
        SmallPictures(odd, 4).image_shape("front")
    with pytest.raises(ConfigError, match=r"(?s)expected\s+an RLDS dataset.*downscale_in_decoder"):
        SmallPictures(Counting(), 2)
    assert SmallPictures(RldsDataset(toy), 8).image_shape("observation/front") == (2, 3, 3)


def test_a_config_has_to_ask_for_the_decoder(toy):
    dataset, frames = RldsDataset(toy), np.arange(TOTAL)
    config = DatasetConfig(str(toy), 1, (("main", "front"),), downscale=2)
    found = {}
    for in_decoder in (False, True):
        source = sized_pictures(dataset, dataclasses.replace(config, downscale_in_decoder=in_decoder))
        found[in_decoder] = np.empty((TOTAL, 8, 12, 3), np.uint8)
        assert source.read_images(frames, "observation/front", found[in_decoder]).all()
    wholes = np.stack([dataset.image(frame, "observation/front") for frame in range(TOTAL)])
    np.testing.assert_array_equal(found[False], images.average_blocks(wholes, 2))
    expected = [image_codec.decode(dataset.image_bytes(f, "observation/front"), scale=2) for f in range(TOTAL)]
    np.testing.assert_array_equal(found[True], expected)
    with pytest.raises(ConfigError, match=r"(?s)downscale of 2, 4 or 8.*found\s+1"):
        dataclasses.replace(config, downscale=1, downscale_in_decoder=True)
