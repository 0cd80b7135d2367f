"""Sets whose records are single steps, and the episodes found in them."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.formats.raw_set import write_set
from vla_jax.core.errors import DataError
from vla_jax.data.formats import image_codec
from vla_jax.data.formats.index_join import episodes_of_steps
from vla_jax.data.formats.rlds import RldsDataset

F = tfds.features
LENGTHS = (3, 1, 4)
FEATURES = F.FeaturesDict(
    {
        "observation": {"front": F.Image(shape=(8, 12, 3)), "state": F.Tensor(shape=(2,), dtype=np.float64)},
        "action": F.Scalar(dtype=np.float32),
        "instruction": F.Text(),
        "is_first": F.Scalar(dtype=np.bool_),
        "is_last": F.Scalar(dtype=np.bool_),
    }
)


def step_record(episode: int, step: int) -> dict:
    return {
        "observation/front": [image_codec.encode_jpeg(np.full((8, 12, 3), 40 * episode + 5 * step, np.uint8))],
        "observation/state": np.array([episode, step], np.float32),
        "action": np.array([10 * episode + step], np.float32),
        "instruction": [f"do {episode}".encode()],
        "is_first": np.array([step == 0]),
        "is_last": np.array([step == LENGTHS[episode] - 1]),
    }


RECORDS = [step_record(episode, step) for episode, length in enumerate(LENGTHS) for step in range(length)]


def shards(*sizes: int) -> list[list[dict]]:
    stops = np.cumsum(sizes)
    assert stops[-1] == len(RECORDS)
    return [RECORDS[stop - size : stop] for size, stop in zip(sizes, stops, strict=True)]


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
@pytest.mark.parametrize("sizes", [(8,), (2, 3, 3), (4, 0, 4)])
def test_steps_become_episodes_across_shards(tmp_path, file_format, sizes):
    dataset = RldsDataset(write_set(tmp_path / "d", FEATURES, shards(*sizes), file_format))
    assert dataset.episode_starts.tolist() == [0, 3, 4, 8]
    assert len(dataset.faults) == 0
    for number, length in enumerate(LENGTHS):
        episode = dataset.episode(number)
        np.testing.assert_array_equal(episode.steps["action"], 10 * number + np.arange(length))
        assert episode.steps["instruction"] == [f"do {number}"] * length
        pictures = 40 * number + 5 * np.arange(length)
        np.testing.assert_allclose(episode.steps["observation/front"][:, 0, 0, 0], pictures, atol=2)
    assert dataset.cameras == ("observation/front",)
    assert dataset.describe_frame(7).endswith(f"record {7 - sum(sizes[:-1])}")


def test_names_keep_the_flags_that_say_where_episodes_begin(tmp_path):
    dataset = RldsDataset(write_set(tmp_path / "d", FEATURES, shards(8), "array_record"), names=("action",))
    assert set(dataset.columns) == {"action", "is_first", "is_last"} and len(dataset) == 3


def test_an_episode_that_lost_a_step_is_left_out(tmp_path):
    folder = write_set(tmp_path / "d", FEATURES, shards(2, 4, 2), "tfrecord")
    (path,) = folder.glob("*-00001-of-*")  # steps 2 of episode 0, all of 1, steps 0 and 1 of 2
    data = bytearray(path.read_bytes())
    data[20] ^= 1  # the first record of the file
    path.write_bytes(data)
    dataset = RldsDataset(folder)
    assert dataset.faults.counts() == {"corrupt record": 1}
    assert dataset.columns["action"].tolist() == [10, 20, 21, 22, 23]
    assert dataset.episode_starts.tolist() == [0, 1, 5]
    path.unlink()
    with pytest.raises(DataError, match="none: 1 damaged"):  # episodes 0 and 2 are cut, 1 is gone
        RldsDataset(folder)


def test_shuffled_steps_are_refused(tmp_path):
    shuffled = [RECORDS[i] for i in (2, 0, 1, 3, 4, 5, 6, 7)]
    with pytest.raises(DataError, match=r"(?s)single steps, and not in order.*without shuffling"):
        RldsDataset(write_set(tmp_path / "d", FEATURES, [shuffled]))


@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    lost=st.sets(st.integers(0, 29), max_size=6),
)
@settings(max_examples=200, deadline=None)
def test_exactly_the_episodes_that_lost_nothing_remain(lengths, lost):
    total = sum(lengths)
    episode = np.repeat(np.arange(len(lengths)), lengths)
    step = np.concatenate([np.arange(n) for n in lengths])
    kept = np.array([i for i in range(total) if i not in lost], int)
    is_last = step == np.array(lengths)[episode] - 1
    after_gap = np.diff(kept, prepend=-1) != 1
    mask, starts = episodes_of_steps(
        step[kept] == 0, is_last[kept], after_gap, ends_in_gap=not len(kept) or kept[-1] != total - 1
    )
    whole = [e for e in range(len(lengths)) if not lost & set(np.flatnonzero(episode == e).tolist())]
    assert episode[kept][mask].tolist() == [e for e in whole for _ in range(lengths[e])]
    assert starts.tolist() == np.concatenate([[0], np.cumsum([lengths[e] for e in whole])]).tolist()
