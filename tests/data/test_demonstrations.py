"""See rich_rlds.py for the set: frames 0-4, 5-7 and 8-13; joints are (frame, 10 frame) and targets the next joints."""

import dataclasses

import numpy as np
import pytest

from tests.data import rich_rlds
from tests.data.rich_rlds import SIZE, TEXTS, level
from vla_jax.core.errors import ConfigError, DataError
from vla_jax.data import picture_sources, statistics
from vla_jax.data.demonstrations import DemonstrationDataset, compute_statistics, open_dataset, select
from vla_jax.data.formats.faults import FaultPolicy
from vla_jax.data.normalization import NormalizationConfig, Normalizer
from vla_jax.data.pictures import image_cache
from vla_jax.data.samples import draws, kept_frames, splits
from vla_jax.data.samples.goals import GoalConfig
from vla_jax.data.schema import DatasetConfig

RAW = NormalizationConfig(mode="none")
INSTRUCTIONS = ("language_instruction", "language_instruction_2", "language_instruction_3")


def tokenizer(text):
    return np.frombuffer(text.encode().ljust(16), np.uint8).astype(int), np.ones(16, bool)


def words(prompt):
    return bytes(prompt.astype(np.uint8)).decode().strip()


def make_config(folder, **changes):
    values = dict(
        action_horizon=3,
        cameras=(("front", ("left", "right")), ("wrist", "wrist")),
        state_keys=("joints", "gripper"),
        action_key=("action_dict/joints", "action_dict/gripper"),
        instruction_key=INSTRUCTIONS,
    )
    return DatasetConfig(path=str(folder), **{**values, **changes})


def make_dataset(folder, *, mode=RAW, options=None, **changes):
    config = make_config(folder, **changes)
    return DemonstrationDataset(
        config, Normalizer.create(compute_statistics(config), mode), tokenizer, **(options or {})
    )


def greys(images):
    return images[..., 0].reshape(*images.shape[:-3], -1).astype(float).mean(-1).round()


def test_actions_join_in_the_order_of_their_keys(rich_folder):
    batch = make_dataset(rich_folder).batch(np.array([0]))
    assert batch.actions[0].tolist() == [[1, 10, 0.5], [2, 20, 0.5], [3, 30, 0.5]]


def test_one_of_several_cameras_is_drawn_per_sample(rich_folder):
    dataset, keys = make_dataset(rich_folder), draws.sample_keys(0, np.arange(600))
    found = greys(dataset.batch(np.zeros(600, int), keys).observation.images["front"])
    is_left = np.abs(found - level("left", 0)) <= 2
    assert (is_left | (np.abs(found - level("right", 0)) <= 2)).all()
    assert abs(is_left.sum() - 300) < 5 * 12.3  # sqrt(600) / 2
    again = greys(dataset.batch(np.zeros(600, int)[:7], keys[:7]).observation.images["front"])
    np.testing.assert_array_equal(again, found[:7])


def test_a_drawn_camera_stays_through_history_and_future(rich_folder):
    dataset = make_dataset(rich_folder, history=2, future_offset=2)
    batch = dataset.batch(np.full(50, 2), draws.sample_keys(0, np.arange(50)))
    now, later = greys(batch.observation.images["front"]), greys(batch.future.images["front"])
    sides = np.stack([now[:, 0] > 100, now[:, 1] > 100, later[:, 1] > 100], axis=1)
    assert (sides == sides[:, :1]).all() and 0 < sides[:, 0].sum() < 50


def test_a_non_empty_instruction_is_drawn(rich_folder):
    dataset, keys = make_dataset(rich_folder), draws.sample_keys(0, np.arange(900))
    for frame, texts in ((0, TEXTS[0]), (6, TEXTS[1]), (9, TEXTS[2])):
        drawn = [words(p) for p in dataset.batch(np.full(900, frame), keys).observation.prompt]
        given = [text for text in texts if text]
        assert set(drawn) == set(given)
        for text in given:
            assert abs(drawn.count(text) - 900 / len(given)) < 5 * 15


def test_where_all_instructions_are_empty_so_is_the_prompt(rich_folder):
    dataset = make_dataset(rich_folder, instruction_key=INSTRUCTIONS[:2])
    assert words(dataset.batch(np.array([6])).observation.prompt[0]) == ""


def test_deltas_are_measured_from_the_state_at_the_start_and_held_at_the_end(rich_folder):
    dataset = make_dataset(rich_folder, action_kind="delta", relative_dims=((0, 0), (1, 1)))
    batch = dataset.batch(np.array([0, 4]))
    assert batch.actions[0].tolist() == [[1, 10, 0.5], [2, 20, 0.5], [3, 30, 0.5]]
    assert batch.actions[1].tolist() == [[1, 10, 0.5]] * 3  # the last target, one step away, is kept
    # Over the real steps of all chunks a delta is 1, 2 or 3 steps: 14 first, 11 second and 8 third ones.
    statistics = compute_statistics(dataset.config)
    assert statistics.actions.count == 14 + 11 + 8
    assert statistics.actions.mean[0] == pytest.approx((14 * 1 + 11 * 2 + 8 * 3) / 33)
    assert statistics.actions.max == (3, 30, 0.5)


def test_movements_become_the_targets_they_add_up_to(rich_folder):
    # Taking the recorded numbers as movements: from joints 0, the targets are 1, 1 + 2 and 1 + 2 + 3.
    dataset = make_dataset(rich_folder, action_kind="absolute", relative_dims=((0, 0),), displacement_dims=(0,))
    assert dataset.batch(np.array([0])).actions[0, :, 0].tolist() == [1, 3, 6]
    # At frame 3 (joints 3) two steps are left, of 4 and 5: the third stays at the last target.
    assert dataset.batch(np.array([3])).actions[0, :, 0].tolist() == [7, 12, 12]


def test_the_future_is_masked_past_the_end(rich_folder):
    batch = make_dataset(rich_folder, future_offset=2).batch(np.array([1, 3, 6]))
    assert batch.future.state[:, 0].tolist() == [3, 4, 7]
    assert batch.future.image_mask["wrist"].tolist() == [True, False, False]
    assert np.abs(greys(batch.future.images["wrist"]) - [level("wrist", f) for f in (3, 4, 7)]).max() <= 2
    assert batch.observation.state[:, 0].tolist() == [1, 3, 6] and batch.goal is None


def test_goals_are_observations_of_the_same_episode(rich_folder):
    dataset = make_dataset(rich_folder, goals=GoalConfig(0.0, 0.0, 1.0))
    assert dataset.batch(np.array([0, 5, 13])).goal.state[:, 0].tolist() == [4, 7, 13]


def test_pictures_are_resized(rich_folder):
    batch = make_dataset(rich_folder, resize=(6, 6, "pad")).batch(np.array([0]))
    picture = batch.observation.images["wrist"][0]
    assert picture.shape == (6, 6, 3)  # 12 x 8 fits as 6 x 4, with one black row above and below
    assert not picture[[0, 5]].any() and np.abs(picture[1:5].astype(int) - level("wrist", 0)).max() <= 2


def test_a_camera_that_may_be_missing_is_black_and_masked(rich_folder):
    cameras = (("front", "left"), ("top", "overhead"))
    batch = make_dataset(rich_folder, cameras=cameras, optional_cameras=("top",)).batch(np.array([0, 1]))
    assert batch.observation.images["top"].shape == (2, *SIZE, 3)
    assert not batch.observation.images["top"].any() and not batch.observation.image_mask["top"].any()
    assert batch.observation.image_mask["front"].all() and batch.weight.tolist() == [1, 1]
    with pytest.raises(DataError, match=r"no key \"steps/observation/overhead\""):
        make_dataset(rich_folder, cameras=cameras)


def test_pictures_of_different_sizes_are_no_alternatives(toy_folder):
    config = DatasetConfig(str(toy_folder), 2, cameras=(("any", ("front", "wrist")),))
    normalizer = Normalizer.create(compute_statistics(config))
    with pytest.raises(ConfigError, match="different sizes"):
        DemonstrationDataset(config, normalizer, tokenizer)
    config = dataclasses.replace(config, resize=(8, 8, "crop"))
    assert DemonstrationDataset(config, normalizer, tokenizer).batch(np.arange(16)).observation.images["any"].any()


@pytest.mark.parametrize("format", ["raw", "jpeg"])
def test_a_cache_replaces_the_stored_pictures(rich_folder, tmp_path, format):
    config = make_config(rich_folder, resize=(6, 6, "crop"), image_cache=str(tmp_path / "cache"))
    rlds = open_dataset(config)
    names = [name for names in config.camera_names.values() for name in names]
    sized = picture_sources.sized_pictures(rlds, config)
    image_cache.build(sized, names, tmp_path / "cache", picture_sources.cache_identity(rlds, config), format=format)
    options = {"image_cache_bytes": 0}
    cached = make_dataset(rich_folder, resize=(6, 6, "crop"), image_cache=str(tmp_path / "cache"), options=options)
    decoded = make_dataset(rich_folder, resize=(6, 6, "crop"), options=options)
    frames = np.array([3, 3, 13, 0])
    for camera in ("front", "wrist"):
        a, b = (d.batch(frames).observation.images[camera].astype(int) for d in (cached, decoded))
        assert np.abs(a - b).max() <= (0 if format == "raw" else 2)
    with pytest.raises(DataError, match="another size"):
        make_dataset(rich_folder, resize=(5, 5, "crop"), image_cache=str(tmp_path / "cache"))


def test_only_what_is_asked_for_is_sampled(rich_folder, tmp_path):
    kept_frames.save(tmp_path / "kept.json", {"success/a": [(1, 3)], "failure/b": [(0, 3)], "success/c": [(4, 9)]})
    config = make_config(
        rich_folder,
        episode_filter=("episode_metadata/file_path", "^success"),
        kept_frames=str(tmp_path / "kept.json"),
    )
    selection = select(open_dataset(config), config)
    assert selection.frame(np.arange(selection.num_frames)).tolist() == [1, 2, 12, 13]
    assert compute_statistics(config).state.mean[0] == 7  # of frames 1, 2, 12 and 13


def test_statistics_are_computed_again_only_when_something_they_depend_on_changes(rich_folder, tmp_path, monkeypatch):
    config = make_config(rich_folder)
    first = compute_statistics(config, tmp_path)
    monkeypatch.setattr(statistics.Summary, "add", lambda *_: pytest.fail("read the columns again"))
    assert compute_statistics(config, tmp_path) == compute_statistics([config], tmp_path) == first
    for changes in ({"first_frames": 2}, {"state_keys": ("gripper", "joints")}):
        with pytest.raises(pytest.fail.Exception):
            compute_statistics(make_config(rich_folder, **changes), tmp_path)


def test_training_and_validation_share_the_episodes_out(rich_folder):
    fraction = 0.5
    held_out = splits.is_held_out(("success/a", "failure/b", "success/c"), fraction)
    assert 0 < held_out.sum() < 3
    for subset, expected in (("train", ~held_out), ("validation", held_out)):
        dataset = make_dataset(rich_folder, holdout=fraction, subset=subset)
        assert set(dataset.selection.episodes.tolist()) == set(np.flatnonzero(expected))
        assert dataset.num_episodes == expected.sum()


def test_a_damaged_picture_takes_its_sample_out_of_the_loss(tmp_path):
    damaged = rich_rlds.write(tmp_path / "rich" / "1.0.0", damaged={("wrist", 2)})
    dataset = make_dataset(damaged, history=2, options={"image_cache_bytes": 0})
    batch = dataset.batch(np.array([1, 2, 3, 4]))
    assert batch.weight.tolist() == [1, 0, 0, 1]  # frame 3 sees frame 2 in its history
    assert batch.observation.image_mask["wrist"].tolist() == [[True, True], [True, False], [False, True], [True, True]]
    assert batch.observation.image_mask["front"].all()
    assert len(dataset.dataset.faults) == 1
    optional = make_dataset(damaged, optional_cameras=("wrist",))
    assert optional.batch(np.array([2])).weight.tolist() == [1]
    strict = make_dataset(damaged, options={"faults": FaultPolicy(strict=True)})
    with pytest.raises(DataError, match="bad image"):
        strict.batch(np.array([2]))
