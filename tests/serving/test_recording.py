import numpy as np
import pytest

from vla_jax.core import errors
from vla_jax.data.open import open_dataset
from vla_jax.serving.recording import EpisodeRecorder

RNG = np.random.default_rng(0)
CAMERAS = {"observation/front": (16, 24)}


def step(**more):
    picture = np.full((16, 24, 3), 90, np.uint8)
    observation = {"observation/front": picture, "observation/joints": np.arange(2.0), "observation/grip": 0.5}
    return {**observation, "prompt": "lift it", **more}


def recorder(folder, **options):
    return EpisodeRecorder(folder, CAMERAS, 3, 2, state_keys=("observation/joints", "observation/grip"), **options)


def test_recorded_episodes_are_read_by_the_data_layer(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    actions = RNG.normal(size=(5, 2)).astype(np.float32)
    with recorder(tmp_path / "trials" / "1.0.0", metadata={"control_hz": 20.0}) as recording:
        for action in actions[:3]:
            recording.add(step(), action)
        recording.end_episode(is_success=True)
        for action in actions[3:]:
            recording.add(step(prompt="drop it"), action)
        recording.end_episode(is_success=False)
        recording.end_episode(is_success=True)  # nothing happened since
        recording.add(step(), actions[0])  # never ends
    data = open_dataset(tmp_path / "trials" / "1.0.0")
    assert np.diff(data.episode_starts).tolist() == [3, 2]
    np.testing.assert_array_equal(data.columns["action"], actions)
    np.testing.assert_array_equal(data.columns["observation/state"], [[0, 1, 0.5]] * 5)
    np.testing.assert_array_equal(np.ravel(data.columns["reward"]), [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(np.ravel(data.columns["is_terminal"]), [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(np.ravel(data.columns["is_last"]), [0, 0, 1, 0, 1])
    texts = data.texts("language_instruction")
    assert [texts[i] for i in data.text_ids("language_instruction")] == ["lift it"] * 3 + ["drop it"] * 2
    picture = np.empty((1, 16, 24, 3), np.uint8)
    assert data.read_images(np.array([4]), "observation/front", picture).all() and abs(int(picture.mean()) - 90) <= 1


def test_an_error_keeps_the_episodes_that_had_ended(tmp_path):
    with pytest.raises(KeyboardInterrupt), recorder(tmp_path / "trials" / "1.0.0") as recording:
        recording.add(step(), np.zeros(2))
        recording.end_episode(is_success=True)
        raise KeyboardInterrupt
    assert (tmp_path / "trials" / "1.0.0" / "dataset_info.json").is_file()


def test_an_error_before_the_first_end_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), recorder(tmp_path / "trials" / "1.0.0") as recording:
        recording.add(step(), np.zeros(2))
        raise KeyboardInterrupt
    assert list((tmp_path / "trials").iterdir()) == []


@pytest.mark.parametrize(
    "observation, action, field",
    [
        (step(**{"observation/front": np.zeros((8, 8, 3), np.uint8)}), np.zeros(2), "observation/front"),
        (step(**{"observation/front": None}), np.zeros(2), "observation/front"),
        (step(**{"observation/grip": np.zeros(2)}), np.zeros(2), "observation/joints"),
        (step(**{"observation/grip": np.nan}), np.zeros(2), "observation/joints"),
        (step(), np.zeros(3), "action"),
    ],
)
def test_a_step_that_does_not_fit_names_its_field(tmp_path, observation, action, field):
    with recorder(tmp_path / "trials" / "1.0.0") as recording:
        recording.add(step(), np.zeros(2))
        with pytest.raises(errors.DataError, match=f"recording {field}"):
            recording.add(observation, action)
        recording.end_episode(is_success=True)


def test_cameras_are_keys_of_observations(tmp_path):
    with pytest.raises(errors.ConfigError, match="observation/front"):
        EpisodeRecorder(tmp_path / "x" / "1.0.0", {"front": (8, 8)}, 1, 1)
