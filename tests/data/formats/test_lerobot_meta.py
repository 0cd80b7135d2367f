import json

import pytest

from tests.data.formats.toy_lerobot import write_v2, write_v3
from vla_jax.core.errors import DataError
from vla_jax.data.formats import lerobot_meta
from vla_jax.data.formats.specs import FeatureSpec


@pytest.mark.parametrize(
    ("key", "is_picture", "ours"),
    [
        ("observation.images.front", True, "observation/front"),
        ("observation.image", True, "observation/image"),
        ("wrist_image", True, "observation/wrist_image"),
        ("observation.state", False, "observation/state"),
        ("state", False, "observation/state"),
        ("actions", False, "action"),
        ("next.reward", False, "reward"),
        ("next.done", False, "is_last"),
        ("observation.environment_state", False, "observation/environment_state"),
        ("action.delta", False, "action/delta"),
    ],
)
def test_names_are_ours(key, is_picture, ours):
    assert lerobot_meta.our_name(key, is_picture) == ours


@pytest.mark.parametrize("name", ["observation/front", "observation/state", "action", "reward", "is_last", "a/b/c"])
def test_our_names_survive_the_way_there_and_back(name):
    kind = "image" if name.endswith("front") else "tensor"
    key = lerobot_meta.their_name(FeatureSpec(name, kind, (1,), "float32", True))
    assert "/" not in key  # lerobot forbids it
    assert lerobot_meta.our_name(key, kind == "image") == name


def info_of(tmp_path, features, **changes):
    (tmp_path / "meta").mkdir(exist_ok=True)
    info = {"codebase_version": "v3.0", "fps": 10, "data_path": "d", "video_path": "v", "features": features, **changes}
    (tmp_path / "meta" / "info.json").write_text(json.dumps(info))
    return lerobot_meta.load_info(tmp_path)


def test_features_become_specs(tmp_path):
    features = info_of(
        tmp_path,
        {
            "action": {"dtype": "float64", "shape": [1]},
            "observation.state": {"dtype": "float32", "shape": [7]},
            "next.reward": {"dtype": "float32", "shape": [1]},
            "subtask": {"dtype": "string", "shape": [1]},
            "observation.images.state": {"dtype": "image", "shape": [3, 4, 6], "names": ["channel", "height", "width"]},
            "observation.images.depth": {"dtype": "video", "shape": [4, 6, 3], "info": {"video.is_depth_map": True}},
            "observation.images.thermal": {"dtype": "video", "shape": [4, 6, 1]},
            "language_events": {"dtype": "language", "shape": [1]},
            "index": {"dtype": "int64", "shape": [1]},
        },
    ).features
    found = {name: (f.key, f.storage, f.spec.kind, f.spec.shape) for name, f in features.items()}
    assert found == {
        # One number per step is a vector in actions and observations and a scalar elsewhere.
        "action": ("action", "column", "tensor", (1,)),
        "reward": ("next.reward", "column", "tensor", ()),
        "observation/state": ("observation.state", "column", "tensor", (7,)),
        # The short name of this camera is taken by the state.
        "observation/images/state": ("observation.images.state", "image", "image", (4, 6, 3)),
        "subtask": ("subtask", "column", "text", ()),
        "language_instruction": ("task_index", "column", "text", ()),
    }
    assert features["action"].spec.stored_dtype == "float32"


def test_two_features_of_one_name_are_an_error(tmp_path):
    with pytest.raises(DataError, match="observation/state"):
        info_of(tmp_path, {key: {"dtype": "float32", "shape": [2]} for key in ("state", "observation.state")})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebase_version": "v1.6"}, "v1.6"),
        ({"codebase_version": None}, "not readable"),
        ({"fps": "fast"}, "not readable"),
        ({"splits": {"train": "all"}}, "not readable"),
        ({"data_path": None, "chunks_size": "many"}, "not readable"),
    ],
)
def test_an_info_that_cannot_be_read_is_named(tmp_path, changes, message):
    with pytest.raises(DataError, match=message) as raised:
        info_of(tmp_path, {}, **changes)
    assert "info.json" in str(raised.value)


def test_a_folder_without_meta_is_no_lerobot_dataset(tmp_path):
    with pytest.raises(DataError, match="not a LeRobot dataset"):
        lerobot_meta.load_info(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        lerobot_meta.load_info(tmp_path / "missing")


def test_files_of_v2_are_found_by_chunk_and_number(tmp_path):
    info = lerobot_meta.load_info(write_v2(tmp_path / "toy"))
    episodes = lerobot_meta.load_episodes(info)
    assert [path.is_file() for path in episodes.data.paths] == [True] * 4
    assert str(episodes.videos["observation/front"].paths[3]).endswith(
        "videos/chunk-001/observation.images.front/episode_000003.mp4"
    )
    assert (episodes.videos["observation/front"].offset == 0).all()


def test_episodes_of_v3_follow_each_other_in_their_video(tmp_path):
    info = lerobot_meta.load_info(write_v3(tmp_path / "toy"))
    episodes = lerobot_meta.load_episodes(info)
    # 12, 1, 30 and 7 frames at 10 per second.
    assert episodes.videos["observation/front"].offset.tolist() == [0, 1.2, 1.3, 4.3]
    assert set(episodes.videos["observation/front"].file.tolist()) == {0}
    assert lerobot_meta.load_tasks(info) == {0: "task 0", 1: "task 1"}


@pytest.mark.parametrize("name", ["episodes.jsonl", "tasks.jsonl"])
def test_damaged_tables_of_v2_are_errors(tmp_path, name):
    folder = write_v2(tmp_path / "toy")
    path = folder / "meta" / name
    for text in ("{", '{"other": 1}\n', None):
        path.unlink() if text is None else path.write_text(text)
        with pytest.raises(DataError, match=name):
            info = lerobot_meta.load_info(folder)
            lerobot_meta.load_episodes(info)
            lerobot_meta.load_tasks(info)


@pytest.mark.parametrize("name", ["meta/episodes/chunk-000/file-000.parquet", "meta/tasks.parquet"])
def test_damaged_tables_of_v3_are_errors(tmp_path, name):
    folder = write_v3(tmp_path / "toy", "parquet")
    path = folder / name
    for data in (path.read_bytes()[:-20], None):
        path.unlink() if data is None else path.write_bytes(data)
        with pytest.raises(DataError, match="meta"):
            info = lerobot_meta.load_info(folder)
            lerobot_meta.load_episodes(info)
            lerobot_meta.load_tasks(info)
