"""One LIBERO episode in memory, on disk as a part file, and as a record of the `libero_*_no_noops` RLDS schema.

steps: observation/{image, wrist_image: uint8 [256, 256, 3] JPEG, rotated by 180 degrees; state f32 [8];
       joint_state f32 [7]}, action f32 [7], reward, discount, is_first, is_last, is_terminal, language_instruction
episode: episode_metadata/file_path
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool, Float, Float32, Float64

from vla_jax.core import errors
from vla_jax.core.images import average_blocks
from vla_jax.data.formats import image_codec
from vla_jax.data.formats.features import Episode
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.data.formats.rlds_writer import RldsWriter
from vla_jax.envs.libero_sim import LiberoSim, encode_jpeg, rotate_180
from vla_jax.evaluation.libero_replay import Start, has_starts, load_starts, save_starts

VERSION = "1.0.0"
IMAGE_SIZE = 256
JPEG_QUALITY = 95  # TensorFlow's default, which the published sets were encoded with
_NO_OP_NORM = 1e-4  # OpenVLA's threshold on the six motion entries


@dataclasses.dataclass(frozen=True)
class LiberoEpisode:
    """A successful episode; row t is what was seen before action t."""

    file_path: str
    instruction: str
    images: tuple[bytes, ...]  # JPEG, agentview
    wrist_images: tuple[bytes, ...]
    state: Float32[np.ndarray, "t 8"]
    joint_state: Float32[np.ndarray, "t 7"]
    actions: Float32[np.ndarray, "t 7"]  # as executed; gripper -1 open, +1 closed
    suite: str
    task: int
    init_state: Float64[np.ndarray, "d"]  # simulator state before settling; empty where it is not known
    scene_seed: int  # places the fixtures, see LiberoSim.reset

    def __post_init__(self):
        lengths = {len(self.images), len(self.wrist_images), len(self.state), len(self.joint_state), len(self.actions)}
        if len(lengths) != 1 or lengths == {0}:
            raise errors.DataError(f"episode {self.file_path}", expected="as many of each", found=sorted(lengths))


def keep_mask(actions: Float[np.ndarray, "t 7"]) -> Bool[np.ndarray, "t"]:
    """False for no-ops: (almost) no motion, and the gripper as in the last kept action.

    Source: OpenVLA, experiments/robot/libero/regenerate_libero_dataset.py, is_noop.
    """
    keep = np.zeros(len(actions), bool)
    last_gripper = None
    for i, action in enumerate(np.asarray(actions)):
        still = np.linalg.norm(action[:-1]) < _NO_OP_NORM
        keep[i] = not (still and last_gripper in (None, action[-1]))
        if keep[i]:
            last_gripper = action[-1]
    return keep


def replay(sim: LiberoSim, suite: str, task: int, init_state: np.ndarray, scene_seed: int, actions: np.ndarray) -> bool:
    """Whether the actions, from a settled `init_state`, succeed."""
    sim.reset(suite, task, init_state, scene_seed)
    return any(sim.step(action)[1] for action in actions)


def record(
    sim: LiberoSim, suite: str, task: int, init_state: np.ndarray, scene_seed: int, actions: np.ndarray, file_path: str
) -> LiberoEpisode | None:
    """Run the actions and look before each; None unless they succeed. Ends with the step that succeeds.

    Actions rather than stored states are replayed: images and states are then what the same step shows at evaluation.
    """
    sim.reset(suite, task, init_state, scene_seed)
    rows: list[tuple[bytes, bytes, np.ndarray, np.ndarray]] = []
    for end, action in enumerate(actions, start=1):
        pixels = sim.raw_images()
        front, wrist = (encode_jpeg(rotate_180(pixels[name]), JPEG_QUALITY) for name in ("front", "wrist"))
        rows.append((front, wrist, sim.state(), sim.joint_state()))
        _, success = sim.step(action)
        if success:
            images, wrist_images, states, joints = zip(*rows, strict=True)
            return LiberoEpisode(
                file_path=file_path,
                instruction=sim.task.instruction,
                images=images,
                wrist_images=wrist_images,
                state=np.stack(states),
                joint_state=np.stack(joints),
                actions=np.asarray(actions[:end], np.float32),
                suite=suite,
                task=task,
                init_state=np.asarray(init_state, np.float64),
                scene_seed=scene_seed,
            )
    return None


def save_part(path: Path, episode: LiberoEpisode) -> None:
    """Write one episode under a temporary name and rename it, so that a part that exists is whole."""
    arrays: dict[str, Any] = {}
    for field in dataclasses.fields(episode):
        value = getattr(episode, field.name)
        if isinstance(value, tuple):  # JPEGs of different lengths: their bytes in a row, and where each ends
            arrays[field.name] = np.frombuffer(b"".join(value), np.uint8)
            arrays[field.name + "_ends"] = np.cumsum([len(item) for item in value])
        else:
            arrays[field.name] = np.asarray(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
    temporary.replace(path)


def load_part(path: Path) -> LiberoEpisode:
    with np.load(path, allow_pickle=False) as arrays:
        values = {field.name: arrays[field.name] for field in dataclasses.fields(LiberoEpisode)}
        for name in ("images", "wrist_images"):
            ends = arrays[name + "_ends"]
            joined = values[name].tobytes()
            values[name] = tuple(joined[start:end] for start, end in zip((0, *ends[:-1]), ends, strict=True))
    for name in ("file_path", "instruction", "suite", "task", "scene_seed"):
        values[name] = values[name].item()
    return LiberoEpisode(**values)


def features(image_size: int = IMAGE_SIZE) -> tfds.features.FeaturesDict:
    """Names, shapes and types of the published `libero_*_no_noops` sets, whose pictures have 256 pixels a side."""

    def image():
        return tfds.features.Image(shape=(image_size, image_size, 3), dtype=np.uint8, encoding_format="jpeg")

    def vector(size: int):
        return tfds.features.Tensor(shape=(size,), dtype=np.float32)

    step = {
        "observation": {
            "image": image(),
            "wrist_image": image(),
            "state": vector(8),
            "joint_state": vector(7),
        },
        "action": vector(7),
        "discount": tfds.features.Scalar(dtype=np.float32),
        "reward": tfds.features.Scalar(dtype=np.float32),
        "is_first": tfds.features.Scalar(dtype=np.bool_),
        "is_last": tfds.features.Scalar(dtype=np.bool_),
        "is_terminal": tfds.features.Scalar(dtype=np.bool_),
        "language_instruction": tfds.features.Text(),
    }
    return tfds.features.FeaturesDict(
        {"steps": tfds.features.Dataset(step), "episode_metadata": {"file_path": tfds.features.Text()}}
    )


def to_rlds(episode: LiberoEpisode) -> Episode:
    """Reward 1 and the terminal flag on the last step, discount 1 throughout, as in the published sets."""
    length = len(episode.actions)
    last = np.arange(length) == length - 1
    return Episode(
        steps={
            "observation/image": episode.images,
            "observation/wrist_image": episode.wrist_images,
            "observation/state": episode.state,
            "observation/joint_state": episode.joint_state,
            "action": episode.actions,
            "discount": np.ones(length, np.float32),
            "reward": last.astype(np.float32),
            "is_first": np.arange(length) == 0,
            "is_last": last,
            "is_terminal": last,
            "language_instruction": episode.instruction,
        },
        metadata={"episode_metadata/file_path": episode.file_path},
    )


def write_dataset(
    out: Path,
    episodes: Iterable[LiberoEpisode],
    *,
    description: str,
    metadata: Mapping[str, Any],
    image_size: int = IMAGE_SIZE,
) -> Path:
    """Write `out/1.0.0` (RLDS) and, where simulator states are known, `out/episodes.jsonl`; returns the former.

    The dataset is called as `out` is. Episodes are taken one at a time. Raises DataError when it exists.
    """
    folder = out / VERSION
    starts: list[Start] = []
    writer = RldsWriter(folder, features(image_size), out.name, VERSION, description=description, metadata=metadata)
    with writer:
        for episode in episodes:
            writer.write(to_rlds(episode))
            if episode.init_state.size:
                starts.append(_start(episode))
        if starts:
            save_starts(out, starts)
    return folder


def read_dataset(dataset: RldsDataset) -> Iterator[LiberoEpisode]:
    """The episodes of a set in this schema, pictures still encoded, with their simulator states where kept."""
    known: dict[str, Start] = {}
    if has_starts(dataset.folder):
        known = {start.file_path: start for start in load_starts(dataset.folder)}
    bounds, columns = dataset.episode_starts, dataset.columns
    for i in range(len(dataset)):
        frames = range(bounds[i], bounds[i + 1])
        file_path = _text(dataset, "episode_metadata/file_path", i)
        start = known.get(file_path, Start(file_path, "", -1, 0, len(frames), np.zeros(0)))
        yield LiberoEpisode(
            file_path=file_path,
            instruction=_text(dataset, "language_instruction", frames[0]),
            images=tuple(dataset.image_bytes(frame, "observation/image") for frame in frames),
            wrist_images=tuple(dataset.image_bytes(frame, "observation/wrist_image") for frame in frames),
            state=np.array(columns["observation/state"][frames.start : frames.stop]),
            joint_state=np.array(columns["observation/joint_state"][frames.start : frames.stop]),
            actions=np.array(columns["action"][frames.start : frames.stop]),
            suite=start.suite,
            task=start.task,
            init_state=start.init_state,
            scene_seed=start.scene_seed,
        )


def _text(dataset: RldsDataset, name: str, row: int) -> str:
    return dataset.texts(name)[dataset.text_ids(name)[row]]


def shrink(episode: LiberoEpisode, factor: int) -> LiberoEpisode:
    """Every picture smaller by an integer factor, as `RenderOptions.downscale` makes it at evaluation."""

    def smaller(data: bytes) -> bytes:
        return encode_jpeg(average_blocks(image_codec.decode(data), factor), JPEG_QUALITY)

    return dataclasses.replace(
        episode,
        images=tuple(smaller(data) for data in episode.images),
        wrist_images=tuple(smaller(data) for data in episode.wrist_images),
    )


def _start(episode: LiberoEpisode) -> Start:
    return Start(
        file_path=episode.file_path,
        suite=episode.suite,
        task=episode.task,
        scene_seed=episode.scene_seed,
        num_steps=len(episode.actions),
        init_state=episode.init_state,
    )
