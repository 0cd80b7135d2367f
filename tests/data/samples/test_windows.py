import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vla_jax.data.samples.windows import action_windows, future_frame, history_windows, hold_still


def test_a_chunk_stops_at_the_end_of_its_episode():
    # Two episodes, frames 0-4 and 5-7; a window that forgot the boundary would give 3, 4, 5, 6 in the second row.
    index, mask = action_windows(np.array([0, 3, 7]), np.array([5, 5, 8]), 4)
    assert index.tolist() == [[0, 1, 2, 3], [3, 4, 4, 4], [7, 7, 7, 7]]
    assert mask.astype(int).tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]


def test_a_history_stops_at_the_start_of_its_episode():
    index, mask = history_windows(np.array([0, 6, 7]), np.array([0, 5, 5]), 3)
    assert index.tolist() == [[0, 0, 0], [5, 5, 6], [5, 6, 7]]
    assert mask.astype(int).tolist() == [[0, 0, 1], [0, 1, 1], [1, 1, 1]]


@given(data=st.data(), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), horizon=st.integers(1, 12))
def test_windows_never_leave_the_episode_and_count_what_is_left(data, lengths, horizon):
    starts = np.concatenate([[0], np.cumsum(lengths)])
    frame = data.draw(st.integers(0, int(starts[-1]) - 1))
    episode = int(np.searchsorted(starts, frame, side="right")) - 1
    start, stop = starts[episode], starts[episode + 1]
    ahead, is_ahead = action_windows(np.array([frame]), np.array([stop]), horizon)
    behind, is_behind = history_windows(np.array([frame]), np.array([start]), horizon)
    assert ((start <= ahead) & (ahead < stop) & (start <= behind) & (behind < stop)).all()
    assert is_ahead.sum() == min(horizon, stop - frame)
    assert is_behind.sum() == min(horizon, frame - start + 1)
    assert ahead[0, 0] == behind[0, -1] == frame


def test_held_actions_stop_moving_and_keep_the_gripper():
    actions = np.array([[[0.5, 1.0], [0.7, -1.0], [0.7, -1.0]]], np.float32)
    given_actions = actions.copy()
    held = hold_still(actions, np.array([[True, True, False]]), displacement_dims=(0,))
    np.testing.assert_array_equal(held, np.array([[[0.5, 1.0], [0.7, -1.0], [0.0, -1.0]]], np.float32))
    np.testing.assert_array_equal(actions, given_actions)


def test_the_future_ends_with_the_episode():
    frame, is_real = future_frame(np.array([0, 3, 5]), np.array([5, 5, 8]), 2)
    assert frame.tolist() == [2, 4, 7] and is_real.tolist() == [True, False, True]
