"""The toy set has episodes of 5, 1, 7 and 3 frames: frames 0-4, 5, 6-12 and 13-15, called "file 0" to "file 3"."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.toy_rlds import LENGTHS
from vla_jax.core.errors import DataError
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.data.samples import draws, kept_frames, splits
from vla_jax.data.samples.selection import FrameSelection, select


@pytest.fixture(scope="module")
def dataset(toy_folder):
    return RldsDataset(toy_folder)


def frames_of(selection):
    return selection.frame(np.arange(selection.num_frames)).tolist()


def test_without_conditions_every_frame_is_a_sample(dataset):
    selection = select(dataset)
    samples = np.arange(selection.num_samples)
    assert selection(samples, draws.sample_keys(0, samples)).tolist() == list(range(sum(LENGTHS)))


def test_an_expression_picks_episodes(dataset):
    found = select(dataset, episode_filter=("episode_metadata/file_path", "[02]$"))
    assert frames_of(found) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12]


def test_training_and_validation_share_the_episodes_out(dataset):
    sides = [select(dataset, holdout=0.5, subset=subset) for subset in ("train", "validation")]
    expected = splits.is_held_out([f"file {i}" for i in range(4)], 0.5)
    assert 0 < expected.sum() < 4
    assert set(sides[1].episodes.tolist()) == set(np.flatnonzero(expected))
    assert sorted(frames_of(sides[0]) + frames_of(sides[1])) == list(range(16))


def test_only_the_first_frames_of_an_episode(dataset):
    assert frames_of(select(dataset, first_frames=2)) == [0, 1, 5, 6, 7, 13, 14]


def test_last_frames_can_be_left_out(dataset):
    found = select(dataset, skip_last=np.array([True, True, False, False]))
    assert frames_of(found) == [0, 1, 2, 3, *range(6, 16)]
    assert found.num_episodes == 3  # the episode of one frame has nothing left


def test_kept_ranges_are_met_with_the_other_conditions(dataset, tmp_path):
    path = tmp_path / "kept.json"
    kept_frames.save(path, {"file 0": [(1, 3), (4, 5)], "file 2": [(0, 99)], "file 1": [(0, 1)]})
    found = select(dataset, kept_frames_path=str(path), first_frames=4)
    assert frames_of(found) == [1, 2, 5, 6, 7, 8, 9]
    # frames 5 and 6 touch but belong to two episodes
    assert found.episodes.tolist() == [0, 1, 2]
    assert found.num_episodes == 3


def test_by_episode_every_epoch_visits_each_episode_once(dataset, tmp_path):
    kept_frames.save(tmp_path / "kept.json", {"file 0": [(1, 2), (4, 5)], "file 2": [(0, 3)]})
    selection = select(dataset, kept_frames_path=str(tmp_path / "kept.json"), sample_by="episode")
    assert selection.num_samples == 2
    samples = np.tile([0, 1], 6000)
    frames = selection(samples, draws.sample_keys(0, np.arange(12_000)))
    counts = np.bincount(frames, minlength=16)
    assert set(np.flatnonzero(counts)) == {1, 4, 6, 7, 8}
    # each half of 6000, each third: standard errors 39 and 37
    assert abs(counts[1] - 3000) < 200 and all(abs(counts[i] - 2000) < 200 for i in (6, 7, 8))


def test_when_nothing_is_left_the_conditions_are_named(dataset):
    with pytest.raises(DataError, match=r"(?s)no frame is left.*4 episodes, 0 after episode_filter"):
        select(dataset, episode_filter=("episode_metadata/file_path", "nothing"))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), min_size=1, max_size=8), st.integers(0, 1000))
def test_a_selection_counts_through_its_ranges(gaps_and_lengths, position):
    starts, at = [], 0
    for gap, length in gaps_and_lengths:
        starts.append(at + gap)
        at += gap + length
    starts = np.array(starts)
    stops = starts + np.array([length for _, length in gaps_and_lengths])
    episodes = np.arange(len(starts)) // 2
    expected = [frame for a, b in zip(starts, stops, strict=True) for frame in range(a, b)]
    by_frame = FrameSelection(starts, stops, episodes)
    assert by_frame.frame(np.arange(by_frame.num_samples)).tolist() == expected
    by_episode = FrameSelection(starts, stops, episodes, "episode")
    drawn = by_episode(
        np.arange(by_episode.num_samples), draws.sample_keys(position, np.arange(by_episode.num_samples))
    )
    for episode, frame in enumerate(drawn):
        assert any(starts[i] <= frame < stops[i] for i in np.flatnonzero(episodes == episode))
