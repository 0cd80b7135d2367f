"""BridgeData V2 as Octo and its own website ship it (RLDS `bridge_dataset`): a training config, and relabelled actions.

    config = dataset_config("bridge_dataset/1.0.0", action_horizon=4)            # as recorded
    relabel(RldsDataset("bridge_dataset/1.0.0"), "bridge_relabelled/1.0.0")      # once; then the same config on that

A WidowX at 5 Hz; state and action are position, Euler angles and gripper; the gripper is 1 open and 0 closed. What is
recorded asks for three decisions, which other people's code takes in its own ways:

first frame   The first action of an episode is a no-op: below 1e-5 in every episode of the sample, and all zero in the
              full set, says OpenVLA. `relabel` drops it as OpenVLA does; without it, `kept_ranges` skips it.
commands      The recorded movement is what was commanded, and the arm does less: in the sample, 0.7 to 0.9 of it.
              `relabel` writes what it did, the difference to the next state, as Octo and OpenVLA do. The last step has
              no next one and is dropped; its reward and flags go to the step before. The gripper stays a command.
gripper       Commands pass through values between open and closed. `relabel` makes them 0 or 1 by where they end up.

Cameras that an episode lacks are black pictures. `episode_metadata/has_image_i` cannot be trusted to say so: in the
sample it is False for cameras that do show the scene.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float

from vla_jax.core import errors
from vla_jax.data.formats.episodes import EpisodeDataset
from vla_jax.data.formats.features import Episode
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.data.formats.rlds_writer import RldsWriter
from vla_jax.data.samples import kept_frames
from vla_jax.data.schema import DatasetConfig

CONTROL_HZ = 5
CAMERAS = ("image_0", "image_1", "image_2", "image_3")
MOVEMENT_DIMS = tuple(range(6))  # position and Euler angles; the last entry is the gripper

_OF_THE_START = {"is_first"}
_OF_THE_END = {"is_last", "is_terminal", "reward", "discount"}
_NO_OP = 1e-4  # metres and radians; the smallest movement of the sample's other steps is 5e-3
_OPEN, _CLOSED = 0.95, 0.05  # gripper commands above and below are decided; source: OpenVLA, binarize_gripper_actions


def dataset_config(
    folder: str | Path, action_horizon: int, *, cameras: tuple[str, ...] = ("image_0",)
) -> DatasetConfig:
    """A training view of Bridge, relabelled or not; a camera keeps its name. Other fields: `dataclasses.replace`."""
    return DatasetConfig(
        path=str(folder),
        action_horizon=action_horizon,
        cameras=tuple((camera, camera) for camera in cameras),
        displacement_dims=MOVEMENT_DIMS,
        embodiment="bridge_dataset",
    )


def kept_ranges(dataset: EpisodeDataset) -> dict[str, list[tuple[int, int]]]:
    """Every episode from its first step that is no no-op on, in the format of `kept_frames`: a no-op moves nothing and
    leaves the gripper command as it was. An episode of no-ops keeps nothing."""
    actions, starts = np.asarray(dataset.columns["action"]), np.asarray(dataset.episode_starts)
    ranges = {}
    for key, start, stop in zip(kept_frames.episode_keys(dataset), starts[:-1], starts[1:], strict=True):
        moves = np.linalg.norm(actions[start:stop, MOVEMENT_DIMS], axis=1) >= _NO_OP
        moves[1:] |= actions[start + 1 : stop, -1] != actions[start : stop - 1, -1]
        first = int(np.argmax(moves)) if moves.any() else int(stop - start)
        ranges[key] = [(first, int(stop - start))] if moves.any() else []
    return ranges


def relabelled_actions(
    state: Float[np.ndarray, "t 7"], actions: Float[np.ndarray, "t 7"]
) -> Float[np.ndarray, "t-2 7"]:
    """The movements between reached states with decided gripper commands, for steps 1 to t - 2 of an episode.

    Source: OpenVLA, relabel_bridge_actions. Unlike it, a difference of angles is taken the short way round.
    """
    if len(state) < 3:
        raise errors.DataError("an episode to relabel", expected="3 steps or more", found=len(state))
    moved = np.diff(state[1:, MOVEMENT_DIMS], axis=0)
    moved[:, 3:] = (moved[:, 3:] + np.pi) % (2 * np.pi) - np.pi
    return np.concatenate([moved, decided_gripper(actions[1:, -1])[:-1, None]], axis=1).astype(np.float32)


def decided_gripper(commands: Float[np.ndarray, "t"]) -> Float[np.ndarray, "t"]:
    """Commands as 0 (closed) or 1 (open): one in between becomes the next decided one after it.

    Unlike in OpenVLA, where commands in between at the end of an episode stay so, they become the nearer of the two.
    """
    decided = np.where(commands > _OPEN, 1.0, np.where(commands < _CLOSED, 0.0, np.nan))
    following = 1.0 if commands[-1] > 0.5 else 0.0
    for t in reversed(range(len(commands))):
        following = decided[t] = following if np.isnan(decided[t]) else decided[t]
    return decided.astype(np.float32)


def relabel(dataset: RldsDataset, folder: str | Path, progress: Callable[[int, int], None] | None = None) -> Path:
    """Write the split with relabelled actions as a dataset of its own, in the same format, pictures untouched.

    Episodes of fewer than 3 steps are left out. `progress` is told (episodes done, episodes in all). Raises DataError
    when `folder` already holds something or an episode is damaged.
    """
    folder = Path(folder)
    features = tfds.features.FeaturesDict.from_config(str(dataset.folder))
    with RldsWriter(
        folder,
        features,
        dataset.info.name,
        dataset.info.version,
        file_format=dataset.info.file_format,
        description=f"{dataset.info.description} Movements relabelled with reached states.".strip(),
        metadata={**dataset.info.metadata, "relabelled_from": str(dataset.folder)},
    ) as writer:
        for number in range(len(dataset)):
            episode = _relabelled(dataset, number)
            if episode is not None:
                writer.write(episode, dataset.split)
            if progress is not None:
                progress(number + 1, len(dataset))
    return folder


def _relabelled(dataset: RldsDataset, number: int) -> Episode | None:
    start, stop = (int(frame) for frame in dataset.episode_starts[number : number + 2])
    if stop - start < 3:
        return None
    frames = range(start + 1, stop - 1)
    steps, metadata = {}, {}
    for name, spec in dataset.specs.items():
        if not spec.is_step:
            is_text = spec.kind == "text"
            metadata[name] = (
                dataset.texts(name)[dataset.text_ids(name)[number]] if is_text else dataset.columns[name][number]
            )
        elif spec.kind == "image":
            steps[name] = [dataset.image_bytes(frame, name) for frame in frames]
        elif spec.kind == "text":
            steps[name] = [dataset.texts(name)[i] for i in dataset.text_ids(name)[start + 1 : stop - 1]]
        else:
            steps[name] = np.array(dataset.columns[name][start + 1 : stop - 1])
    columns = [np.asarray(dataset.columns[name][start:stop]) for name in ("observation/state", "action")]
    steps["action"] = relabelled_actions(*columns)
    for name in _OF_THE_START & steps.keys():
        steps[name][0] = dataset.columns[name][start]
    for name in _OF_THE_END & steps.keys():
        steps[name][-1] = dataset.columns[name][stop - 1]
    return Episode(steps, metadata)
