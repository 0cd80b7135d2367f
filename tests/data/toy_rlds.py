"""A small RLDS dataset with known numbers."""

import numpy as np
import tensorflow_datasets as tfds

from vla_jax.data.formats.features import Episode, demonstration_flags, episode_features

CAMERAS = {"front": (16, 24), "wrist": (8, 8)}
STATE_DIM, ACTION_DIM = 3, 4
LENGTHS = (5, 1, 7, 3)


def make_episode(number: int, num_steps: int) -> Episode:
    """State and action say which episode and step they belong to; pictures are smooth, so that JPEG keeps them."""
    steps = np.arange(num_steps)
    images = {
        f"observation/{camera}": np.broadcast_to(
            (10 * number + 5 * steps)[:, None, None, None].astype(np.uint8), (num_steps, *size, 3)
        )
        for camera, size in CAMERAS.items()
    }
    state = np.stack([np.full(num_steps, number), steps, np.full(num_steps, 7)], axis=1)
    return Episode(
        steps={
            **images,
            "observation/state": state.astype(np.float32),
            "action": (100 * number + steps[:, None] + 0.25 * np.arange(ACTION_DIM)).astype(np.float32),
            "language_instruction": f"instruction {number % 2}",
            **demonstration_flags(num_steps),
        },
        metadata={"episode_metadata/file_path": f"file {number}", "episode_metadata/number": number - 2},
    )


def toy_features() -> tfds.features.FeaturesDict:
    metadata = {"file_path": tfds.features.Text(), "number": tfds.features.Scalar(dtype=np.int32)}
    return episode_features(CAMERAS, STATE_DIM, ACTION_DIM, metadata)
