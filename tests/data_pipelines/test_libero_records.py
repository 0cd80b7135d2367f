import dataclasses
import json
import types

import h5py
import numpy as np
import pytest
import simplejpeg

from data_pipelines import libero, libero_hdf5, libero_records
from data_pipelines.libero_records import LiberoEpisode
from tests.envs.fake_libero import FakeSimulator
from vla_jax.core import errors
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.envs import libero_sim
from vla_jax.evaluation import fingerprint, libero_replay


@pytest.fixture(autouse=True)
def index_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _picture(seed, size):
    """Smooth, so that JPEG keeps it."""
    ramp = np.linspace(0, 150, size)[:, None, None] + np.linspace(0, 30, size)[None, :, None]
    return (np.tile(ramp, 3) + np.array([0, 5, 10]) + seed).astype(np.uint8)


def _episode(seed=0, length=4, size=16, init_state=(0.1, 0.2, 1 / 3)):
    rng = np.random.default_rng(seed)
    pictures = tuple(libero_sim.encode_jpeg(_picture(seed + i, size), 95) for i in range(length))
    return LiberoEpisode(
        file_path=f"libero_object/can/scripted_{seed}",
        instruction="pick up the can",
        images=pictures,
        wrist_images=pictures[::-1],
        state=rng.normal(size=(length, 8)).astype(np.float32),
        joint_state=rng.normal(size=(length, 7)).astype(np.float32),
        actions=rng.uniform(-1, 1, (length, 7)).astype(np.float32),
        suite="libero_object",
        task=3,
        init_state=np.array(init_state),
        scene_seed=100_000 + seed,
    )


def _same(first, second):
    for field in dataclasses.fields(LiberoEpisode):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype and np.array_equal(a, b), field.name
        else:
            assert a == b, field.name
    return True


def test_no_ops_are_openvlas():
    still, moving = [0] * 6, [0.5] + [0] * 5
    actions = np.array(
        [
            [*still, -1],  # first and still: dropped, whatever the gripper
            [*moving, -1],
            [*still, -1],  # still, gripper as before: dropped
            [*still, 1],  # still, but the gripper closes: kept
            [*still, 1],
            [9e-5, 0, 0, 0, 0, 0, -1],  # below the threshold, gripper opens: kept
            [2e-4, 0, 0, 0, 0, 0, -1],  # above the threshold: kept
        ]
    )
    assert libero_records.keep_mask(actions).tolist() == [False, True, False, True, False, True, True]


class _Simulator(FakeSimulator):
    """Also what recording asks for; task 0 is solved where the first action entries sum up to 1."""

    def reset(self, suite, task, init_state, scene_seed):
        super().reset(suite, 0, init_state, 0)
        self.task, self.goal = types.SimpleNamespace(instruction="go", suite=suite, index=task), 1

    def step(self, action):
        self.travelled += float(action[0])
        return float(self.travelled >= self.goal), self.travelled >= self.goal

    def joint_state(self):
        return np.full(7, self.travelled, np.float32)


def test_a_recording_sees_before_it_acts_and_ends_with_success():
    actions = np.zeros((6, 7), np.float32)
    actions[:, 0] = 0.5
    episode = libero_records.record(_Simulator(), "libero_object", 3, np.zeros(2), 9, actions, "name")
    assert episode.state[:, 0].tolist() == [0, 0.5] and len(episode.actions) == len(episode.images) == 2
    assert episode.joint_state[:, 0].tolist() == [0, 0.5] and episode.scene_seed == 9
    shades = [simplejpeg.decode_jpeg(picture)[0, 0, 0] for picture in episode.images]
    assert shades == [0, 5]
    assert libero_records.record(_Simulator(), "libero_object", 3, np.zeros(2), 9, actions[:1], "name") is None
    assert libero_records.replay(_Simulator(), "libero_object", 3, np.zeros(2), 9, actions)
    assert not libero_records.replay(_Simulator(), "libero_object", 3, np.zeros(2), 9, actions[:1])


def test_a_part_file_brings_the_episode_back(tmp_path):
    episode = _episode()
    libero_records.save_part(tmp_path / "parts" / "a.npz", episode)
    assert _same(libero_records.load_part(tmp_path / "parts" / "a.npz"), episode)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["a.npz"]  # no temporary file is left


def test_the_schema_is_the_published_one():
    flat = json.dumps(libero_records.features().to_json())
    specs = libero_records.features()["steps"].feature
    assert specs["observation"]["image"].shape == specs["observation"]["wrist_image"].shape == (256, 256, 3)
    assert {name: specs["observation"][name].shape for name in ("state", "joint_state")} == {
        "state": (8,),
        "joint_state": (7,),
    }
    assert specs["action"].shape == (7,) and specs["action"].np_dtype == np.float32 and '"jpeg"' in flat
    assert set(specs) == {
        *("observation", "action", "discount", "reward"),
        *("is_first", "is_last", "is_terminal", "language_instruction"),
    }


def test_a_written_set_reads_back_with_its_starts(tmp_path):
    episodes = [_episode(0), _episode(1, length=3)]
    folder = libero_records.write_dataset(
        tmp_path / "libero_toy", episodes, description="toy", metadata={}, image_size=16
    )
    dataset = RldsDataset(folder)
    assert (len(dataset), dataset.num_frames) == (2, 7) and dataset.info.name == "libero_toy"
    assert dataset.columns["reward"].tolist() == [0, 0, 0, 1, 0, 0, 1]
    assert dataset.columns["is_terminal"].tolist() == dataset.columns["is_last"].tolist()
    assert dataset.columns["discount"].tolist() == [1] * 7
    assert all(_same(a, b) for a, b in zip(libero_records.read_dataset(dataset), episodes, strict=True))
    starts = libero_replay.load_starts(folder)
    assert [start.num_steps for start in starts] == [4, 3]
    assert np.array_equal(starts[0].init_state, episodes[0].init_state)  # 1/3 survives JSON to the last bit


def test_shrinking_averages_pixels_and_keeps_the_rest(tmp_path):
    source = tmp_path / "whole"
    libero_records.write_dataset(source, [_episode()], description="toy", metadata={}, image_size=16)
    render = libero_sim.RenderOptions(image_size=16)
    golden = {"libero_object/front": fingerprint.summarize(_picture(0, 16))}
    fingerprint.Fingerprint({}, "llvmpipe", render, {}, golden).save(source / "fingerprint.json")
    config = libero.ShrinkConfig(source / "1.0.0", tmp_path / "small", image_size=8)
    folder = libero.shrink(config, progress=lambda line: None)
    dataset = RldsDataset(folder)
    small = dataset.image(0, "observation/image")
    blocks = _picture(0, 16).reshape(8, 2, 8, 2, 3).mean((1, 3))
    assert small.shape == (8, 8, 3) and np.abs(small - blocks).max() < 6  # two JPEG round trips
    assert np.array_equal(dataset.columns["action"], _episode().actions)
    assert libero_replay.load_starts(folder)[0].file_path == _episode().file_path
    assert fingerprint.load(tmp_path / "small").render.output_size == 8


def test_shrinking_refuses_sizes_that_do_not_divide(tmp_path):
    libero_records.write_dataset(tmp_path / "whole", [_episode()], description="toy", metadata={}, image_size=16)
    with pytest.raises(errors.ConfigError, match="divides 16"):
        libero.shrink(libero.ShrinkConfig(tmp_path / "whole" / "1.0.0", tmp_path / "small", image_size=6))


def test_a_set_is_never_written_over(tmp_path):
    (tmp_path / "out" / "1.0.0").mkdir(parents=True)
    with pytest.raises(errors.DataError, match="exists"):
        libero.generate(libero.GenerateConfig(tmp_path / "out"))


def test_impossible_generation_is_refused(tmp_path):
    with pytest.raises(errors.ConfigError, match="did you mean 'libero_spatial'"):
        libero.GenerateConfig(tmp_path, suite="libero_spatal")
    with pytest.raises(errors.ConfigError, match=r"0\.\.9"):
        libero.GenerateConfig(tmp_path, tasks=(0, 10))


def test_generation_takes_the_first_seeds_that_succeed_and_resumes(tmp_path, monkeypatch):
    tried = []

    def attempt(config, attempt):  # even seeds fail
        if attempt.part.exists() or attempt.failure.exists():
            return attempt
        tried.append(attempt.seed)
        attempt.part.parent.mkdir(parents=True, exist_ok=True)
        (attempt.part if attempt.seed % 2 else attempt.failure).touch()
        return attempt

    monkeypatch.setattr(libero, "make_attempt", attempt)
    config = libero.GenerateConfig(tmp_path, tasks=(2,), episodes=2, first_seed=10)
    parts = libero._collect(config, 2, progress=lambda line: None)
    assert [part.name for part in parts] == ["task02_seed11.npz", "task02_seed13.npz"] and tried == [10, 11, 12, 13]
    more = dataclasses.replace(config, episodes=3)
    assert len(libero._collect(more, 2, progress=lambda line: None)) == 3 and tried == [10, 11, 12, 13, 14, 15]


def test_parts_made_with_other_options_are_not_mixed_in(tmp_path):
    config = libero.GenerateConfig(tmp_path, episodes=2)
    first = libero._made_with(config)
    assert first == libero._made_with(dataclasses.replace(config, episodes=5, tasks=(4,), workers=2))
    with pytest.raises(errors.DataError, match="made with other options"):
        libero._made_with(dataclasses.replace(config, reflections=True))


def test_an_expert_that_keeps_failing_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(libero, "make_attempt", lambda config, attempt: attempt)
    with pytest.raises(errors.DataError, match="2 successes in 16 attempts"):
        libero._collect(libero.GenerateConfig(tmp_path, episodes=2), 0, progress=lambda line: None)


@pytest.fixture
def official_file(tmp_path):
    """Robomimic's layout as LIBERO uses it, with 11 short demonstrations of 5 steps."""
    path = tmp_path / "KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5"
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for i in range(11):
            demo = data.create_group(f"demo_{i}")
            actions = np.zeros((5, 7))
            actions[:, 0] = [0.5, 0, 0, 0.25, 1]  # steps 1 and 2 are no-ops
            actions[:, 6] = -1
            demo["actions"], demo["states"] = actions, np.arange(5 * 9).reshape(5, 9) / 7
            obs = demo.create_group("obs")
            obs["agentview_rgb"] = np.stack([_picture(10 * t, 32) for t in range(5)])
            obs["eye_in_hand_rgb"] = np.stack([255 - _picture(10 * t, 32) for t in range(5)])
            obs["ee_states"] = np.arange(30).reshape(5, 6) + 100.0 * i
            obs["gripper_states"] = np.full((5, 2), 0.04)
            obs["joint_states"] = np.arange(35).reshape(5, 7) / 10
    return path


def test_official_files_become_episodes_without_no_ops(official_file):
    episodes = list(libero_hdf5.stored_episodes(official_file))
    first, last = episodes[0], episodes[-1]
    assert len(episodes) == 11 and last.state[0, 0] == 1000  # demo_10 comes last, not after demo_1
    assert first.instruction == "turn on the stove"
    assert first.actions[:, 0].tolist() == [0.5, 0.25, 1] and len(first.images) == 3
    assert first.state[1].tolist() == pytest.approx([18, 19, 20, 21, 22, 23, 0.04, 0.04])  # step 3, pose then fingers
    assert first.joint_state.shape == (3, 7)
    # stored bottom row first; a set holds them rotated by 180 degrees
    decoded = simplejpeg.decode_jpeg(first.images[1]).astype(int)
    assert np.abs(decoded - _picture(30, 32)[::-1, ::-1].astype(int)).max() < 6


def test_instructions_come_from_the_file_where_it_has_them(official_file):
    with h5py.File(official_file, "a") as file:
        file["data"].attrs["problem_info"] = json.dumps({"language_instruction": ["turn on the stove now"]})
    assert next(libero_hdf5.stored_episodes(official_file)).instruction == "turn on the stove now"


def test_imported_files_are_one_set_of_their_own_picture_size(official_file, tmp_path):
    config = libero.ImportConfig((official_file,), tmp_path / "libero_imported")
    folder = libero.import_hdf5(config, progress=lambda line: None)
    dataset = RldsDataset(folder)
    assert len(dataset) == 11 and dataset.image(0, "observation/wrist_image").shape == (32, 32, 3)
    # their simulator states belong to another MuJoCo, so nothing here can be replayed
    with pytest.raises(errors.DataError, match=r"no episodes\.jsonl"):
        libero_replay.load_starts(folder)


def test_other_files_are_refused_by_what_is_missing(official_file, tmp_path):
    with h5py.File(official_file, "a") as file:
        del file["data/demo_0/obs/joint_states"]
    with pytest.raises(errors.DataError, match=r"no \['obs/joint_states'\]"):
        next(libero_hdf5.stored_episodes(official_file))
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["actions"] = np.zeros(3)
    with pytest.raises(errors.DataError, match="data/demo_0"):
        next(libero_hdf5.stored_episodes(tmp_path / "other.hdf5"))
