"""Bridge: relabelled actions on paper and on the recorded sample."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines import bridge
from tests.data.real_sets import BRIDGE, needs_bridge
from vla_jax.core import errors
from vla_jax.data.demonstrations import compute_statistics
from vla_jax.data.formats.features import Episode, demonstration_flags, episode_features
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.data.formats.rlds_writer import RldsWriter
from vla_jax.data.samples import kept_frames


@pytest.fixture(autouse=True)
def index_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "bridge_cache"))


def test_a_step_is_relabelled_with_the_way_to_the_next_state():
    state = np.zeros((4, 7))
    state[:, 0] = [9.0, 1.0, 1.5, 1.25]  # the first state is dropped: 9 must not appear
    state[:, 5] = [0.0, 3.1, -3.1, -3.0]  # over the seam at pi
    actions = np.zeros((4, 7))
    actions[:, 6] = [0.0, 1.0, 1.0, 0.0]
    found = bridge.relabelled_actions(state, actions)
    # 1 -> 1.5 and 1.5 -> 1.25; 3.1 -> -3.1 is 2 pi - 6.2 forward; a plain difference would be -6.2.
    np.testing.assert_allclose(found[:, 0], [0.5, -0.25], atol=1e-6)
    np.testing.assert_allclose(found[:, 5], [2 * np.pi - 6.2, 0.1], atol=1e-6)
    assert found[:, 6].tolist() == [1.0, 1.0]
    with pytest.raises(errors.DataError, match="3 steps"):
        bridge.relabelled_actions(state[:2], actions[:2])


def test_a_gripper_between_open_and_closed_counts_as_where_it_ends():
    commands = np.array([1.0, 0.8, 0.3, 0.0, 0.2, 0.97, 0.4, 0.6])
    assert bridge.decided_gripper(commands).tolist() == [1, 0, 0, 0, 1, 1, 1, 1]
    assert bridge.decided_gripper(np.array([1.0, 0.4])).tolist() == [1, 0]


@given(st.lists(st.sampled_from([0.0, 0.02, 0.5, 0.7, 0.96, 1.0]), min_size=1, max_size=30))
def test_decided_commands_are_binary_stable_and_keep_the_decided_ones(values):
    commands = np.array(values)
    found = bridge.decided_gripper(commands)
    assert set(found) <= {0.0, 1.0}
    np.testing.assert_array_equal(bridge.decided_gripper(found), found)
    decided = (commands > 0.95) | (commands < 0.05)
    np.testing.assert_array_equal(found[decided], (commands[decided] > 0.5))


@pytest.fixture
def small(tmp_path):
    """Two episodes of 5 and 2 steps in the layout of Bridge, with one camera."""
    features = episode_features({"image_0": (16, 16)}, 7, 7)
    with RldsWriter(tmp_path / "bridge" / "1.0.0", features, "bridge_dataset", file_format="tfrecord") as writer:
        for number, length in enumerate((5, 2)):
            rng = np.random.default_rng(number)
            images = np.broadcast_to(
                (40 * np.arange(length)).astype(np.uint8)[:, None, None, None], (length, 16, 16, 3)
            )
            steps = {
                "observation/image_0": images,
                "observation/state": rng.normal(size=(length, 7)).astype(np.float32),
                "action": np.ones((length, 7), np.float32),
                "language_instruction": f"task {number}",
                **demonstration_flags(length),
            }
            writer.write(Episode(steps))
    return RldsDataset(tmp_path / "bridge" / "1.0.0")


def test_a_relabelled_set_has_the_same_pictures_and_ends_where_it_ended(small, tmp_path):
    done = []
    folder = bridge.relabel(small, tmp_path / "relabelled" / "1.0.0", lambda *progress: done.append(progress))
    found, source = RldsDataset(folder), small.episode(0).steps
    assert done == [(1, 2), (2, 2)]
    assert (len(found), found.num_frames) == (1, 3)  # 5 steps without the first and the last; 2 steps are too few
    steps = found.episode(0).steps
    np.testing.assert_array_equal(steps["observation/image_0"], source["observation/image_0"][1:-1])
    np.testing.assert_array_equal(steps["observation/state"], source["observation/state"][1:-1])
    expected = bridge.relabelled_actions(source["observation/state"], source["action"])
    np.testing.assert_array_equal(steps["action"], expected)
    assert steps["is_first"].tolist() == [True, False, False]
    for name in ("is_last", "is_terminal"):
        assert steps[name].tolist() == [False, False, True]
    assert steps["reward"].tolist() == [0, 0, 1] and steps["discount"].tolist() == [1, 1, 0]
    assert list(steps["language_instruction"]) == ["task 0"] * 3
    with pytest.raises(errors.DataError, match="never written over"):
        bridge.relabel(small, folder)


@needs_bridge
def test_every_recorded_episode_begins_with_a_no_op_that_ranges_skip(tmp_path):
    dataset = RldsDataset(BRIDGE)
    ranges = bridge.kept_ranges(dataset)
    assert len(ranges) == 25
    assert all(kept == [(1, 10)] for kept in ranges.values())
    kept_frames.save(tmp_path / "kept.json", ranges)
    mask = kept_frames.frame_mask(dataset, kept_frames.load(tmp_path / "kept.json"))
    assert mask.reshape(25, 10).sum(axis=0).tolist() == [0] + [25] * 9


@needs_bridge
def test_the_recorded_set_relabels_to_what_the_arm_reached(tmp_path):
    dataset = RldsDataset(BRIDGE)
    found = RldsDataset(bridge.relabel(dataset, tmp_path / "relabelled" / "1.0.0"))
    assert (len(found), found.num_frames) == (25, 200)
    state = np.asarray(found.columns["observation/state"]).reshape(25, 8, 7)
    actions = np.asarray(found.columns["action"]).reshape(25, 8, 7)
    # Adding the movements up gives the states back; the angles of the sample stay clear of the seam.
    reached = state[:, :1, :6] + np.cumsum(actions[..., :6], axis=1)
    np.testing.assert_allclose(reached[:, :-1], state[:, 1:, :6], atol=1e-5)
    assert set(np.unique(actions[..., 6])) == {0.0, 1.0}
    recorded = np.asarray(dataset.columns["action"]).reshape(25, 10, 7)[:, 1:-1, :6]
    fractions = [np.polyfit(recorded[..., i].ravel(), actions[..., i].ravel(), 1)[0] for i in range(6)]
    assert all(0.6 < fraction < 1.0 for fraction in fractions)  # the arm does less than it is told


@needs_bridge
def test_recorded_episodes_open_with_the_config(tmp_path):
    config = bridge.dataset_config(BRIDGE, action_horizon=4, cameras=("image_0", "image_1"))
    assert config.displacement_dims == (0, 1, 2, 3, 4, 5)
    assert compute_statistics(config).actions.count == 250


@needs_bridge
def test_what_the_cameras_of_the_sample_show():
    # Looked at on a contact sheet: image_0 to image_2 show a toy kitchen's sink and the arm, image_3 is black.
    dataset = RldsDataset(BRIDGE)
    for camera, is_black in (("image_0", False), ("image_1", False), ("image_2", False), ("image_3", True)):
        pictures = np.stack([dataset.image(frame, f"observation/{camera}") for frame in range(0, 250, 25)])
        assert (pictures.max() == 0) == is_black
    assert not np.any(dataset.columns["episode_metadata/has_image_0"])  # although it does
