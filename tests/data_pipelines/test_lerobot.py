import dataclasses
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines.lerobot import ToLeRobotOptions, ToRldsOptions, lerobot_to_rlds, rlds_to_lerobot
from tests.data import toy_rlds
from tests.data.formats.toy_lerobot import LENGTHS, SPECS, write_v2, write_v3
from vla_jax.core.errors import ConfigError, DataError
from vla_jax.data.formats.faults import FaultPolicy
from vla_jax.data.formats.lerobot import LeRobotDataset
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.data.formats.rlds_writer import RldsWriter
from vla_jax.data.open import open_dataset

FLAGS = {"reward", "discount", "is_first", "is_last", "is_terminal"}


@pytest.fixture(autouse=True)
def index_cache(monkeypatch, tmp_path_factory):
    """Indices of tests stay out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def rlds(tmp_path_factory):
    """The toy set of tests.data in RLDS, whose pictures are JPEG."""
    folder = tmp_path_factory.mktemp("rlds") / "toy" / "1.0.0"
    with RldsWriter(folder, toy_rlds.toy_features(), "toy") as writer:
        for number, length in enumerate(toy_rlds.LENGTHS):
            writer.write(toy_rlds.make_episode(number, length))
    return folder


def assert_same_numbers_and_texts(found, expected, besides=frozenset()):
    assert set(found.specs) - set(besides) == set(expected.specs) - set(besides)
    np.testing.assert_array_equal(found.episode_starts, expected.episode_starts)
    for name, spec in expected.specs.items():
        if spec.kind == "tensor" and name not in besides:
            assert found.columns[name].dtype == expected.columns[name].dtype
            np.testing.assert_array_equal(found.columns[name], expected.columns[name], err_msg=name)
        elif spec.kind == "text" and name not in besides:
            for dataset in (found, expected):
                assert dataset.specs[name].is_step == spec.is_step
            assert [found.texts(name)[k] for k in found.text_ids(name)] == [
                expected.texts(name)[k] for k in expected.text_ids(name)
            ]


def pictures(dataset, name):
    out = np.empty((dataset.num_frames, *dataset.image_shape(name)), np.uint8)
    assert dataset.read_images(np.arange(dataset.num_frames), name, out).all()
    return out


def test_rlds_to_parquet_and_back_is_exact(rlds, tmp_path):
    seen = []
    report = rlds_to_lerobot(
        rlds,
        tmp_path / "lerobot",
        ToLeRobotOptions(fps=20, pictures="parquet"),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(i + 1, len(toy_rlds.LENGTHS)) for i in range(len(toy_rlds.LENGTHS))]
    assert (report.num_episodes, report.num_frames) == (len(toy_rlds.LENGTHS), sum(toy_rlds.LENGTHS))
    assert (report.damaged_episodes, report.faults, report.left_out) == ((), {}, ())
    source, there = open_dataset(rlds), LeRobotDataset(tmp_path / "lerobot")
    assert there.fps == 20
    assert_same_numbers_and_texts(there, source, besides={"timestamp"})
    lerobot_to_rlds(tmp_path / "lerobot", tmp_path / "back" / "1.0.0", ToRldsOptions())
    back = RldsDataset(tmp_path / "back" / "1.0.0")
    assert_same_numbers_and_texts(back, source, besides={"timestamp"})
    for name in source.cameras:
        stored = [source.image_bytes(frame, name) for frame in range(source.num_frames)]
        assert [there.image_bytes(frame, name) for frame in range(source.num_frames)] == stored
        assert [back.image_bytes(frame, name) for frame in range(source.num_frames)] == stored


def test_rlds_to_video_and_back_keeps_numbers_and_nearly_the_pictures(rlds, tmp_path):
    rlds_to_lerobot(rlds, tmp_path / "lerobot", ToLeRobotOptions(fps=20, crf=5))
    lerobot_to_rlds(tmp_path / "lerobot", tmp_path / "back", ToRldsOptions(dataset_name="back"))
    source, back = open_dataset(rlds), open_dataset(tmp_path / "back")
    assert back.info.name == "back"
    assert_same_numbers_and_texts(back, source, besides={"timestamp"})
    for camera, size in toy_rlds.CAMERAS.items():
        found = pictures(back, f"observation/{camera}")
        assert found.shape[1:3] == size
        # Neighbouring steps differ by 5 levels, so a picture of another step would show.
        assert np.abs(found.astype(int) - pictures(source, f"observation/{camera}")).max() <= 3


def test_lerobot_to_png_and_back_to_parquet_is_exact(tmp_path):
    source = LeRobotDataset(write_v3(tmp_path / "source", "parquet"))
    report = lerobot_to_rlds(source, tmp_path / "rlds", ToRldsOptions(dataset_name="toy", pictures="png"))
    assert (report.num_frames, report.left_out) == (sum(LENGTHS), ())
    rlds_to_lerobot(tmp_path / "rlds", tmp_path / "back", ToLeRobotOptions(fps=10, pictures="parquet"))
    between, back = RldsDataset(tmp_path / "rlds"), LeRobotDataset(tmp_path / "back")
    added = FLAGS - set(SPECS)
    assert_same_numbers_and_texts(between, source, besides=added)
    assert_same_numbers_and_texts(back, source, besides=added)
    for name in source.cameras:
        np.testing.assert_array_equal(pictures(between, name), pictures(source, name))
        np.testing.assert_array_equal(pictures(back, name), pictures(source, name))


def test_plain_tfds_reads_what_lerobot_became(tmp_path):
    write_v2(tmp_path / "pusht")
    lerobot_to_rlds(tmp_path / "pusht", tmp_path / "rlds" / "1.0.0", ToRldsOptions())
    builder = tfds.builder_from_directory(str(tmp_path / "rlds" / "1.0.0"))
    assert builder.info.full_name == "pusht/1.0.0"
    episode = builder.as_data_source(split="train")[0]
    steps = list(episode["steps"])
    source = LeRobotDataset(tmp_path / "pusht")
    np.testing.assert_array_equal([step["action"] for step in steps], source.columns["action"][: LENGTHS[0]])
    assert steps[0]["language_instruction"] == b"task 0"
    # The set has next.done but no reward: the last step ends the task with success.
    assert [step["reward"] for step in steps] == [0] * (LENGTHS[0] - 1) + [1]
    assert [step["is_last"] for step in steps] == [step["is_terminal"] for step in steps] == [False] * 11 + [True]
    assert steps[0]["is_first"]


def test_recordings_without_success_end_without_reward(tmp_path):
    write_v2(tmp_path / "pusht")
    lerobot_to_rlds(tmp_path / "pusht", tmp_path / "rlds", ToRldsOptions(successful=False))
    dataset = RldsDataset(tmp_path / "rlds")
    assert not dataset.columns["reward"].any()
    assert not dataset.columns["is_terminal"].any()
    assert (dataset.columns["discount"] == 1).all()
    np.testing.assert_array_equal(np.flatnonzero(dataset.columns["is_last"]), dataset.episode_starts[1:] - 1)


def test_names_choose_features(rlds, tmp_path):
    names = ("action", "observation/wrist", "language_instruction")
    rlds_to_lerobot(rlds, tmp_path / "lerobot", ToLeRobotOptions(fps=5, names=names))
    dataset = LeRobotDataset(tmp_path / "lerobot")
    assert set(dataset.specs) == {*names, "timestamp", "episode_metadata/file_path"}  # the key is made up


def test_episodes_with_a_damaged_picture_are_left_out_and_named(tmp_path):
    folder = write_v2(tmp_path / "pusht")
    short, long = (next(folder.rglob(f"episode_00000{i}.mp4")) for i in (0, 2))
    long.write_bytes(short.read_bytes())  # 12 frames where 30 belong
    for convert, options in (
        (lerobot_to_rlds, ToRldsOptions()),
        (rlds_to_lerobot, ToLeRobotOptions(fps=10)),
    ):
        out = tmp_path / convert.__name__
        report = convert(folder, out, options)
        assert (report.num_episodes, report.num_frames) == (3, sum(LENGTHS) - LENGTHS[2])
        assert "episode_000002" in report.damaged_episodes[0]
        assert report.faults["bad image"] > 0
        np.testing.assert_array_equal(np.diff(open_dataset(out).episode_starts), np.delete(LENGTHS, 2))
        with pytest.raises(DataError, match="strict"):
            convert(folder, tmp_path / "strict", options, faults=FaultPolicy(strict=True))
        assert not (tmp_path / "strict").exists()
        assert not (tmp_path / "strict.incomplete").exists()


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Killed(Exception):
    """Nobody catches it, and what the conversion does about it is undone."""


CONVERSIONS = {
    "rlds": (lerobot_to_rlds, ToRldsOptions(pictures="png", max_shard_bytes=1)),
    "tfrecord": (lerobot_to_rlds, ToRldsOptions(pictures="png", file_format="tfrecord", max_shard_bytes=1)),
    "parquet": (rlds_to_lerobot, ToLeRobotOptions(fps=10, pictures="parquet", max_data_bytes=1)),
    "video": (rlds_to_lerobot, ToLeRobotOptions(fps=10, max_video_bytes=1)),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_a_killed_conversion_goes_on_from_its_last_full_file_and_gives_the_same_bytes(tmp_path, name):
    convert, options = CONVERSIONS[name]
    source = write_v2(tmp_path / "pusht")
    long, short = (next(source.rglob(f"episode_00000{i}.mp4")) for i in (2, 1))
    long.write_bytes(short.read_bytes())  # damage, which has to be remembered
    whole, seen = tmp_path / "whole" / "set", []
    expected = convert(source, whole, options, progress=lambda done, _: seen.append(done))
    assert seen == [1, 2, 3, 4] and len(expected.damaged_episodes) == 1
    out = tmp_path / "stopped" / "set"
    partial, copy = out.with_name("set.incomplete"), tmp_path / "as the kill left it"

    def stop(done, _):
        if done == 4:
            shutil.copytree(partial, copy)
            raise Killed

    with pytest.raises(Killed):
        convert(source, out, options, progress=stop)
    shutil.rmtree(partial)
    shutil.copytree(copy, partial)
    seen.clear()
    found = convert(source, out, options, progress=lambda done, _: seen.append(done))
    assert dataclasses.replace(found, faults={}) == dataclasses.replace(expected, faults={})
    # The last file was not full yet; an encoder holds pictures back, so its file is full a little later.
    assert seen == [4] or (name == "video" and seen[0] > 1)
    assert contents(out) == contents(whole) and not partial.exists()


def test_what_was_left_of_another_conversion_is_of_no_use(tmp_path):
    source, seen = write_v2(tmp_path / "pusht"), []
    options = ToRldsOptions(pictures="png", max_shard_bytes=1)

    def stop(done, _):
        if done == 3:
            raise Killed

    def show(done, _):
        seen.append(done)

    with pytest.raises(Killed):
        lerobot_to_rlds(source, tmp_path / "out", options, progress=stop)
    lerobot_to_rlds(source, tmp_path / "out", dataclasses.replace(options, successful=False), progress=show)
    assert seen == [1, 2, 3, 4]
    assert not RldsDataset(tmp_path / "out").columns["reward"].any()


def test_an_open_dataset_needs_a_name(tmp_path):
    source = LeRobotDataset(write_v2(tmp_path / "pusht"))
    with pytest.raises(ConfigError, match="dataset_name"):
        lerobot_to_rlds(source, tmp_path / "rlds", ToRldsOptions())
