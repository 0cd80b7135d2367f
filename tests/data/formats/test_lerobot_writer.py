import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.data.formats.toy_lerobot import EPISODES, FPS, LENGTHS, SPECS, make_episode, write_v3
from vla_jax.core.errors import ConfigError, DataError
from vla_jax.data.formats import image_codec
from vla_jax.data.formats.lerobot import LeRobotDataset
from vla_jax.data.formats.lerobot_writer import LeRobotWriter, LeRobotWriterConfig
from vla_jax.data.formats.specs import Episode, FeatureSpec

CONFIG = LeRobotWriterConfig(FPS, "parquet")
TOTAL = sum(LENGTHS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_v3(tmp_path_factory.mktemp("written") / "toy")


def test_the_layout_is_that_of_v3(folder):
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == [
        "data/chunk-000/file-000.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "meta/info.json",
        "meta/stats.json",
        "meta/tasks.parquet",
        "videos/observation.images.front/chunk-000/file-000.mp4",
        "videos/observation.images.wrist/chunk-000/file-000.mp4",
    ]
    info = json.loads((folder / "meta" / "info.json").read_text())
    assert {key: info[key] for key in ("codebase_version", "fps", "total_episodes", "total_frames", "total_tasks")} == {
        "codebase_version": "v3.0",
        "fps": FPS,
        "total_episodes": len(LENGTHS),
        "total_frames": TOTAL,
        "total_tasks": 2,
    }
    assert info["splits"] == {"train": f"0:{len(LENGTHS)}"}
    assert info["features"]["observation.images.front"]["dtype"] == "video"
    assert info["features"]["next.reward"] == {"dtype": "float32", "shape": [1], "names": None}
    assert info["features"]["language_instruction_2"]["dtype"] == "string"
    columns = {key for key, feature in info["features"].items() if feature["dtype"] != "video"}
    assert set(pq.read_schema(folder / "data/chunk-000/file-000.parquet").names) == columns


def test_bookkeeping_counts_frames_and_episodes(folder):
    table = pq.read_table(folder / "data/chunk-000/file-000.parquet")
    column = {name: table[name].to_numpy() for name in ("index", "episode_index", "frame_index", "task_index")}
    np.testing.assert_array_equal(column["index"], np.arange(TOTAL))
    np.testing.assert_array_equal(column["episode_index"], np.repeat(np.arange(len(LENGTHS)), LENGTHS))
    np.testing.assert_array_equal(column["frame_index"], np.concatenate([np.arange(n) for n in LENGTHS]))
    np.testing.assert_array_equal(column["task_index"], np.repeat([0, 1, 0, 1], LENGTHS))
    np.testing.assert_allclose(table["timestamp"].to_numpy(), column["frame_index"] / FPS, rtol=1e-6)
    assert pq.read_metadata(folder / "data/chunk-000/file-000.parquet").num_row_groups == len(LENGTHS)


def test_episodes_carry_their_range_their_tasks_and_their_statistics(folder):
    rows = pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["dataset_from_index"] for row in rows] == [0, 12, 13, 43]
    assert [row["dataset_to_index"] for row in rows] == [12, 13, 43, 50]
    assert [row["tasks"] for row in rows] == [["task 0"], ["task 1"]] * 2
    key = "videos/observation.images.front"
    assert [row[f"{key}/to_timestamp"] for row in rows] == [1.2, 1.3, 4.3, 5.0]
    for row, episode in zip(rows, EPISODES, strict=True):
        np.testing.assert_allclose(row["stats/action/mean"], episode.steps["action"].mean(0), rtol=1e-6)
        np.testing.assert_allclose(
            np.ravel(row["stats/observation.images.front/max"]), episode.steps["observation/front"].max((0, 1, 2)) / 255
        )


def test_statistics_are_those_of_all_frames(folder):
    stats = json.loads((folder / "meta" / "stats.json").read_text())
    state = np.concatenate([episode.steps["observation/state"] for episode in EPISODES]).astype(np.float64)
    np.testing.assert_allclose(stats["observation.state"]["mean"], state.mean(0))
    np.testing.assert_allclose(stats["observation.state"]["std"], state.std(0))
    assert stats["observation.state"]["count"] == [TOTAL]
    assert np.shape(stats["observation.images.wrist"]["q99"]) == (3, 1, 1)


def test_tasks_are_indexed_as_pandas_would(folder):
    metadata = json.loads(pq.read_schema(folder / "meta/tasks.parquet").metadata[b"pandas"])
    assert metadata["index_columns"] == ["task"]


def test_encoded_pictures_stay_as_they_are_and_arrays_become_png(tmp_path):
    jpegs = [image_codec.encode_jpeg(picture) for picture in EPISODES[0].steps["observation/front"]]
    steps = {**EPISODES[0].steps, "observation/front": jpegs}
    with LeRobotWriter(tmp_path / "toy", SPECS, CONFIG) as writer:
        writer.write(Episode(steps, EPISODES[0].metadata))
    dataset = LeRobotDataset(tmp_path / "toy")
    assert [dataset.image_bytes(frame, "observation/front") for frame in range(LENGTHS[0])] == jpegs
    np.testing.assert_array_equal(dataset.episode(0).steps["observation/wrist"], EPISODES[0].steps["observation/wrist"])


@pytest.mark.parametrize("kept", ["video", "parquet"])
def test_pictures_may_come_one_by_one(tmp_path, kept):
    steps = {
        **EPISODES[2].steps,
        **{name: iter(EPISODES[2].steps[name]) for name in ("observation/front", "observation/wrist")},
    }
    streamed = [Episode(steps, EPISODES[2].metadata)]
    found = LeRobotDataset(write_v3(tmp_path / "streamed", kept, episodes=streamed)).episode(0)
    expected = LeRobotDataset(write_v3(tmp_path / "whole", kept, episodes=EPISODES[2:3])).episode(0)
    difference = found.steps["observation/front"].astype(int) - expected.steps["observation/front"]
    # An encoder with threads of its own need not give the same bytes twice.
    assert np.abs(difference).mean() < 0.1 if kept == "video" else not difference.any()


def test_an_interrupted_write_leaves_nothing_and_does_not_stand_in_the_way(tmp_path):
    with pytest.raises(KeyboardInterrupt), LeRobotWriter(tmp_path / "toy", SPECS, CONFIG) as writer:
        writer.write(EPISODES[0])
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "toy.incomplete" / "data").mkdir(parents=True)  # as after a kill
    write_v3(tmp_path / "toy")
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
    with pytest.raises(DataError, match="never written over"):
        write_v3(tmp_path / "toy")


def change(**changes):
    return Episode({**EPISODES[0].steps, **changes}, EPISODES[0].metadata)


@pytest.mark.parametrize(
    ("episode", "message"),
    [
        (change(extra=np.zeros(12)), "unknown \\['extra'\\]"),
        (change(action=np.zeros((12, 3), np.float32)), "float32 \\[12, 4\\]"),
        (change(action=np.full((12, 4), np.nan, np.float32)), "NaN"),
        (change(count=np.zeros((12, 2))), "int64 \\[12, 2\\]"),
        (change(language_instruction=["a"]), "one text, or 12"),
        (change(**{"observation/front": np.zeros((11, 48, 64, 3), np.uint8)}), "12 pictures"),
        (change(**{"observation/front": np.zeros((12, 48, 48, 3), np.uint8)}), "\\[48, 64, 3\\]"),
        (change(**{"observation/front": [b"no picture"] * 12}), "does not decode"),
    ],
)
def test_an_episode_that_does_not_fit_is_refused(tmp_path, episode, message):
    with pytest.raises(DataError, match=message), LeRobotWriter(tmp_path / "toy", SPECS, CONFIG) as writer:
        writer.write(episode)
    assert list(tmp_path.iterdir()) == []


def test_a_set_without_episodes_is_refused(tmp_path):
    with pytest.raises(DataError, match="no episodes"), LeRobotWriter(tmp_path / "toy", SPECS, CONFIG):
        pass
    assert list(tmp_path.iterdir()) == []


def test_features_that_cannot_be_written_are_refused(tmp_path):
    action = SPECS["action"]
    twice = {name: dataclasses.replace(action, name=name) for name in ("a/b", "a.b")}
    with pytest.raises(DataError, match=r"'a\.b'"):
        LeRobotWriter(tmp_path / "toy", twice, CONFIG)
    unknown_size = FeatureSpec("observation/front", "image", (None, None, 3), "uint8", True)
    with pytest.raises(DataError, match="one known size"):
        LeRobotWriter(tmp_path / "toy", {"action": action, "observation/front": unknown_size}, CONFIG)
    with pytest.raises(DataError, match="no numbers"):
        LeRobotWriter(tmp_path / "toy", {"language_instruction": SPECS["language_instruction"]}, CONFIG)


def test_odd_sizes_cannot_be_videos(tmp_path):
    odd = {**SPECS, "observation/front": dataclasses.replace(SPECS["observation/front"], shape=(47, 64, 3))}
    with pytest.raises(ConfigError, match="even height and width"):
        write_v3(tmp_path / "toy", specs=odd)


def test_configs_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="fps"):
        LeRobotWriterConfig(fps=0)
    with pytest.raises(ConfigError, match="video or parquet"):
        LeRobotWriterConfig(fps=1, pictures="png")


def test_long_sets_fill_several_files(tmp_path):
    episodes = [make_episode(number, 3) for number in range(5)]
    folder = write_v3(tmp_path / "toy", max_video_bytes=1, max_data_bytes=1, episodes=episodes)
    assert [path.name for path in sorted(folder.glob("data/*/*"))] == [f"file-00{i}.parquet" for i in range(5)]
    assert len(list(folder.glob("videos/*front/*/*"))) > 1  # an encoder holds back a few pictures before it counts them
    dataset = LeRobotDataset(folder)
    np.testing.assert_array_equal(
        dataset.columns["action"], np.concatenate([episode.steps["action"] for episode in episodes])
    )
