"""DROID 1.0.1: the idle filter against hand-made cases and an independent reference, and its keys."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import droid
from data_pipelines.droid_synthetic import DroidSyntheticConfig, generate
from vla_jax.core import errors
from vla_jax.data import schema
from vla_jax.data.demonstrations import compute_statistics
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.data.loader import Loader
from vla_jax.data.normalization import NormalizationConfig, Normalizer
from vla_jax.data.samples import kept_frames


def commands(is_moving: list[bool]) -> np.ndarray:
    """Velocity commands that change at a step exactly where `is_moving` says so."""
    values = np.cumsum(np.asarray(is_moving, float)) % 2
    return np.repeat(values[:, None], 7, axis=1) * 0.5


def reference_ranges(joint_velocity, threshold=1e-3, shortest_idle=7, shortest_kept=16, dropped_end=10):
    """The rule step by step: label runs, blank the long idle ones, collect the long remaining ones."""
    length = len(joint_velocity)
    idle = [False] + [
        all(abs(joint_velocity[t][j] - joint_velocity[t - 1][j]) < threshold for j in range(7))
        for t in range(1, length)
    ]
    dropped, t = set(), 0
    while t < length:
        end = t
        while end < length and idle[end]:
            end += 1
        if end - t >= shortest_idle:
            dropped.update(range(t, end))
        t = max(end, t + 1)
    found, t = [], 0
    while t < length:
        end = t
        while end < length and end not in dropped:
            end += 1
        if end - t >= shortest_kept:
            found.append((t, end - dropped_end))
        t = max(end, t + 1)
    return found


def test_a_pause_of_six_steps_stays_and_one_of_seven_splits_the_episode():
    for pause, expected in ((6, [(0, 36)]), (7, [(0, 10), (27, 37)])):
        # 20 moving steps, the pause, 20 moving: 46 or 47 steps; the last 10 of every stretch are cut off.
        moving = [True] * 20 + [False] * pause + [True] * 20
        assert [tuple(run) for run in droid.moving_ranges(commands(moving))] == expected


def test_a_moving_stretch_shorter_than_sixteen_steps_is_dropped():
    for length, expected in ((15, []), (16, [(0, 6)])):
        moving = [True] * length + [False] * 30
        assert [tuple(run) for run in droid.moving_ranges(commands(moving))] == expected


def test_one_moving_joint_is_enough_and_a_steady_command_is_idle():
    one_joint = np.zeros((30, 7))
    one_joint[::2, 6] = 0.01
    assert droid.moving_ranges(one_joint).tolist() == [[0, 20]]
    assert droid.moving_ranges(np.full((30, 7), 0.3)).tolist() == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 25)), max_size=8))
def test_ranges_are_those_of_the_step_by_step_rule(pieces):
    values = commands([flag for flag, count in pieces for _ in range(count)])
    assert [tuple(run) for run in droid.moving_ranges(values)] == reference_ranges(values)


def test_a_rule_that_could_cut_more_than_it_keeps_is_refused():
    with pytest.raises(errors.ConfigError, match="dropped_end <= shortest_kept"):
        droid.IdleRule(shortest_kept=5, dropped_end=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = DroidSyntheticConfig(num_episodes=5, shortest=50, longest=70, success_rate=0.6)
    return generate(tmp_path_factory.mktemp("droid") / "1.0.1", config)


@pytest.fixture(autouse=True)
def index_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "droid_cache"))


def test_keys_are_those_of_openpis_ranges_file(folder):
    dataset = RldsDataset(folder, names=droid.FILTER_NAMES)
    ranges = droid.kept_ranges(dataset)
    assert len(ranges) == 5
    first = dataset.episode(0).metadata
    folderpath, file_path = first["episode_metadata/recording_folderpath"], first["episode_metadata/file_path"]
    assert next(iter(ranges)) == f"{folderpath}--{file_path}"


def test_our_filter_drops_the_idle_stretches_and_its_file_selects_frames(folder, tmp_path):
    dataset = RldsDataset(folder, names=droid.FILTER_NAMES)
    ranges = droid.kept_ranges(dataset)
    kept_frames.save(tmp_path / "kept.json", ranges)
    mask = kept_frames.frame_mask(dataset, kept_frames.load(tmp_path / "kept.json"))
    assert 0.1 < mask.mean() < 0.9
    velocity = np.asarray(dataset.columns["action_dict/joint_velocity"])
    # Waiting shows as zero commands; a kept step may be a pause, so that few but not none of them are zero.
    assert (velocity[mask] == 0).all(axis=1).mean() < 0.5 * (velocity[~mask] == 0).all(axis=1).mean()


def test_another_set_has_no_commands_to_judge_by(folder):
    with pytest.raises(errors.DataError, match="action_dict/joint_velocity"):
        droid.kept_ranges(RldsDataset(folder, names=("action", *droid.KEY_NAMES)))


@pytest.mark.parametrize(
    ("actions", "still"),
    [("joint_velocity", 7), ("cartesian_velocity", 6), ("joint_position", 0), ("cartesian_position", 0)],
)
def test_the_config_names_commands_cameras_and_words_that_the_set_has(folder, actions, still):
    config = droid.dataset_config(folder, action_horizon=16, actions=actions, state="cartesian_position")
    specs = RldsDataset(folder).specs
    schema.check(config, specs, "droid")
    assert config.displacement_dims == tuple(range(still))
    assert set(config.feature_names(specs)) >= {
        f"action_dict/{actions}",
        "observation/exterior_image_2_left",
        "language_instruction_3",
        "episode_metadata/file_path",
    }


def end_of(dataset, frame):
    return int(dataset.episode_starts[dataset.episode_of(np.asarray(frame)) + 1])


def chunk_is(batch, row, frame, velocity, dataset):
    """Whether a row holds the commands from this frame on, and says how many they are."""
    length = min(16, end_of(dataset, frame) - frame)
    is_long = batch.action_mask[row, :, 0].sum() == length
    return is_long and np.array_equal(batch.actions[row, :length, :7], velocity[frame : frame + length])


def test_the_loader_gives_chunks_of_successes_with_drawn_cameras_and_words(folder, tmp_path):
    dataset = RldsDataset(folder)
    kept_frames.save(tmp_path / "kept.json", droid.kept_ranges(dataset))
    config = droid.dataset_config(folder, action_horizon=16, kept=tmp_path / "kept.json")
    statistics = compute_statistics(config)
    loader = Loader(
        config,
        batch_size=32,
        seed=0,
        tokenizer=lambda text: (np.frombuffer(text.encode().ljust(64), np.uint8).astype(np.int32), np.ones(64, bool)),
        normalizer=Normalizer.create(statistics, NormalizationConfig(mode="none")),
    )
    batch = next(loader)
    loader.close()
    mask = kept_frames.frame_mask(dataset, kept_frames.load(tmp_path / "kept.json"))
    # Three of the five episodes succeed; only their kept frames are sampled.
    texts = dataset.texts("episode_metadata/file_path")
    is_success = np.array(["success" in texts[i] for i in dataset.text_ids("episode_metadata/file_path")])
    assert is_success.sum() == 3
    allowed = mask & is_success[dataset.episode_of(np.arange(dataset.num_frames))]
    assert loader.num_frames == allowed.sum()
    assert batch.observation.images["exterior"].shape == (32, 180, 320, 3)
    assert batch.actions.shape == (32, 16, 8) and batch.weight.all()

    # Rows come from somewhere: find each by its joints, and compare its chunk, pictures and words with the records.
    joints = np.asarray(dataset.columns["observation/joint_position"])
    velocity, gripper = (
        np.asarray(dataset.columns[f"action_dict/{name}"]) for name in ("joint_velocity", "gripper_position")
    )
    prompts = [bytes(row.astype(np.uint8)).decode().strip() for row in batch.observation.prompt]
    cameras, wordings = set(), set()
    for row in range(32):
        near = np.flatnonzero(np.abs(joints - batch.observation.state[row, :7]).max(axis=1) < 1e-6)
        # During a pause frames look alike: the chunk tells them apart.
        found = [f for f in near if allowed[f] and chunk_is(batch, row, f, velocity, dataset)]
        assert found
        frame, stop = int(found[0]), end_of(dataset, found[0])
        length = min(16, stop - frame)
        assert not batch.actions[row, length:, :7].any()  # past the end it stands still
        np.testing.assert_array_equal(batch.actions[row, length:, 7], np.repeat(gripper[stop - 1], 16 - length))
        np.testing.assert_array_equal(
            batch.observation.images["wrist"][row], dataset.image(frame, "observation/wrist_image_left")
        )
        shown = [
            name
            for name in droid.EXTERIOR_CAMERAS
            if np.array_equal(batch.observation.images["exterior"][row], dataset.image(frame, f"observation/{name}"))
        ]
        said = [
            key for key in droid.INSTRUCTION_KEYS if dataset.texts(key)[dataset.text_ids(key)[frame]] == prompts[row]
        ]
        assert len(shown) == len(said) == 1
        cameras |= set(shown)
        wordings |= set(said)
    assert cameras == set(droid.EXTERIOR_CAMERAS) and wordings == set(droid.INSTRUCTION_KEYS)
