"""Episodes from RLDS to LeRobot v3.0 and back, one at a time, whole or not at all.

    rlds_to_lerobot("data/tabletop/1.0.0", "data/tabletop_lerobot", ToLeRobotOptions(fps=20))
    lerobot_to_rlds("data/pusht", "data/pusht_rlds/1.0.0", ToRldsOptions())

Numbers and texts come out as they went in (float64 as 32 bits, as everywhere here). Pictures lose a little in a video
or when they become JPEG; they lose nothing where they are stored one by one on both sides (JPEG stays the same JPEG),
or become PNG. The target appears under its name only when it is complete. A conversion that was stopped goes on from
its last full file when it is called again with the same source and options, and ends with the same bytes.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import tensorflow_datasets as tfds

from vla_jax.core import errors
from vla_jax.data import statistics
from vla_jax.data.formats import features as rlds_features
from vla_jax.data.formats import image_codec
from vla_jax.data.formats.episodes import EpisodeDataset, assemble
from vla_jax.data.formats.faults import SKIP_AND_COUNT, FaultPolicy
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.data.formats.rlds_writer import FileFormat, RldsWriter
from vla_jax.data.formats.specs import Episode, FeatureSpec
from vla_jax.data.open import open_dataset

Progress = Callable[[int, int], None]  # episodes done, of how many
Pictures = Literal["jpeg", "png"]
_FRAMES_AT_ONCE = 32
_MAGIC = {"jpeg": b"\xff\xd8", "png": b"\x89PNG"}


@dataclasses.dataclass(frozen=True)
class ToLeRobotOptions:
    """How RLDS becomes LeRobot."""

    fps: float  # control steps per second; RLDS does not record it
    split: str = "train"
    names: tuple[str, ...] | None = None  # features to take, by default all
    pictures: Literal["video", "parquet"] = "video"  # parquet: JPEG and PNG as they are, larger and without loss
    codec: Literal["h264", "av1"] = "h264"
    crf: int = 20  # of the video, smaller is better
    keyframe_interval: int = 2  # frames
    max_data_bytes: int = 100 << 20  # of a file of numbers (and pictures in parquet): a stop costs at most one file
    max_video_bytes: int = 200 << 20
    robot_type: str = "unknown"


@dataclasses.dataclass(frozen=True)
class ToRldsOptions:
    """How LeRobot becomes RLDS."""

    split: str = "train"
    names: tuple[str, ...] | None = None  # features to take, by default all
    dataset_name: str | None = None  # by default the name of the source's folder
    version: str = "1.0.0"
    file_format: FileFormat = "array_record"
    pictures: Pictures = "jpeg"
    jpeg_quality: int = 95
    max_shard_bytes: int = 256 << 20  # a stop costs at most one shard
    successful: bool = True  # where the source has no reward and flags: 1 and the end of the task at the last step


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """What was written and what was not."""

    num_episodes: int
    num_frames: int
    damaged_episodes: tuple[str, ...]  # left out because of a picture
    faults: Mapping[str, int]  # by kind, since it was begun or gone on with; what was left out while the source was
    # indexed is only counted here
    left_out: tuple[str, ...]  # features that the target has no place for


@runtime_checkable
class HasImageBytes(Protocol):
    """A dataset that may keep the pictures of some cameras one by one, encoded."""

    def is_encoded(self, name: str) -> bool: ...

    def image_bytes(self, frame: int, name: str) -> bytes: ...


def rlds_to_lerobot(
    source: str | Path | EpisodeDataset,
    out: str | Path,
    options: ToLeRobotOptions,
    *,
    progress: Progress | None = None,
    faults: FaultPolicy = SKIP_AND_COUNT,
) -> ConversionReport:
    """Write `source` (a folder or an open dataset of any format) as a LeRobot v3.0 dataset in the folder `out`.

    The text `language_instruction` becomes the task, other texts string columns, features of the episode columns of the
    table of episodes. Every picture is decoded twice when videos are written: once to know that its episode is whole.
    Raises DataError when `out` holds something, the features cannot be written or `faults` does not tolerate damage.
    """
    from vla_jax.data.formats.lerobot_writer import REGENERATED, LeRobotWriter, LeRobotWriterConfig
    from vla_jax.data.formats.video_writer import VideoConfig

    dataset = _open(source, options.split, options.names, faults)
    config = LeRobotWriterConfig(
        fps=options.fps,
        pictures=options.pictures,
        video=VideoConfig(options.codec, options.crf, options.keyframe_interval, options.max_video_bytes),
        robot_type=options.robot_type,
        max_data_file_bytes=options.max_data_bytes,
    )
    specs = _step_pictures_only(dataset)
    with LeRobotWriter(out, specs, config, _identity(dataset, specs, options)) as writer:
        done = _Done(**writer.notes)
        for i in range(done.num_episodes, len(dataset)):
            if not all(_is_whole(dataset, name, i) for name in _cameras(specs)):
                done = done.and_damaged(dataset.describe_frame(int(dataset.episode_starts[i])))
            else:
                pictures = {name: _pictures(dataset, name, i, options.pictures) for name in _cameras(specs)}
                writer.write(assemble(dataset, specs, i, pictures), notes=dataclasses.asdict(done))
                done = done.and_written(_length(dataset, i))
            if progress is not None:
                progress(i + 1, len(dataset))
    left_out = (*sorted(dataset.specs.keys() - specs.keys()), *sorted(specs.keys() & set(REGENERATED)))
    return _report(dataset, done, left_out)


def lerobot_to_rlds(
    source: str | Path | EpisodeDataset,
    out: str | Path,
    options: ToRldsOptions,
    *,
    progress: Progress | None = None,
    faults: FaultPolicy = SKIP_AND_COUNT,
) -> ConversionReport:
    """Write `source` (a folder or an open dataset of any format) as an RLDS dataset in the version folder `out`.

    What RLDS asks of every step and the source lacks (reward, discount, is_first, is_last, is_terminal) is added, see
    `ToRldsOptions.successful`. Raises DataError when `out` holds something or `faults` does not tolerate the damage.
    """
    dataset = _open(source, options.split, options.names, faults)
    specs = _step_pictures_only(dataset)
    added = _missing_flags(specs, 1, options.successful)
    flags = [FeatureSpec(name, "tensor", (), value.dtype.name, True) for name, value in added.items()]
    features = _rlds_features([*specs.values(), *flags], options.pictures)
    writer = RldsWriter(
        out,
        features,
        options.dataset_name or _dataset_name(source, dataset),
        options.version,
        options.file_format,
        max_shard_bytes=options.max_shard_bytes,
        jpeg_quality=options.jpeg_quality,
        identity=_identity(dataset, specs, options),
    )
    with writer:
        done = _Done(**writer.notes)
        for i in range(done.num_episodes, len(dataset)):
            encoded = {name: _encoded(dataset, name, i, options) for name in _cameras(specs)}
            if any(pictures is None for pictures in encoded.values()):
                done = done.and_damaged(dataset.describe_frame(int(dataset.episode_starts[i])))
            else:
                episode = assemble(dataset, specs, i, encoded)
                length = _length(dataset, i)
                steps = {**episode.steps, **_missing_flags(specs, length, options.successful)}
                writer.write(Episode(steps, episode.metadata), notes=dataclasses.asdict(done))
                done = done.and_written(length)
            if progress is not None:
                progress(i + 1, len(dataset))
    return _report(dataset, done, sorted(dataset.specs.keys() - specs.keys()))


@dataclasses.dataclass(frozen=True)
class _Done:
    """How far a conversion is; what goes with every finished file."""

    num_episodes: int = 0  # of the source, damaged ones included
    num_frames: int = 0  # written
    damaged: Sequence[str] = ()

    def and_damaged(self, place: str) -> "_Done":
        return dataclasses.replace(self, num_episodes=self.num_episodes + 1, damaged=(*self.damaged, place))

    def and_written(self, length: int) -> "_Done":
        return dataclasses.replace(self, num_episodes=self.num_episodes + 1, num_frames=self.num_frames + length)


def _identity(
    dataset: EpisodeDataset, specs: Mapping[str, FeatureSpec], options: ToLeRobotOptions | ToRldsOptions
) -> str:
    """Changes when the source or the options do: then nothing that was written before is of use."""
    numbers = statistics.fingerprint(dataset, sorted(name for name, spec in specs.items() if spec.kind == "tensor"))
    return hashlib.sha256(f"{dataset.place} {numbers} {list(specs.values())} {options}".encode()).hexdigest()


def _open(
    source: str | Path | EpisodeDataset, split: str, names: Sequence[str] | None, faults: FaultPolicy
) -> EpisodeDataset:
    return open_dataset(source, split, names=names, faults=faults) if isinstance(source, str | Path) else source


def _dataset_name(source: str | Path | EpisodeDataset, dataset: EpisodeDataset) -> str:
    if isinstance(source, str | Path):
        return Path(source).resolve().name
    raise errors.ConfigError(
        "ToRldsOptions.dataset_name", expected="a name, where the source is no folder", found=dataset.place
    )


def _step_pictures_only(dataset: EpisodeDataset) -> dict[str, FeatureSpec]:
    """The features that can be converted, pictures with their real size: all but pictures of whole episodes."""
    return {
        name: dataclasses.replace(spec, shape=dataset.image_shape(name)) if spec.kind == "image" else spec
        for name, spec in dataset.specs.items()
        if spec.is_step or spec.kind != "image"
    }


def _cameras(specs: Mapping[str, FeatureSpec]) -> list[str]:
    return [name for name, spec in specs.items() if spec.kind == "image"]


def _length(dataset: EpisodeDataset, i: int) -> int:
    return int(dataset.episode_starts[i + 1] - dataset.episode_starts[i])


def _decoded(dataset: EpisodeDataset, name: str, i: int) -> Iterator[tuple[np.ndarray, bool]]:
    """The pictures of an episode and whether they are whole; where the set allows a picture to be absent, black is."""
    start, stop = map(int, dataset.episode_starts[i : i + 2])
    may_be_absent = dataset.specs[name].optional
    for first in range(start, stop, _FRAMES_AT_ONCE):
        frames = np.arange(first, min(first + _FRAMES_AT_ONCE, stop))
        out = np.zeros((len(frames), *dataset.image_shape(name)), np.uint8)
        known = len(dataset.faults)
        ok = dataset.read_images(frames, name, out)
        if may_be_absent and len(dataset.faults) == known:
            ok = np.ones(len(frames), bool)
        yield from zip(out, ok.tolist(), strict=True)


def _is_whole(dataset: EpisodeDataset, name: str, i: int) -> bool:
    return all(ok for _, ok in _decoded(dataset, name, i))


def _keeps_encoded(dataset: EpisodeDataset, name: str) -> bool:
    return isinstance(dataset, RldsDataset) or (isinstance(dataset, HasImageBytes) and dataset.is_encoded(name))


def _pictures(dataset: EpisodeDataset, name: str, i: int, kept: Literal["video", "parquet"]) -> Iterator[Any]:
    """The pictures of a whole episode for the LeRobot writer: as they are stored if they can stay so, or decoded."""
    if kept == "video" or not _keeps_encoded(dataset, name):
        yield from (picture for picture, _ in _decoded(dataset, name, i))
        return
    for frame in range(*map(int, dataset.episode_starts[i : i + 2])):
        yield dataset.image_bytes(frame, name) or np.zeros(dataset.image_shape(name), np.uint8)


def _encoded(dataset: EpisodeDataset, name: str, i: int, options: ToRldsOptions) -> list[bytes] | None:
    """The pictures of an episode in the wanted format, as they are stored where that is it; None if one is damaged."""
    keeps, start = _keeps_encoded(dataset, name), int(dataset.episode_starts[i])
    result = []
    for frame, (picture, ok) in enumerate(_decoded(dataset, name, i), start):
        if not ok:
            return None
        data = dataset.image_bytes(frame, name) if keeps else b""
        if not data.startswith(_MAGIC[options.pictures]):
            data = (
                image_codec.encode_png(picture)
                if options.pictures == "png"
                else image_codec.encode_jpeg(picture, options.jpeg_quality)
            )
        result.append(data)
    return result


def _missing_flags(specs: Mapping[str, FeatureSpec], num_steps: int, successful: bool) -> dict[str, np.ndarray]:
    flags = rlds_features.demonstration_flags(num_steps)
    if not successful:
        nothing = np.zeros(num_steps, np.float32)
        flags |= {"reward": nothing, "discount": nothing + 1, "is_terminal": np.zeros(num_steps, bool)}
    return {name: value for name, value in flags.items() if name not in specs}


def _rlds_features(specs: Sequence[FeatureSpec], pictures: Pictures) -> tfds.features.FeaturesDict:
    """The flat names as the tree that TFDS wants."""
    root: dict[str, Any] = {"steps": {}}
    for spec in specs:
        *folders, leaf = spec.name.split("/")
        node = root["steps"] if spec.is_step else root
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = _connector(spec, pictures)
    return tfds.features.FeaturesDict({**root, "steps": tfds.features.Dataset(root["steps"])})


def _connector(spec: FeatureSpec, pictures: Pictures) -> tfds.features.FeatureConnector:
    if spec.kind == "image":
        return tfds.features.Image(shape=spec.shape, dtype=np.uint8, encoding_format=pictures)
    if spec.kind == "text":
        return tfds.features.Text()
    dtype = np.dtype(spec.dtype).type
    return tfds.features.Tensor(shape=spec.shape, dtype=dtype) if spec.shape else tfds.features.Scalar(dtype=dtype)


def _report(dataset: EpisodeDataset, done: _Done, left_out: Sequence[str]) -> ConversionReport:
    return ConversionReport(
        num_episodes=len(dataset) - len(done.damaged),
        num_frames=done.num_frames,
        damaged_episodes=tuple(done.damaged),
        faults=dataset.faults.counts(),
        left_out=tuple(left_out),
    )
