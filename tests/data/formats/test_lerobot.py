import json
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.formats.toy_lerobot import EPISODES, FPS, FRONT, LENGTHS, SPECS, write_v2, write_v3
from tests.data.formats.toy_video import decode_in_order
from vla_jax.core.errors import DataError
from vla_jax.data.formats.episodes import EpisodeDataset
from vla_jax.data.formats.faults import FaultPolicy
from vla_jax.data.formats.lerobot import LeRobotDataset

STARTS = np.concatenate([[0], np.cumsum(LENGTHS)])
CAMERA = "observation/front"


@pytest.fixture(scope="module")
def v2(tmp_path_factory):
    return write_v2(tmp_path_factory.mktemp("v2") / "toy")


@pytest.fixture(scope="module")
def v3(tmp_path_factory):
    """Two data files and two videos per camera, each with more than one episode."""
    folder = write_v3(tmp_path_factory.mktemp("v3") / "toy", max_video_bytes=4000, max_data_bytes=2500)
    assert len(list(folder.rglob("*front*/*/*.mp4"))) == len(list((folder / "data").rglob("*.parquet"))) == 2
    return folder


@pytest.fixture(scope="module")
def in_parquet(tmp_path_factory):
    return write_v3(tmp_path_factory.mktemp("images") / "toy", "parquet")


def read(dataset, frames, name=CAMERA):
    out = np.full((len(frames), *dataset.image_shape(name)), 9, np.uint8)
    return out, dataset.read_images(np.asarray(frames), name, out)


@pytest.mark.parametrize("version", ["v2", "v3", "in_parquet"])
def test_columns_and_texts_are_those_written(version, request):
    dataset = LeRobotDataset(request.getfixturevalue(version))
    assert isinstance(dataset, EpisodeDataset)
    assert len(dataset) == len(LENGTHS)
    assert dataset.num_frames == sum(LENGTHS)
    assert dataset.fps == FPS
    np.testing.assert_array_equal(dataset.episode_starts, STARTS)
    for name, column in dataset.columns.items():
        spec = dataset.specs[name]
        if name == "timestamp":
            expected = np.concatenate([np.arange(n) / FPS for n in LENGTHS]).astype(np.float32)
        elif spec.is_step:
            expected = np.concatenate([episode.steps[name] for episode in EPISODES])
        else:
            expected = np.stack([episode.metadata[name] for episode in EPISODES])
        assert column.dtype == spec.stored_dtype
        np.testing.assert_array_equal(column, expected, err_msg=name)
    assert dataset.texts("language_instruction") == ("task 0", "task 1")
    np.testing.assert_array_equal(dataset.text_ids("language_instruction"), np.repeat([0, 1, 0, 1], LENGTHS))


def test_everything_a_v3_set_was_written_with_comes_back(v3):
    dataset = LeRobotDataset(v3)
    assert {name: spec for name, spec in dataset.specs.items() if name != "timestamp"} == SPECS
    for i, written in enumerate(EPISODES):
        found = dataset.episode(i)
        assert found.steps["language_instruction_2"] == written.steps["language_instruction_2"]
        assert found.metadata["episode_metadata/file_path"] == written.metadata["episode_metadata/file_path"]
        assert np.abs(found.steps[CAMERA].astype(int) - written.steps[CAMERA]).mean() < 6  # chroma is halved


def test_v2_episodes_without_file_paths_are_keyed_by_their_number(v2):
    dataset = LeRobotDataset(v2)
    texts, ids = dataset.texts("episode_metadata/file_path"), dataset.text_ids("episode_metadata/file_path")
    assert [texts[k] for k in ids] == [f"episode_{i:06d}" for i in range(len(LENGTHS))]


def test_random_frames_of_v2_videos_are_those_of_decoding_in_order(v2):
    expected = np.concatenate([decode_in_order(path) for path in sorted(v2.rglob("*.mp4"))])
    frames = np.random.default_rng(0).permutation(sum(LENGTHS))
    out, ok = read(LeRobotDataset(v2), frames)
    assert ok.all()
    np.testing.assert_array_equal(out, expected[frames])


@pytest.mark.parametrize("camera", ["front", "wrist"])
def test_random_frames_of_videos_of_several_episodes_are_those_of_decoding_in_order(v3, camera):
    expected = np.concatenate([decode_in_order(path) for path in sorted(v3.rglob(f"*{camera}*/*/*.mp4"))])
    frames = np.random.default_rng(1).integers(0, sum(LENGTHS), 100)
    out, ok = read(LeRobotDataset(v3), frames, f"observation/{camera}")
    assert ok.all()
    np.testing.assert_array_equal(out, expected[frames])


def test_pictures_in_parquet_are_exact_in_any_order(in_parquet):
    expected = np.concatenate([episode.steps[CAMERA] for episode in EPISODES])
    frames = np.random.default_rng(2).integers(0, sum(LENGTHS), 60)
    out, ok = read(LeRobotDataset(in_parquet), frames)
    assert ok.all()
    np.testing.assert_array_equal(out, expected[frames])


def test_threads_share_a_dataset(v3):
    dataset = LeRobotDataset(v3)
    expected, _ = read(dataset, np.arange(dataset.num_frames))
    wrong = []

    def work(seed):
        for frames in np.random.default_rng(seed).integers(0, dataset.num_frames, (15, 5)):
            out, ok = read(dataset, frames)
            if not ok.all() or not np.array_equal(out, expected[frames]):
                wrong.append(frames)

    threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert not wrong


def test_splits_are_ranges_of_episodes_and_all_is_everything(tmp_path):
    folder = write_v2(tmp_path / "toy", splits={"train": "0:2", "test": "2:4"})
    assert LeRobotDataset(folder).num_frames == sum(LENGTHS[:2])
    test = LeRobotDataset(folder, "test")
    assert test.num_frames == sum(LENGTHS[2:])
    np.testing.assert_array_equal(test.columns["action"][0], EPISODES[2].steps["action"][0])
    expected = decode_in_order(sorted(folder.rglob("*.mp4"))[2])
    np.testing.assert_array_equal(read(test, [3])[0][0], expected[3])
    assert LeRobotDataset(folder, "all").num_frames == sum(LENGTHS)
    with pytest.raises(DataError, match="known: all, test, train"):
        LeRobotDataset(folder, "validation")


def test_without_splits_train_is_everything(tmp_path):
    assert len(LeRobotDataset(write_v2(tmp_path / "toy", "v2.0", splits={}))) == len(LENGTHS)


def test_names_restrict_the_index(v3):
    dataset = LeRobotDataset(v3, names=("action", "language_instruction"))
    assert list(dataset.specs) == ["action", "language_instruction"]
    assert dataset.cameras == ()
    with pytest.raises(DataError, match='no key "observation/fornt"'):
        LeRobotDataset(v3, names=("observation/fornt",))


def test_the_index_is_built_once_and_again_when_a_file_changes(tmp_path):
    folder, cache = write_v2(tmp_path / "toy"), tmp_path / "cache"
    for _ in range(2):
        LeRobotDataset(folder, cache_folder=cache)
        assert len(list(cache.iterdir())) == 1
    path = next(folder.rglob("episode_000001.parquet"))
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, "action", pa.array([[7.0] * 4])), path)
    changed = LeRobotDataset(folder, cache_folder=cache)
    assert len(list(cache.iterdir())) == 2
    assert changed.columns["action"][LENGTHS[0], 0] == 7


def _missing_video(folder):
    next(folder.rglob("episode_000002.mp4")).unlink()


def _missing_data(folder):
    next(folder.rglob("episode_000002.parquet")).unlink()


def _truncated_data(folder):
    path = next(folder.rglob("episode_000002.parquet"))
    path.write_bytes(path.read_bytes()[:-100])


def _null_in_data(folder):
    path = next(folder.rglob("episode_000002.parquet"))
    table = pq.read_table(path)
    rows = table["action"].to_pylist()
    rows[4] = None
    pq.write_table(table.set_column(table.column_names.index("action"), "action", pa.array(rows)), path)


def _short_data(folder):
    path = next(folder.rglob("episode_000002.parquet"))
    pq.write_table(pq.read_table(path).slice(0, LENGTHS[2] - 1), path)


def _unknown_task(folder):
    (folder / "meta" / "tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "task 0"}))


@pytest.mark.parametrize(
    ("damage", "kind", "lost"),
    [
        (_missing_video, "missing file", [2]),
        (_missing_data, "missing file", [2]),
        (_truncated_data, "truncated shard", [2]),
        (_null_in_data, "truncated shard", [2]),
        (_short_data, "corrupt record", [2]),
        (_unknown_task, "truncated shard", [1, 3]),
    ],
)
def test_damaged_episodes_are_left_out_and_counted(tmp_path, damage, kind, lost):
    folder = write_v2(tmp_path / "toy")
    damage(folder)
    kept = [i for i in range(len(LENGTHS)) if i not in lost]
    for _ in ("built", "loaded again"):
        dataset = LeRobotDataset(folder, cache_folder=tmp_path / "cache")
        assert dataset.faults.counts() == {kind: len(lost)}
        assert f"episode_{lost[0]:06d}" in dataset.faults.faults[0].place
        np.testing.assert_array_equal(
            dataset.columns["action"], np.concatenate([EPISODES[i].steps["action"] for i in kept])
        )
        last = dataset.num_frames - 1
        assert f"episode_{kept[-1]:06d}" in dataset.describe_frame(last)
        _, ok = read(dataset, np.arange(dataset.num_frames))
        assert ok.all()
    with pytest.raises(DataError, match="strict"):
        LeRobotDataset(folder, cache_folder=tmp_path / "cache", faults=FaultPolicy(strict=True))
    with pytest.raises(DataError, match="strict"):
        LeRobotDataset(folder, cache_folder=tmp_path / "other cache", faults=FaultPolicy(strict=True))


def test_a_missing_video_does_not_matter_to_who_does_not_read_it(tmp_path):
    folder = write_v2(tmp_path / "toy")
    _missing_video(folder)
    assert len(LeRobotDataset(folder, names=("action",))) == len(LENGTHS)


def test_a_truncated_video_is_black_and_one_fault(tmp_path):
    folder = write_v2(tmp_path / "toy")
    path = next(folder.rglob("episode_000002.mp4"))
    path.write_bytes(path.read_bytes()[:-500])
    dataset = LeRobotDataset(folder)
    assert len(dataset) == len(LENGTHS)
    frames = np.arange(dataset.num_frames)
    for _ in range(2):  # the same file is counted once
        out, ok = read(dataset, frames)
        np.testing.assert_array_equal(ok, dataset.episode_of(frames) != 2)
        assert (out[~ok] == 0).all()
        assert dataset.faults.counts() == {"truncated shard": 1}
    strict = LeRobotDataset(folder, faults=FaultPolicy(strict=True))
    read(strict, [0, 1])
    with pytest.raises(DataError, match="episode_000002"):
        read(strict, [0, STARTS[2]])


def test_a_video_that_is_too_short_loses_the_frames_it_lacks(tmp_path):
    folder = write_v2(tmp_path / "toy")
    short, long = (next(folder.rglob(f"episode_00000{i}.mp4")) for i in (0, 2))
    long.write_bytes(short.read_bytes())  # 12 frames where 30 belong
    dataset = LeRobotDataset(folder)
    out, ok = read(dataset, np.arange(STARTS[2], STARTS[3]))
    np.testing.assert_array_equal(ok, np.arange(30) < 12)
    np.testing.assert_array_equal(out[:12], decode_in_order(short))
    assert dataset.faults.counts() == {"bad image": 18}
    assert "step 12" in dataset.faults.faults[0].place and "observation/front" in dataset.faults.faults[0].place


def test_a_damaged_picture_in_parquet_is_black_and_a_fault(tmp_path):
    folder = write_v3(tmp_path / "toy", "parquet")
    (path,) = (folder / "data").rglob("*.parquet")
    table = pq.read_table(path)
    cells = table["observation.images.front"].to_pylist()
    cells[5]["bytes"] = cells[5]["bytes"][:40]
    cells[6] = None
    column = pa.array(cells, table.schema.field("observation.images.front").type)
    pq.write_table(
        table.set_column(table.column_names.index("observation.images.front"), "observation.images.front", column), path
    )
    dataset = LeRobotDataset(folder)
    out, ok = read(dataset, [4, 5, 6, 7])
    assert ok.tolist() == [True, False, False, True]
    assert (out[1:3] == 0).all()
    np.testing.assert_array_equal(out[3], EPISODES[0].steps[CAMERA][7])
    assert dataset.faults.counts() == {"bad image": 2}


def test_a_set_with_no_whole_episode_is_an_error(tmp_path):
    folder = write_v2(tmp_path / "toy")
    for path in folder.rglob("*.mp4"):
        path.unlink()
    with pytest.raises(DataError, match="no whole episodes"):
        LeRobotDataset(folder)


def test_pictures_kept_channels_first_have_a_height_and_a_width(tmp_path):
    folder = write_v2(tmp_path / "toy")
    path = folder / "meta" / "info.json"
    info = json.loads(path.read_text())
    info["features"]["observation.images.front"] |= {"shape": [3, 48, 64], "names": ["channels", "height", "width"]}
    path.write_text(json.dumps(info))
    assert LeRobotDataset(folder).image_shape(CAMERA) == FRONT
