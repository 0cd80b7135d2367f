"""From frame numbers to observation histories and action chunks, as index arithmetic over the columns of a split.

frames         0 1 2 3 4 | 5 6 7          two episodes; starts 0 and 5
chunk of 4 at 3:   3 4 4 4                a chunk never crosses into the next episode
action_mask:       1 1 0 0                past the end nothing was done
history of 3 at 6: 5 5 6  (mask 0 1 1)    nor does a history reach into the one before
"""

import numpy as np
from jaxtyping import Bool, Float, Int64


def action_windows(
    frames: Int64[np.ndarray, "b"], episode_stops: Int64[np.ndarray, "b"], action_horizon: int
) -> tuple[Int64[np.ndarray, "b h"], Bool[np.ndarray, "b h"]]:
    """The frames of the chunk that starts at every frame, held at the last one of the episode, and which are real.

    `episode_stops` is the first frame after each frame's episode.
    """
    index = frames[:, None] + np.arange(action_horizon)
    mask = index < episode_stops[:, None]
    return np.minimum(index, episode_stops[:, None] - 1), mask


def history_windows(
    frames: Int64[np.ndarray, "b"], episode_starts: Int64[np.ndarray, "b"], history: int
) -> tuple[Int64[np.ndarray, "b t"], Bool[np.ndarray, "b t"]]:
    """The last `history` frames up to each frame, oldest first, held at the episode's first, and which are real."""
    index = frames[:, None] + np.arange(1 - history, 1)
    mask = index >= episode_starts[:, None]
    return np.maximum(index, episode_starts[:, None]), mask


def hold_still(
    actions: Float[np.ndarray, "b h a"], mask: Bool[np.ndarray, "b h"], displacement_dims: tuple[int, ...]
) -> Float[np.ndarray, "b h a"]:
    """Chunks whose padded steps leave the robot where it was at the end of the episode.

    Padded steps come in as copies of the last action. That is right for targets (a gripper command, a joint position);
    a displacement repeated would go on moving, so `displacement_dims` become 0 there.
    """
    held = actions.copy()
    held[..., list(displacement_dims)] *= mask[..., None]
    return held


def future_frame(
    frames: Int64[np.ndarray, "b"], episode_stops: Int64[np.ndarray, "b"], offset: int
) -> tuple[Int64[np.ndarray, "b"], Bool[np.ndarray, "b"]]:
    """The frame `offset` steps ahead, held at the last one of the episode, and whether the episode gets that far."""
    return np.minimum(frames + offset, episode_stops - 1), frames + offset < episode_stops
