import numpy as np
import pytest

from vla_jax.core.errors import ConfigError, DataError
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.data.pictures import image_cache
from vla_jax.data.pictures.image_cache import ImageCache, build
from vla_jax.data.pictures.resize import resized_pictures

NAMES = ("observation/front", "observation/wrist")
SIZE = (6, 6, "crop")


class Stops(Exception):
    pass


class Interrupted:
    """A source that fails after some pictures; frame 3 is damaged."""

    def __init__(self, source, reads=10**9):
        self._source, self.reads, self.frames = source, reads, []

    @property
    def num_frames(self):
        return self._source.num_frames

    def image_shape(self, name):
        return self._source.image_shape(name)

    def read_images(self, frames, name, out):
        self.reads -= 1
        if self.reads < 0:
            raise Stops
        self.frames += [(name, int(frame)) for frame in frames]
        ok = self._source.read_images(frames, name, out) & (frames != 3)
        out[frames == 3] = 0
        return ok


@pytest.fixture
def source(toy_folder):
    return resized_pictures(RldsDataset(toy_folder), SIZE)


def read(source, frames, name):
    out = np.empty((len(frames), *source.image_shape(name)), np.uint8)
    return out, source.read_images(np.asarray(frames), name, out)


@pytest.mark.parametrize("format", ["raw", "jpeg"])
def test_a_cache_gives_the_pictures_it_was_made_of(source, tmp_path, format):
    cache = build(Interrupted(source), NAMES, tmp_path / "cache", "id", format=format, jpeg_quality=100)
    reopened = ImageCache(tmp_path / "cache", "id")
    frames = [15, 0, 7, 7, 3]
    for name in NAMES:
        assert cache.image_shape(name) == (6, 6, 3) and cache.cameras == NAMES
        expected, _ = read(source, frames, name)
        expected[4] = 0
        found, ok = read(reopened, frames, name)
        assert ok.tolist() == [True, True, True, True, False]
        # the toy pictures are flat, so that JPEG loses at most a level to its colour space
        np.testing.assert_allclose(found.astype(int), expected, atol=0 if format == "raw" else 1)


@pytest.mark.parametrize("format", ["raw", "jpeg"])
def test_an_interrupted_build_goes_on_where_it_stopped(source, tmp_path, format, monkeypatch):
    monkeypatch.setattr(image_cache, "_CHUNK_BYTES", 4 * 6 * 6 * 3)  # four pictures
    stopping = Interrupted(source, reads=5)
    with pytest.raises(Stops):
        build(stopping, NAMES, tmp_path / "cache", "id", format=format, num_threads=1)
    assert not (tmp_path / "cache").exists() and len(stopping.frames) == 20  # one camera and one chunk of the other
    with (tmp_path / "cache.incomplete" / f"observation__wrist.{format}").open("ab") as file:
        file.write(b"half a chunk that was not counted")
    rest = Interrupted(source)
    resumed = build(rest, NAMES, tmp_path / "cache", "id", format=format, num_threads=1)
    assert rest.frames == [("observation/wrist", frame) for frame in range(4, 16)]
    whole = build(Interrupted(source), NAMES, tmp_path / "whole", "id", format=format)
    for name in NAMES:
        for a, b in zip(read(resumed, range(16), name), read(whole, range(16), name), strict=True):
            np.testing.assert_array_equal(a, b)
    assert not list(tmp_path.glob("*.incomplete"))


def test_what_an_interrupted_build_of_another_set_left_is_not_used(source, tmp_path):
    with pytest.raises(Stops):
        build(Interrupted(source, reads=1), NAMES, tmp_path / "cache", "other", num_threads=1)
    whole = Interrupted(source)
    build(whole, NAMES, tmp_path / "cache", "id", num_threads=1)
    assert len(whole.frames) == 32


def test_building_again_opens_what_is_there(source, tmp_path):
    build(source, NAMES, tmp_path / "cache", "id")
    untouched = Interrupted(source)
    build(untouched, NAMES, tmp_path / "cache", "id")
    assert untouched.frames == []


def test_progress_counts_pictures(source, tmp_path):
    seen = []
    build(source, NAMES, tmp_path / "cache", "id", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(16, 32), (32, 32)]


def test_a_cache_of_other_data_is_refused(source, tmp_path):
    build(source, NAMES, tmp_path / "cache", "id")
    with pytest.raises(DataError, match="other data"):
        ImageCache(tmp_path / "cache", "another")
    with pytest.raises(DataError, match="no image cache"):
        ImageCache(tmp_path / "nothing", "id")
    with pytest.raises(DataError, match=r"(?s)'observation/top' is not in this cache.*observation/front"):
        ImageCache(tmp_path / "cache").image_shape("observation/top")
    with pytest.raises(ConfigError, match="raw"):
        build(source, NAMES, tmp_path / "x", "id", format="png")


def test_the_fingerprint_tells_sets_and_sizes_apart(toy_folder):
    dataset = RldsDataset(toy_folder)
    first = image_cache.fingerprint(dataset, NAMES, "crop 6")
    assert first == image_cache.fingerprint(RldsDataset(toy_folder), NAMES, "crop 6")
    assert first != image_cache.fingerprint(dataset, NAMES, "crop 7")
    assert first != image_cache.fingerprint(dataset, NAMES[:1], "crop 6")
