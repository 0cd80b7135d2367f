"""DROID 1.0.1 (RLDS, TFRecord): its schema, a training config for it, and the filter of frames where nothing happens.

    kept = kept_ranges(RldsDataset(folder, names=FILTER_NAMES))
    kept_frames.save("droid_kept.json", kept)
    config = dataset_config(folder, action_horizon=16, kept="droid_kept.json")

Facts of the set: 15 Hz; actions are commands, recorded in four spaces plus the gripper, whose position is 0 open and 1
closed; a successful episode has "success" in its file path; three people worded the task, some wordings are empty.
Sources: droid-dataset.github.io; openpi (Physical-Intelligence/openpi, commit 15a9616): training/droid_rlds_dataset.py
for the choices of cameras and wordings and examples/droid/compute_droid_nonidle_ranges.py for the filter.
"""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool, Float, Int64

from vla_jax.core import errors
from vla_jax.data.formats.episodes import EpisodeDataset
from vla_jax.data.samples import kept_frames
from vla_jax.data.schema import DatasetConfig

DATASET_NAME, VERSION = "droid", "1.0.1"
CONTROL_HZ = 15
IMAGE_SIZE = (180, 320)  # height, width
EXTERIOR_CAMERAS = ("exterior_image_1_left", "exterior_image_2_left")
WRIST_CAMERA = "wrist_image_left"
INSTRUCTION_KEYS = ("language_instruction", "language_instruction_2", "language_instruction_3")
ACTION_DIMS = {
    "cartesian_position": 6,
    "cartesian_velocity": 6,
    "gripper_position": 1,
    "gripper_velocity": 1,
    "joint_position": 7,
    "joint_velocity": 7,
}
SUCCESS = ("episode_metadata/file_path", r".*success.*")  # feature, and what it matches as a whole
KEY_NAMES = ("episode_metadata/recording_folderpath", "episode_metadata/file_path")
FILTER_NAMES = ("action_dict/joint_velocity", *KEY_NAMES)  # all that `kept_ranges` reads

Actions = Literal["joint_velocity", "joint_position", "cartesian_velocity", "cartesian_position"]
State = Literal["joint_position", "cartesian_position"]


@dataclasses.dataclass(frozen=True)
class IdleRule:
    """When frames are dropped. Defaults: openpi's, made for policies that run the first 8 actions of a chunk."""

    threshold: float = 1e-3  # a step is idle when no joint velocity command differs by this much from the step before
    shortest_idle: int = 7  # steps; fewer idle steps in a row are a pause and stay
    shortest_kept: int = 16  # steps; shorter moving stretches are dropped
    dropped_end: int = 10  # steps cut off each stretch: chunks that start there would mostly stand still

    def __post_init__(self):
        if not 0 <= self.dropped_end <= self.shortest_kept or self.shortest_idle < 1 or self.threshold < 0:
            raise errors.ConfigError(
                "IdleRule",
                expected="0 <= dropped_end <= shortest_kept, shortest_idle of 1 or more, threshold of 0 or more",
                found=self,
            )


def features() -> tfds.features.FeaturesDict:
    """The schema of DROID 1.0.1, as its features.json has it."""

    def vector(dim: int) -> tfds.features.Tensor:
        return tfds.features.Tensor(shape=(dim,), dtype=np.float64)

    images = {
        name: tfds.features.Image(shape=(*IMAGE_SIZE, 3), dtype=np.uint8, encoding_format="jpeg")
        for name in (*EXTERIOR_CAMERAS, WRIST_CAMERA)
    }
    step = {
        "observation": {
            **images,
            "cartesian_position": vector(6),
            "gripper_position": vector(1),
            "joint_position": vector(7),
        },
        "action": vector(7),
        "action_dict": {name: vector(dim) for name, dim in ACTION_DIMS.items()},
        **{key: tfds.features.Text() for key in INSTRUCTION_KEYS},
        "reward": tfds.features.Scalar(dtype=np.float32),
        "discount": tfds.features.Scalar(dtype=np.float32),
        "is_first": tfds.features.Scalar(dtype=np.bool_),
        "is_last": tfds.features.Scalar(dtype=np.bool_),
        "is_terminal": tfds.features.Scalar(dtype=np.bool_),
    }
    metadata = {"file_path": tfds.features.Text(), "recording_folderpath": tfds.features.Text()}
    return tfds.features.FeaturesDict({"steps": tfds.features.Dataset(step), "episode_metadata": metadata})


def dataset_config(
    folder: str | Path,
    action_horizon: int,
    *,
    actions: Actions = "joint_velocity",
    state: State = "joint_position",
    kept: str | Path | None = None,
    only_successes: bool = True,
) -> DatasetConfig:
    """A training view of DROID: cameras "exterior" (one of the two, drawn per sample) and "wrist", one of the wordings
    that is not empty, the chosen command and state, each with the gripper's position as its last entry.

    `kept` is a file of kept ranges, ours or openpi's. Other fields: `dataclasses.replace`. With position commands a
    chunk past the end repeats the last target; with velocities it stands still.
    """
    return DatasetConfig(
        path=str(folder),
        action_horizon=action_horizon,
        cameras=(("exterior", EXTERIOR_CAMERAS), ("wrist", WRIST_CAMERA)),
        state_keys=(state, "gripper_position"),
        action_key=(f"action_dict/{actions}", "action_dict/gripper_position"),
        instruction_key=INSTRUCTION_KEYS,
        displacement_dims=tuple(range(ACTION_DIMS[actions])) if actions.endswith("velocity") else (),
        kept_frames=None if kept is None else str(kept),
        episode_filter=SUCCESS if only_successes else None,
        embodiment=DATASET_NAME,
    )


def is_idle(joint_velocity: Float[np.ndarray, "t 7"], threshold: float) -> Bool[np.ndarray, "t"]:
    """True where the velocity command of every joint is within `threshold` of the step before; the first step is not
    idle. A command that stands still at another value than 0 is idle too: that is openpi's definition."""
    changes = np.abs(np.diff(joint_velocity, axis=0)) >= threshold
    return np.concatenate([[False], ~changes.any(axis=1)]) if len(joint_velocity) else np.zeros(0, bool)


def moving_ranges(joint_velocity: Float[np.ndarray, "t 7"], rule: IdleRule = IdleRule()) -> Int64[np.ndarray, "r 2"]:
    """The stretches of an episode worth starting a chunk in, as [start, stop) steps in order.

    Idle runs of `shortest_idle` or more are cut out; what is left between them is kept if it has `shortest_kept` steps
    or more, without its last `dropped_end`.
    """
    idle_runs = kept_frames.mask_ranges(is_idle(joint_velocity, rule.threshold))
    kept = np.ones(len(joint_velocity), bool)
    for start, stop in idle_runs:
        kept[start:stop] = stop - start < rule.shortest_idle
    runs = kept_frames.mask_ranges(kept)
    runs = runs[runs[:, 1] - runs[:, 0] >= rule.shortest_kept]
    return runs - [0, rule.dropped_end]


def kept_ranges(dataset: EpisodeDataset, rule: IdleRule = IdleRule()) -> dict[str, list[tuple[int, int]]]:
    """`moving_ranges` of every episode by its key, in the format of `kept_frames` (and of openpi's ranges file).

    Opening the set with `names=FILTER_NAMES` is enough. Raises DataError when it lacks the joint velocity commands.
    """
    name = FILTER_NAMES[0]
    if name not in dataset.columns:
        raise errors.DataError(
            f'{dataset.place}: no key "steps/{name}"',
            expected="the commands of DROID, which say when the operator waits",
            found=", ".join(sorted(dataset.columns)),
        )
    commands, starts = dataset.columns[name], np.asarray(dataset.episode_starts)
    ranges = {}
    for key, start, stop in zip(kept_frames.episode_keys(dataset), starts[:-1], starts[1:], strict=True):
        ranges[key] = [(int(a), int(b)) for a, b in moving_ranges(np.asarray(commands[start:stop]), rule)]
    return ranges
