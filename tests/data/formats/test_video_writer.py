import os

import av
import numpy as np
import pytest

from tests.data.formats.toy_video import HEIGHT, WIDTH, decode_in_order, pictures
from vla_jax.core.errors import ConfigError
from vla_jax.data.formats.video_writer import Clip, VideoConfig, VideoFiles

SHAPE = (HEIGHT, WIDTH, 3)


def write(folder, parts, config, fps=10.0):
    files = VideoFiles(lambda number: folder / f"{number}.mp4", SHAPE, fps, config)
    clips = [files.write(part) for part in parts]
    files.close()
    return clips


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_clips_say_where_the_pictures_are(tmp_path, codec):
    parts = [pictures(count, seed=count) for count in (4, 1, 9)]
    clips = write(tmp_path, parts, VideoConfig(codec, crf=10, keyframe_interval=3))
    assert clips == [Clip(0, 0.0, 0.4), Clip(0, 0.4, 0.5), Clip(0, 0.5, 1.4)]
    found = decode_in_order(tmp_path / "0.mp4")
    assert np.abs(found.astype(int) - np.concatenate(parts)).mean() < 6  # chroma is halved
    with av.open(str(tmp_path / "0.mp4")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.dts is not None]
        assert [p.is_keyframe for p in packets] == [i % 3 == 0 for i in range(14)]
        np.testing.assert_allclose([float(p.pts * p.time_base) for p in packets], np.arange(14) / 10)


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="threads have no scheduling policy here")
def test_no_thread_is_left_with_real_time_priority(tmp_path):
    """SVT-AV1 asks for it where it may, as root; a test process with it starved all others once."""
    files = VideoFiles(lambda number: tmp_path / f"{number}.mp4", SHAPE, 10.0, VideoConfig("av1"))
    for number in range(2):
        files.write(pictures(8, seed=number))
        policies = {os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")}
        assert policies == {os.SCHED_OTHER}
    files.close()
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_a_full_file_is_followed_by_the_next(tmp_path):
    parts = [pictures(5, seed=i) for i in range(3)]
    assert write(tmp_path, parts, VideoConfig(max_file_bytes=1)) == [Clip(i, 0.0, 0.5) for i in range(3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.mp4", "1.mp4", "2.mp4"]


def test_rates_that_are_no_whole_numbers_keep_their_times(tmp_path):
    (clip,) = write(tmp_path, [pictures(60)], VideoConfig(), fps=29.97)
    assert clip.stop == pytest.approx(60 / 29.97, rel=1e-6)
    with av.open(str(tmp_path / "0.mp4")) as container:
        times = [frame.time for frame in container.decode(video=0)]
    np.testing.assert_allclose(times, np.arange(60) / 29.97, atol=1e-4)


@pytest.mark.parametrize("config", [dict(codec="hevc"), dict(crf=64), dict(keyframe_interval=0)])
def test_configs_that_cannot_work_are_refused(config):
    with pytest.raises(ConfigError):
        VideoConfig(**config)
