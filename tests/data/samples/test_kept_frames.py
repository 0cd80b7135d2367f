"""Kept ranges: the file format, the keys, and the frames they select."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorflow_datasets.core.features import Scalar, Text

from vla_jax.core import errors
from vla_jax.data.formats.features import Episode, demonstration_flags, episode_features
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.data.formats.rlds_writer import RldsWriter
from vla_jax.data.samples import kept_frames

# tests/data/toy_rlds.py: episodes of 5, 1, 7 and 3 steps with file_path "file 0" to "file 3" and no recording folder.


def test_episodes_without_a_recording_folder_are_keyed_by_their_file(toy_folder):
    assert kept_frames.episode_keys(RldsDataset(toy_folder)) == ("file 0", "file 1", "file 2", "file 3")


def test_ranges_are_steps_of_their_own_episode_and_unnamed_episodes_keep_nothing(toy_folder):
    ranges = {"file 0": [(1, 3)], "file 2": [(0, 1), (5, 99)]}
    mask = kept_frames.frame_mask(RldsDataset(toy_folder), ranges)
    # Frames 1, 2 of the first; the third starts at 6 and ends at 13; a range past the end must not enter the fourth.
    assert np.flatnonzero(mask).tolist() == [1, 2, 6, 11, 12]


def test_ranges_of_another_set_are_refused(toy_folder):
    with pytest.raises(errors.DataError, match="names no episode of toy"):
        kept_frames.frame_mask(RldsDataset(toy_folder), {"elsewhere": [(0, 1)]})


def test_an_episode_feature_that_names_episodes_is_asked_for(toy_folder):
    with pytest.raises(errors.DataError, match="no names that ranges could refer to"):
        kept_frames.episode_keys(RldsDataset(toy_folder, names=("action",)))


def test_a_number_tells_episodes_of_one_file_apart(tmp_path):
    features = episode_features({}, 1, 1, {"file_path": Text(), "episode_id": Scalar(dtype=np.int32)})
    with RldsWriter(tmp_path / "1.0.0", features, "numbered") as writer:
        for number in (4, 5):
            writer.write(short_episode({"file_path": "out.npy", "episode_id": np.int32(number)}))
    dataset = RldsDataset(tmp_path / "1.0.0", cache_folder=tmp_path)
    assert kept_frames.episode_keys(dataset) == ("out.npy--4", "out.npy--5")
    assert kept_frames.frame_mask(dataset, {"out.npy--5": [(0, 1)]}).tolist() == [False, False, True, False]


def test_a_key_that_two_episodes_share_cannot_select(tmp_path):
    with RldsWriter(tmp_path / "1.0.0", episode_features({}, 1, 1, {"file_path": Text()}), "twins") as writer:
        for _ in range(2):
            writer.write(short_episode({"file_path": "out.npy"}))
    dataset = RldsDataset(tmp_path / "1.0.0", cache_folder=tmp_path)
    with pytest.raises(errors.DataError, match=r"'out\.npy' is not one episode"):
        kept_frames.frame_mask(dataset, {"out.npy": [(0, 1)]})


def short_episode(metadata):
    """Two steps of nothing."""
    zeros = np.zeros((2, 1), np.float32)
    steps = {"observation/state": zeros, "action": zeros, "language_instruction": "", **demonstration_flags(2)}
    return Episode(steps, {f"episode_metadata/{name}": value for name, value in metadata.items()})


@given(st.lists(st.booleans(), max_size=40))
def test_runs_give_the_mask_back(flags):
    mask = np.array(flags, bool)
    runs = kept_frames.mask_ranges(mask)
    back = np.zeros(len(mask), bool)
    for start, stop in runs:
        assert start < stop
        back[start:stop] = True
    np.testing.assert_array_equal(back, mask)
    assert all(stop < start for (_, stop), (start, _) in itertools.pairwise(runs))  # maximal, in order


def test_what_is_saved_is_what_openpi_reads_and_comes_back(tmp_path):
    ranges = {"/r/MP4--/d/success/a.h5": [(0, 57), (80, 143)], "/r/MP4--/d/success/b.h5": []}
    kept_frames.save(tmp_path / "deep" / "ranges.json", ranges)
    assert json.loads((tmp_path / "deep" / "ranges.json").read_text()) == {
        "/r/MP4--/d/success/a.h5": [[0, 57], [80, 143]],
        "/r/MP4--/d/success/b.h5": [],
    }
    assert kept_frames.load(tmp_path / "deep" / "ranges.json") == ranges
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["ranges.json"]


@pytest.mark.parametrize("text", ["[1, 2]", '{"a": [[1, 2, 3]]}', '{"a": 4}', '{"a": [[5, 2]]}', "{"])
def test_other_files_are_refused_by_name(tmp_path, text):
    (tmp_path / "ranges.json").write_text(text)
    with pytest.raises(errors.DataError, match=r"ranges\.json"):
        kept_frames.load(tmp_path / "ranges.json")
    with pytest.raises(errors.DataError, match="no such file"):
        kept_frames.load(tmp_path / "absent.json")
