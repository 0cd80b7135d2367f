"""Rows say where they come from: the observation of row n of lane l is 1000 l + n, its reward 10 times that."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_jax.core import errors
from vla_jax.core.types import Observation, Transitions
from vla_jax.data.replay import windows
from vla_jax.data.replay.host import HostBuffer

ROOT = Path(__file__).parent.parent.parent.parent


def rows(lane, first, acts, discounts=None):
    """Rows numbered from `first`; one that does not act is the last of its episode."""
    number = (1000 * lane + first + np.arange(len(acts))).astype(np.float32)
    discounts = np.ones(len(acts)) if discounts is None else discounts
    return Transitions(
        observation=number[:, None],
        actions=-number[:, None, None],
        rewards=10 * number[:, None],
        discounts=np.asarray(discounts, np.float32)[:, None],
        action_mask=np.asarray(acts, bool)[:, None],
        next_observation=None,
        extras={"intervention": number > 0},
    )


ROW = jax.tree.map(lambda leaf: leaf[0], rows(0, 0, [1]))


def first_of(acts):
    """An episode begins at the start and behind every row that does not act."""
    return np.concatenate([[True], ~np.asarray(acts, bool)[:-1]])


def put(buffer, lane, first, acts, discounts=None, is_first=None):
    given = first_of(acts) if is_first is None else np.asarray(is_first)
    return buffer.append(f"arm-{lane}", first, rows(lane, first, acts, discounts), given)


def drawn(buffer, num_rows=1, seed=0):
    return buffer.sample(np.random.default_rng(seed), (400,), num_rows)


def starts(buffer):
    return sorted(set(drawn(buffer).observation[:, 0].astype(int).tolist())) if buffer.size else []


def test_the_newest_row_waits_for_the_one_it_leads_to():
    buffer = HostBuffer(ROW, 16)
    assert put(buffer, 0, 0, [1, 1, 1, 0, 1, 1]) == 6
    assert starts(buffer) == [0, 1, 2, 4]
    put(buffer, 0, 6, [1], is_first=[False])
    assert starts(buffer) == [0, 1, 2, 4, 5]
    batch = drawn(buffer)
    np.testing.assert_array_equal(batch.next_observation, batch.observation + 1)
    np.testing.assert_array_equal(batch.rewards, 10 * batch.observation)


def test_a_windows_chunks_are_joined_up_to_the_end_of_the_episode():
    buffer = HostBuffer(ROW, 16)
    put(buffer, 0, 0, [1, 1, 1, 0, 1, 1, 0], discounts=[1, 1, 1, 1, 1, 0, 1])  # cut off at 3, ended by the action at 5
    batch = drawn(buffer, num_rows=3)
    by_row = {int(o): i for i, o in enumerate(batch.observation[:, 0])}
    assert sorted(by_row) == [0, 1, 2, 4, 5]
    assert batch.actions.shape == (400, 3, 1)
    assert {n: batch.action_mask[i].astype(int).tolist() for n, i in by_row.items()} == {
        0: [1, 1, 1], 1: [1, 1, 0], 2: [1, 0, 0], 4: [1, 1, 0], 5: [1, 0, 0],
    }  # fmt: skip
    assert batch.rewards[by_row[1]].tolist() == [10, 20, 0] and batch.actions[by_row[1], :, 0].tolist() == [-1, -2, -2]
    assert [batch.discounts[by_row[n]].tolist() for n in (1, 4)] == [[1, 1, 1], [1, 0, 0]]
    assert [int(batch.next_observation[by_row[n], 0]) for n in (0, 1, 4)] == [3, 3, 6]
    single = windows.n_step(batch, 0.5)
    assert single.rewards[by_row[1]] == 10 + 0.5 * 20 and single.discounts[by_row[1]] == 0.5  # 0.5**2 in all
    assert isinstance(single.rewards, np.ndarray) and single.rewards.dtype == np.float32


def test_rows_sent_again_are_dropped_and_a_gap_breaks_the_window():
    buffer = HostBuffer(ROW, 16)
    put(buffer, 0, 0, [1, 1, 1])
    assert put(buffer, 0, 1, [1, 1, 1], is_first=[False] * 3) == 4 and buffer.num_inserted == 4
    assert starts(buffer) == [0, 1, 2]
    assert put(buffer, 0, 6, [1, 1], is_first=[False] * 2) == 8  # 4 and 5 are lost
    assert starts(buffer) == [0, 1, 2, 6]
    assert put(buffer, 0, 8, [1, 1], is_first=[True, False]) == 10  # a new episode: 7 leads nowhere
    assert starts(buffer) == [0, 1, 2, 6, 8]


@settings(max_examples=60)
@given(st.data())
def test_interleaved_lanes_never_mix_and_the_ring_forgets_the_oldest(data):
    """Against the list of all rows that were given, in two buffers: memory, and the index read anew from its state."""
    capacity = data.draw(st.integers(2, 12))
    buffer, history = HostBuffer(ROW, capacity), []
    counts = [0, 0]
    ends = [True, True]
    for lane, acts in data.draw(st.lists(st.tuples(st.integers(0, 1), st.booleans()), min_size=1, max_size=30)):
        put(buffer, lane, counts[lane], [acts], is_first=[ends[lane]])
        history.append((lane, counts[lane], acts))
        counts[lane], ends[lane] = counts[lane] + 1, not acts
    there = history[-capacity:]
    acting = {1000 * lane + n for lane, n, acts in there if acts}
    expected = sorted(number for number in acting if any(1000 * lane + n == number + 1 for lane, n, _ in there))
    assert starts(buffer) == expected
    again = HostBuffer(ROW, capacity)
    again.restore(buffer.state(), rewind=True)
    assert starts(again) == expected
    assert [again.expected(f"arm-{lane}") for lane in (0, 1)] == counts
    if expected:
        for ours, theirs in zip(jax.tree.leaves(drawn(buffer, 3)), jax.tree.leaves(drawn(again, 3)), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        batch = drawn(buffer, 3)
        steps = batch.action_mask.sum(axis=1)
        np.testing.assert_array_equal(batch.next_observation[:, 0], batch.observation[:, 0] + steps)


def test_samples_are_uniform():
    buffer = HostBuffer(ROW, 8)
    put(buffer, 0, 0, [1, 1, 0, 1, 1])
    numbers, counts = np.unique(buffer.sample(np.random.default_rng(0), (3, 2000)).observation, return_counts=True)
    assert numbers.tolist() == [0, 1, 3] and np.allclose(counts / 6000, 1 / 3, atol=0.03)


def test_a_buffer_on_disk_is_found_again(tmp_path):
    buffer = HostBuffer(ROW, 6, tmp_path)
    put(buffer, 0, 0, [1, 1, 0, 1])
    put(buffer, 1, 0, [1, 1, 1, 1])  # row 0 and 1 of lane 0 are overwritten
    found = starts(buffer)
    with pytest.raises(errors.DataError, match="in use"):
        HostBuffer(ROW, 6, tmp_path)
    buffer.close()
    again = HostBuffer(ROW, 6, tmp_path, sync=True)
    assert starts(again) == found == [1000, 1001, 1002]
    assert again.expected("arm-0") == 4 and again.expected("arm-1") == 4 and again.num_inserted == 8
    put(again, 1, 4, [0], is_first=[False])
    assert starts(again) == [1000, 1001, 1002, 1003]
    again.close()
    with pytest.raises(errors.DataError, match=r"(?s)other columns.*float32\[6, 1\].*float32\[7, 1\]"):
        HostBuffer(ROW, 7, tmp_path)


def test_rows_count_that_were_stored_without_the_note_of_it(tmp_path):
    """Whoever is killed between a row and the note of its number finds the row, and refuses it the second time."""
    buffer = HostBuffer(ROW, 8, tmp_path)
    put(buffer, 0, 0, [1, 1, 1])
    buffer.close()
    note = np.lib.format.open_memmap(tmp_path / "lane_expected.npy", mode="r+")
    note[0] = 1
    note.flush()
    again = HostBuffer(ROW, 8, tmp_path)
    assert put(again, 0, 1, [1, 1], is_first=[False] * 2) == 3 and again.num_inserted == 3
    again.close()


def test_a_row_that_is_half_written_is_none(tmp_path):
    buffer = HostBuffer(ROW, 8, tmp_path)
    put(buffer, 0, 0, [1, 1, 1, 1])
    buffer.close()
    stamps = np.lib.format.open_memmap(tmp_path / "stamp.npy", mode="r+")
    stamps[1] = 0  # as while its columns are written
    stamps.flush()
    again = HostBuffer(ROW, 8, tmp_path)
    assert starts(again) == [2]
    again.close()


def test_a_checkpoint_of_a_buffer_on_disk_is_a_position(tmp_path):
    buffer = HostBuffer(ROW, 8, tmp_path)
    put(buffer, 0, 0, [1, 1, 1])
    state = buffer.state()
    assert sum(np.size(leaf) for leaf in jax.tree.leaves(state)) < 100
    put(buffer, 0, 3, [1, 1, 0], is_first=[False] * 3)
    buffer.restore(state, rewind=False)  # what came since was acknowledged: it stays
    assert buffer.expected("arm-0") == 6
    buffer.restore(state, rewind=True)
    assert buffer.expected("arm-0") == 3 and starts(buffer) == [0, 1]
    put(buffer, 0, 3, [1] * 8, is_first=[False] * 8)  # 0, 1 and 2 are overwritten
    with pytest.raises(errors.CheckpointError, match="3 overwritten"):
        buffer.restore(state, rewind=True)
    buffer.close()
    empty = HostBuffer(ROW, 8, tmp_path / "other")
    with pytest.raises(errors.CheckpointError, match="0 inserted"):
        empty.restore(state, rewind=False)


WRITER = """
import sys, numpy as np
from tests.data.replay.test_host import HostBuffer, ROW, put
buffer = HostBuffer(ROW, 64, sys.argv[1])
number = buffer.expected("arm-0")
while True:
    number = put(buffer, 0, number, [1, 1, 1], is_first=[number == 0, False, False])
    print(number, flush=True)
"""


def test_what_was_acknowledged_outlives_kill_9(tmp_path):
    """A writer is killed twice in the middle of storing, and goes on where the one before had come."""
    acknowledged = 0
    for lines in (40, 30):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        try:
            for _ in range(lines):
                acknowledged = int(process.stdout.readline())
            os.kill(process.pid, signal.SIGKILL)
            rest = process.stdout.read().split("\n")  # printed before the kill, so acknowledged as well
            acknowledged = int(rest[-2]) if len(rest) > 1 else acknowledged
        finally:
            process.kill()
            process.wait(30)
    buffer = HostBuffer(ROW, 64, tmp_path)
    expected = buffer.expected("arm-0")
    assert expected >= acknowledged >= 3 * 70
    batch = buffer.sample(np.random.default_rng(0), (2000,))
    numbers = set(batch.observation[:, 0].astype(int).tolist())
    assert numbers >= set(range(max(0, expected - 62), acknowledged - 1))  # all that the ring still holds
    np.testing.assert_array_equal(batch.rewards, 10 * batch.observation)  # no row is half written
    np.testing.assert_array_equal(batch.next_observation, batch.observation + 1)


def test_frames_are_stored_once_and_stacked_when_sampled():
    def frames(first, count):
        number = np.arange(first, first + count)
        images = {"wrist": np.broadcast_to(number[:, None, None, None].astype(np.uint8), (count, 4, 4, 3)).copy()}
        seen = Observation(
            images, {"wrist": np.ones(count, bool)}, number[:, None].astype(np.float32),
            number[:, None].astype(np.int32), np.ones((count, 1), bool),
        )  # fmt: skip
        return rows(0, first, [1] * count).replace(observation=seen)

    buffer = HostBuffer(jax.tree.map(lambda leaf: leaf[0], frames(0, 1)), 8)
    buffer.append("arm-0", 0, frames(0, 4), np.array([True, False, True, False]))
    buffer.append("arm-0", 4, frames(4, 1), np.array([False]))
    stored = [leaf for leaf in jax.tree.leaves(buffer.state()) if leaf.dtype == np.uint8 and leaf.ndim == 4]
    assert [leaf.shape for leaf in stored] == [(8, 4, 4, 3)]  # one picture per row, no next picture
    batch = buffer.sample(np.random.default_rng(0), (200,), history=3)
    by_row = {int(p): i for i, p in enumerate(batch.observation.prompt[:, 0])}
    assert sorted(by_row) == [0, 2, 3]
    pictures = {n: batch.observation.images["wrist"][i, :, 0, 0, 0].tolist() for n, i in by_row.items()}
    assert pictures == {0: [0, 0, 0], 2: [2, 2, 2], 3: [2, 2, 3]}  # an episode begins at 2
    assert batch.observation.image_mask["wrist"][by_row[3]].tolist() == [False, True, True]
    assert batch.next_observation.state[by_row[3], :, 0].tolist() == [2, 3, 4]
    example = buffer.example((200,), history=3)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), example) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), batch
    )


def test_rows_of_another_shape_are_named():
    buffer = HostBuffer(ROW, 8)
    with pytest.raises(errors.DataError, match=r"actions of rows(?s:.*)float32\[1, 1, 1\](?s:.*)float64"):
        bad = rows(0, 0, [1])
        buffer.append("arm-0", 0, bad.replace(actions=bad.actions.astype(np.float64)), np.array([True]))
    with pytest.raises(errors.DataError, match="nothing to sample"):
        buffer.sample(np.random.default_rng(0), (4,))
    with pytest.raises(errors.ConfigError, match="capacity"):
        HostBuffer(ROW, 1)
