import numpy as np
from PIL import Image

from vla_jax.evaluation import picture, statistics


def test_frames_run_from_the_first_to_the_last_real_one():
    frames = np.arange(10, dtype=np.uint8)[:, None, None, None].repeat(3, -1)
    chosen = picture.evenly(frames, 7, 4)  # frames 7 to 9 only repeat the last one
    assert chosen[:, 0, 0, 0].tolist() == [0, 2, 4, 6]


def test_a_picture_is_written_whole(tmp_path):
    frames = np.zeros((3, 16, 16, 3), np.uint8)
    strips = [picture.Strip(name, frames, 0.5, statistics.wilson(5, 10), 10) for name in ("before", "after")]
    path = picture.draw(strips, "an instruction", tmp_path / "deep" / "picture.png")
    with Image.open(path) as image:
        assert image.width > image.height > 100
    assert [file.name for file in path.parent.iterdir()] == ["picture.png"]
