import base64
import io
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from vla_jax.core import errors
from vla_jax.evaluation import video
from vla_jax.evaluation.rollouts import Recording


def film(length=6, height=8, width=8):
    """A bright square that moves to the right by one pixel a frame."""
    frames = np.zeros((length, height, width, 3), np.uint8)
    for t in range(length):
        frames[t, 2:6, t : t + 2] = (250, 120, 30)
    return frames


def decode(clip, tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(clip.data)
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-i",
        str(path),
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-",
    ]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, clip.height, clip.width, 3)


def test_upscaling_repeats_pixels():
    frames = video.upscale(film(), 64)
    assert frames.shape == (6, 64, 64, 3)
    np.testing.assert_array_equal(frames[:, ::8, ::8], film())
    assert video.upscale(film(), 4).shape == film().shape  # never shrinks


def test_an_mp4_decodes_to_the_same_film(tmp_path):
    clip = video.encode(film(), 10, size=64, hold_seconds=0.2)
    assert (clip.media_type, clip.width, clip.height) == ("video/mp4", 64, 64)
    decoded = decode(clip, tmp_path)
    assert decoded.shape == (8, 64, 64, 3)  # 6 frames and two held ones
    error = np.abs(decoded[:6].astype(int) - video.upscale(film(), 64)).mean()
    assert error < 6  # lossy; a film shifted by one frame is off by more than 15
    assert len(clip.data) < 20_000


def test_odd_sides_are_made_even():
    clip = video.encode(film(height=9, width=7), 10, size=9)
    assert (clip.width, clip.height) == (8, 10)


@pytest.mark.parametrize("format", ["webp", "gif"])
def test_images_move_too(format):
    clip = video.encode(film(), 10, size=32, hold_seconds=0, format=format)
    image = Image.open(io.BytesIO(clip.data))
    assert image.n_frames == 6
    assert clip.media_type == f"image/{format}"


def test_without_ffmpeg_the_film_is_a_webp(monkeypatch):
    def absent():
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr(video.imageio_ffmpeg, "get_ffmpeg_exe", absent)
    assert not video.has_ffmpeg()
    assert video.encode(film(), 10).media_type == "image/webp"


def test_the_data_uri_holds_the_bytes():
    clip = video.encode(film(), 10, format="gif")
    head, _, body = clip.data_uri.partition(",")
    assert head == "data:image/gif;base64"
    assert base64.b64decode(body) == clip.data


def test_clips_are_cut_where_the_episode_ended(tmp_path):
    frames = np.stack([film(), film()])
    recording = Recording(frames=frames, num_frames=np.array([2, 6]), episodes=None)
    short, long = video.clips(recording, 10, size=8)
    assert (len(decode(short, tmp_path)), len(decode(long, tmp_path))) == (10, 14)


@pytest.mark.parametrize(
    "frames", [np.zeros((0, 4, 4, 3), np.uint8), np.zeros((2, 4, 4, 3)), np.zeros((4, 4, 3), np.uint8)]
)
def test_what_is_no_film_raises(frames):
    with pytest.raises(errors.DataError, match=r"uint8 \[time, h, w, 3\]"):
        video.encode(frames, 10)
