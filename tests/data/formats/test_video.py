import threading

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.formats.toy_video import HEIGHT, RATE, WIDTH, decode_in_order, pictures, write_video
from vla_jax.data.formats.video import VideoError, VideoReader

COUNT = 60
OPEN_GOP = {"x264-params": "open-gop=1:keyint=10:min-keyint=10:scenecut=0:bframes=3"}
KINDS = {
    "every second frame a key": dict(keyframe_interval=2),
    "every tenth": dict(keyframe_interval=10),
    "every tenth, B-frames": dict(keyframe_interval=10, b_frames=3),
    "one key only": dict(keyframe_interval=1000),
    "one key only, B-frames": dict(keyframe_interval=1000, b_frames=3),
    "open groups of pictures": dict(b_frames=3, options=OPEN_GOP),
    "AV1, every second": dict(codec="libsvtav1", keyframe_interval=2),
    "AV1, every tenth": dict(codec="libsvtav1", keyframe_interval=10),
    "AV1, one key only": dict(codec="libsvtav1", keyframe_interval=1000),
}


@pytest.fixture(scope="module", params=list(KINDS))
def video(request, tmp_path_factory):
    path = write_video(tmp_path_factory.mktemp("video") / "v.mp4", pictures(COUNT), **KINDS[request.param])
    frames = decode_in_order(path)
    assert len(frames) == COUNT
    assert len(np.unique(frames.reshape(COUNT, -1), axis=0)) == COUNT  # a wrong frame cannot pass for the right one
    return path, frames


def read(reader, path, numbers, rate=RATE):
    out = np.full((len(numbers), HEIGHT, WIDTH, 3), 7, np.uint8)
    failures = reader.read(path, np.asarray(numbers) / rate, out, np.arange(len(numbers)))
    return out, failures


def test_every_frame_alone_is_that_of_decoding_in_order(video):
    path, frames = video
    reader = VideoReader()
    for number in np.random.default_rng(0).permutation(COUNT):
        out, failures = read(reader, path, [number])
        assert not failures
        np.testing.assert_array_equal(out[0], frames[number], err_msg=f"frame {number}")


def test_batches_in_any_order_with_repeats_fill_their_rows(video):
    path, frames = video
    reader, rng = VideoReader(), np.random.default_rng(1)
    for size in (1, 2, 7, 40):
        numbers = rng.integers(0, COUNT, size)
        out, failures = read(reader, path, numbers)
        assert not failures
        np.testing.assert_array_equal(out, frames[numbers])


def test_going_forward_gives_every_frame(video):
    path, frames = video
    reader = VideoReader()
    out = np.concatenate([read(reader, path, [number])[0] for number in range(COUNT)])
    np.testing.assert_array_equal(out, frames)


@pytest.fixture(scope="module")
def long_groups(tmp_path_factory):
    path = write_video(tmp_path_factory.mktemp("video") / "v.mp4", pictures(COUNT), keyframe_interval=12, b_frames=2)
    return path, decode_in_order(path), VideoReader()


@given(st.lists(st.tuples(st.integers(0, COUNT - 1), st.floats(-0.45, 0.45)), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_a_time_belongs_to_the_nearest_frame(long_groups, asked):
    path, frames, reader = long_groups
    out, failures = read(reader, path, [number + shift for number, shift in asked])
    assert not failures
    np.testing.assert_array_equal(out, frames[[number for number, _ in asked]])


def test_times_off_the_video_fail_and_leave_the_others_right(long_groups):
    path, frames, _ = long_groups
    out, failures = read(VideoReader(), path, [3, COUNT, 5, -1, COUNT + 100, COUNT - 1])
    assert sorted(failures) == [1, 3, 4]
    np.testing.assert_array_equal(out[[0, 2, 5]], frames[[3, 5, COUNT - 1]])
    assert (out[[1, 3, 4]] == 7).all()
    assert "the video ends" in failures[1]


def test_a_gap_in_time_is_a_failure_and_not_a_neighbour(tmp_path):
    # Frames at 0, 1, 2 and 10: nothing is shown at 6.
    path = tmp_path / "gap.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"bf": "0"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for number, picture in zip((0, 1, 2, 10), pictures(4), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    frames = decode_in_order(path)
    out = np.zeros((2, HEIGHT, WIDTH, 3), np.uint8)
    failures = VideoReader().read(path, np.array([(times[2] + times[3]) / 2, times[3]]), out, np.arange(2))
    assert list(failures) == [0]
    np.testing.assert_array_equal(out[1], frames[3])


def test_another_size_is_a_failure(long_groups):
    path = long_groups[0]
    failures = VideoReader().read(path, np.zeros(1), np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, np.int64))
    assert "48x64 where 8x8" in failures[0]


def test_a_truncated_file_cannot_be_opened(tmp_path, long_groups):
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(long_groups[0].read_bytes()[:-2000])  # the table of frames is at the end
    for path in (cut, tmp_path / "missing.mp4"):
        with pytest.raises(VideoError, match=path.name):
            read(VideoReader(), path, [0])


def test_frames_before_the_damage_are_right(tmp_path):
    whole = write_video(tmp_path / "v.mp4", pictures(COUNT), keyframe_interval=5)
    frames = decode_in_order(whole)
    # With the table of frames at the front, half a file can be opened.
    moved = tmp_path / "moved.mp4"
    with av.open(str(whole)) as source, av.open(str(moved), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    data = moved.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: len(data) // 2])
    out, failures = read(VideoReader(), cut, np.arange(COUNT))
    good = np.setdiff1d(np.arange(COUNT), list(failures))
    assert 5 < len(good) < COUNT - 5
    np.testing.assert_array_equal(out[good], frames[good])


def test_more_files_than_stay_open(tmp_path):
    paths = [write_video(tmp_path / f"{i}.mp4", pictures(12, seed=i)) for i in range(4)]
    frames = [decode_in_order(path) for path in paths]
    reader = VideoReader(max_open=2)
    for i in (0, 1, 2, 3, 0, 2, 1, 3):
        np.testing.assert_array_equal(read(reader, paths[i], [9, 2])[0], frames[i][[9, 2]])
    assert reader.shape(paths[0]) == (HEIGHT, WIDTH, 3)


def test_threads_share_a_reader(long_groups):
    path, frames, reader = long_groups
    wrong = []

    def work(seed):
        for numbers in np.random.default_rng(seed).integers(0, COUNT, (20, 4)):
            out, failures = read(reader, path, numbers)
            if failures or not np.array_equal(out, frames[numbers]):
                wrong.append(numbers)

    threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert not wrong
