"""An RLDS set with what larger robot sets have: two outside cameras, three instructions, rewards, split actions, an
episode that failed and was cut off, names of episodes.

    episode   frames   ends in        name            instructions
    0         0-4      success        success/a       "pick 0", "", "take 0"
    1         5-7      cut off        failure/b       "", "", "take 1"
    2         8-13     success        success/c       "pick 2", "grasp 2", "take 2"
"""

import numpy as np
import tensorflow_datasets as tfds

from vla_jax.data.formats import image_codec
from vla_jax.data.formats.features import Episode
from vla_jax.data.formats.rlds_writer import RldsWriter

LENGTHS = (5, 3, 6)
NAMES = ("success/a", "failure/b", "success/c")
SIZE = (8, 12)
TEXTS = (("pick 0", "", "take 0"), ("", "", "take 1"), ("pick 2", "grasp 2", "take 2"))


def level(camera: str, frame: int) -> int:
    """The grey of a camera's picture at a frame."""
    return {"left": 10, "right": 120, "wrist": 200}[camera] + 3 * frame


def write(folder, damaged=()):
    """The set in `folder`; `damaged` lists (camera, frame) pairs whose JPEGs end after their header."""
    vector, scalar = tfds.features.Tensor, tfds.features.Scalar
    image = tfds.features.Image(shape=(*SIZE, 3), dtype=np.uint8, encoding_format="jpeg")
    step = {
        "observation": {
            "left": image,
            "right": image,
            "wrist": image,
            "joints": vector(shape=(2,), dtype=np.float32),
            "gripper": vector(shape=(1,), dtype=np.float32),
        },
        "action_dict": {
            "joints": vector(shape=(2,), dtype=np.float32),
            "gripper": vector(shape=(1,), dtype=np.float32),
        },
        "language_instruction": tfds.features.Text(),
        "language_instruction_2": tfds.features.Text(),
        "language_instruction_3": tfds.features.Text(),
        "reward": scalar(dtype=np.float32),
        "is_terminal": scalar(dtype=np.bool_),
    }
    features = tfds.features.FeaturesDict(
        {"steps": tfds.features.Dataset(step), "episode_metadata": {"file_path": tfds.features.Text()}}
    )
    with RldsWriter(folder, features, "rich", file_format="tfrecord") as writer:
        start = 0
        for number, length in enumerate(LENGTHS):
            writer.write(_episode(number, start, length, damaged))
            start += length
    return folder


def _episode(number: int, start: int, length: int, damaged) -> Episode:
    steps = np.arange(length)
    frames = start + steps
    pictures = {
        f"observation/{camera}": [_jpeg(camera, int(f), (camera, f) in damaged) for f in frames]
        for camera in ("left", "right", "wrist")
    }
    joints = np.stack([frames, 10 * frames], axis=1).astype(np.float32)
    texts = dict(zip(("", "_2", "_3"), TEXTS[number], strict=True))
    return Episode(
        steps={
            **pictures,
            "observation/joints": joints,
            "observation/gripper": np.full((length, 1), number, np.float32),
            "action_dict/joints": joints + np.array([1, 10], np.float32),  # the state of the next frame: a target
            "action_dict/gripper": np.full((length, 1), 0.5, np.float32),
            **{f"language_instruction{suffix}": text for suffix, text in texts.items()},
            "reward": frames.astype(np.float32),
            "is_terminal": (steps == length - 1) & (number != 1),
        },
        metadata={"episode_metadata/file_path": NAMES[number]},
    )


def _jpeg(camera: str, frame: int, is_damaged: bool) -> bytes:
    data = image_codec.encode_jpeg(np.full((*SIZE, 3), level(camera, frame), np.uint8))
    return data[: data.index(b"\xff\xda")] if is_damaged else data
