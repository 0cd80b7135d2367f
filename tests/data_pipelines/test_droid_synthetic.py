"""Generated DROID episodes: the schema through plain TFDS, sizes, motion, and determinism."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines import droid
from data_pipelines.droid_synthetic import DroidSyntheticConfig, generate, make_episode
from vla_jax.core import errors
from vla_jax.data.formats import image_codec, tfrecord

CONFIG = DroidSyntheticConfig(num_episodes=4, shortest=20, longest=30, success_rate=0.5, max_shard_bytes=1 << 20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("droid") / "1.0.1", CONFIG)


@pytest.fixture(scope="module")
def records(folder):
    """Every episode as plain TFDS decodes it from the files, by features.json alone."""
    features = tfds.features.FeaturesDict.from_config(str(folder))
    found = []
    for path in sorted(folder.glob("*.tfrecord-*")):
        data = path.read_bytes()
        found += [features.deserialize_example_np(data[a:b]) for a, b in tfrecord.record_spans(data, path)]
    return [{**record, "steps": list(record["steps"])} for record in found]


def test_the_schema_is_that_of_droid_1_0_1(folder):
    # Written down from the published set, independent of data_pipelines.droid.
    step = tfds.features.FeaturesDict.from_config(str(folder))["steps"].feature
    vectors = {name: (feature.shape, feature.np_dtype) for name, feature in step["action_dict"].items()}
    assert vectors == {
        "cartesian_position": ((6,), np.float64),
        "cartesian_velocity": ((6,), np.float64),
        "gripper_position": ((1,), np.float64),
        "gripper_velocity": ((1,), np.float64),
        "joint_position": ((7,), np.float64),
        "joint_velocity": ((7,), np.float64),
    }
    seen = {name: feature.shape for name, feature in step["observation"].items()}
    assert seen == {
        "exterior_image_1_left": (180, 320, 3),
        "exterior_image_2_left": (180, 320, 3),
        "wrist_image_left": (180, 320, 3),
        "cartesian_position": (6,),
        "gripper_position": (1,),
        "joint_position": (7,),
    }
    assert step["action"].shape == (7,) and step["action"].np_dtype == np.float64
    assert set(step) - {"observation", "action", "action_dict"} == {
        *("language_instruction", "language_instruction_2", "language_instruction_3"),
        *("reward", "discount", "is_first", "is_last", "is_terminal"),
    }
    info = json.loads((folder / "dataset_info.json").read_text())
    assert (info["name"], info["version"], info["fileFormat"]) == ("droid", "1.0.1", "tfrecord")


def test_plain_tfds_reads_back_what_was_made(records):
    assert len(records) == 4
    for number, record in enumerate(records):
        made = make_episode(CONFIG, number)
        assert len(record["steps"]) == len(made.steps["action"])
        assert record["episode_metadata"]["file_path"].decode() == made.metadata["episode_metadata/file_path"]
        for t in (0, len(record["steps"]) - 1):
            step = record["steps"][t]
            assert step["language_instruction_3"].decode() == made.steps["language_instruction_3"]
            for name in ("joint_velocity", "gripper_position", "cartesian_position"):
                # float64 travels in 32 bits.
                np.testing.assert_allclose(step["action_dict"][name], made.steps[f"action_dict/{name}"][t], rtol=1e-6)
            theirs = step["observation"]["wrist_image_left"]
            np.testing.assert_array_equal(theirs, image_codec.decode(made.steps["observation/wrist_image_left"][t]))
        assert [s["is_last"] for s in record["steps"]] == [False] * (len(record["steps"]) - 1) + [True]


def test_pictures_are_as_large_as_recorded_ones():
    sizes = [len(p) for i in range(6) for p in make_episode(CONFIG, i).steps["observation/exterior_image_1_left"]]
    assert min(sizes) > 10_000 and max(sizes) < 21_000
    assert np.std(sizes) > 500


def test_motion_is_smooth_waits_and_integrates():
    steps = make_episode(DroidSyntheticConfig(shortest=150, longest=150, idle_fraction=0.3), 0).steps
    velocity, position = steps["action_dict/joint_velocity"], steps["observation/joint_position"]
    np.testing.assert_allclose(np.diff(position, axis=0), velocity[:-1] / droid.CONTROL_HZ, atol=1e-12)
    hand = steps["observation/cartesian_position"]
    np.testing.assert_allclose(
        np.diff(hand, axis=0), steps["action_dict/cartesian_velocity"][:-1] / droid.CONTROL_HZ, atol=1e-12
    )
    idle = (velocity == 0).all(axis=1)
    assert 0.3 <= idle.mean() < 0.5
    assert np.abs(velocity).max() <= 0.5  # rad/s
    changes = np.abs(np.diff(velocity, axis=0))[~idle[1:] & ~idle[:-1]]
    assert changes.max() < 0.5 * 2 * np.pi * 0.6 / droid.CONTROL_HZ + 1e-9  # amplitude times the fastest frequency
    gripper = steps["observation/gripper_position"]
    assert gripper.shape == (150, 1) and gripper.min() >= 0 and gripper.max() <= 1


def test_half_of_the_episodes_succeed(records):
    paths = [record["episode_metadata"]["file_path"].decode() for record in records]
    assert sum("success" in path for path in paths) == 2
    assert len(set(paths)) == 4


def test_an_episode_depends_on_seed_and_number_alone():
    again = make_episode(DroidSyntheticConfig(num_episodes=9, shortest=20, longest=30, success_rate=0.5), 2)
    other = make_episode(DroidSyntheticConfig(shortest=20, longest=30, seed=1), 2)
    first = make_episode(CONFIG, 2)
    assert first.steps["observation/wrist_image_left"] == again.steps["observation/wrist_image_left"]
    np.testing.assert_array_equal(first.steps["action"], again.steps["action"])
    assert first.steps["observation/wrist_image_left"] != other.steps["observation/wrist_image_left"]


@pytest.mark.parametrize("wrong", [{"num_episodes": 0}, {"shortest": 9, "longest": 8}, {"idle_fraction": 1.5}])
def test_impossible_configs_are_refused(wrong):
    with pytest.raises(errors.ConfigError, match="DroidSyntheticConfig"):
        DroidSyntheticConfig(**wrong)
