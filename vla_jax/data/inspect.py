"""What is in a dataset, for people: schema, counts, instructions, ranges, and a sheet of pictures."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from rich.console import Group
from rich.table import Table

from vla_jax.data.formats.features import FeatureSpec
from vla_jax.data.formats.rlds import DatasetInfo, RldsDataset, load_info
from vla_jax.data.normalization import FieldStatistics, Statistics

_INSTRUCTION = "language_instruction"
_WIDEST_RANGE = 32  # dims; an embedding has hundreds and its ranges tell nobody anything
_THUMBNAIL_HEIGHT, _CAPTION_HEIGHT, _GAP = 128, 16, 4  # pixels


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """One split of a dataset."""

    name: str
    num_episodes: int
    num_frames: int
    num_shards: int
    num_bytes: int  # on disk
    episode_lengths: tuple[int, int, int]  # shortest, median, longest
    instructions: Mapping[str, int]  # -> episodes that begin with it, most frequent first
    ranges: Mapping[str, FieldStatistics]  # of the vectors and scalars of a step


@dataclasses.dataclass(frozen=True)
class Report:
    """A whole dataset."""

    folder: Path
    info: DatasetInfo
    features: Mapping[str, FeatureSpec]
    splits: tuple[SplitReport, ...]

    def __rich__(self) -> Group:
        return Group(*_parts(self))


def inspect(folder: str | Path, cache_folder: str | Path | None = None) -> Report:
    """Read every split of the dataset in `folder`; pictures are located but not decoded. Raises DataError."""
    info = load_info(folder)
    datasets = [RldsDataset(folder, split, cache_folder=cache_folder) for split in info.splits]
    features = datasets[0].specs if datasets else {}
    return Report(Path(folder), info, features, tuple(_report_split(dataset) for dataset in datasets))


def statistics_table(statistics: Statistics) -> Table:
    """Every dim of state and actions with its moments, quantiles and extremes."""
    table = Table(title=f"normalization statistics over {statistics.actions.count:,} frames", title_justify="left")
    for heading in ("field", "dim", "mean", "std", "q01", "q99", "min", "max"):
        table.add_column(heading, justify="left" if heading == "field" else "right")
    for name, field in (("state", statistics.state), ("actions", statistics.actions)):
        for dim in range(field.dim):
            row = (field.mean, field.std, field.q01, field.q99, field.min, field.max)
            table.add_row(name, str(dim), *(f"{values[dim]:.4g}" for values in row))
    return table


def contact_sheet(dataset: RldsDataset, path: str | Path, num_episodes: int = 6) -> Path:
    """A PNG with one row per episode (evenly spread over the split): first, middle and last frame of every camera."""
    chosen = np.unique(np.linspace(0, len(dataset) - 1, num_episodes).round().astype(int))
    rows = [_sheet_row(dataset, int(episode)) for episode in chosen]
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def _report_split(dataset: RldsDataset) -> SplitReport:
    shards = dataset.info.splits[dataset.split]
    lengths = np.diff(dataset.episode_starts)
    ranges = {
        name: FieldStatistics.of(np.asarray(column, np.float64).reshape(len(column), -1))
        for name, column in dataset.columns.items()
        if dataset.specs[name].is_step and column.dtype != bool and np.prod(column.shape[1:]) <= _WIDEST_RANGE
    }
    return SplitReport(
        name=dataset.split,
        num_episodes=len(dataset),
        num_frames=dataset.num_frames,
        num_shards=len(shards),
        num_bytes=sum(shard.path.stat().st_size for shard in shards),
        episode_lengths=(int(lengths.min()), int(np.median(lengths)), int(lengths.max())),
        instructions=_count_instructions(dataset),
        ranges=ranges,
    )


def _count_instructions(dataset: RldsDataset) -> dict[str, int]:
    if _INSTRUCTION not in dataset.specs:
        return {}
    ids = np.asarray(dataset.text_ids(_INSTRUCTION))[np.asarray(dataset.episode_starts[:-1])]
    counts = np.bincount(ids, minlength=len(dataset.texts(_INSTRUCTION)))
    order = np.argsort(-counts, kind="stable")
    return {dataset.texts(_INSTRUCTION)[i]: int(counts[i]) for i in order if counts[i]}


def _parts(report: Report) -> Iterator[str | Table]:
    info = report.info
    yield f"{info.name} {info.version}, {info.file_format}, in {report.folder}"
    if info.description:
        yield info.description
    schema = Table("feature", "kind", "type", "shape", title="schema", title_justify="left")
    for name, spec in report.features.items():
        shown = f"steps/{name}" if spec.is_step else name
        schema.add_row(shown, spec.kind, "string" if spec.kind == "text" else spec.dtype, str(list(spec.shape)))
    yield schema
    for split in report.splits:
        yield from _split_parts(split)


def _split_parts(split: SplitReport) -> Iterator[str | Table]:
    shortest, median, longest = split.episode_lengths
    yield (
        f"split {split.name}: {split.num_episodes:,} episodes, {split.num_frames:,} frames, "
        f"{split.num_bytes / 1e6:,.1f} MB in {split.num_shards} shards, "
        f"{shortest} to {longest} steps per episode (median {median})"
    )
    instructions = Table(
        "episodes", "instruction", title=f"{len(split.instructions)} instructions", title_justify="left"
    )
    for text, count in list(split.instructions.items())[:20]:
        instructions.add_row(f"{count:,}", text or "(empty)")
    if len(split.instructions) > 20:
        instructions.add_row("", f"and {len(split.instructions) - 20} more")
    yield instructions
    ranges = Table("feature", "dim", "min", "q01", "mean", "q99", "max", title="ranges", title_justify="left")
    for name, field in split.ranges.items():
        for dim in range(field.dim):
            values = (field.min[dim], field.q01[dim], field.mean[dim], field.q99[dim], field.max[dim])
            ranges.add_row(name if dim == 0 else "", str(dim), *(f"{value:.4g}" for value in values))
    yield ranges


def _sheet_row(dataset: RldsDataset, episode: int) -> Image.Image:
    start, stop = map(int, dataset.episode_starts[episode : episode + 2])
    frames = (start, (start + stop - 1) // 2, stop - 1)
    pictures = [_thumbnail(dataset.image(frame, camera)) for camera in dataset.cameras for frame in frames]
    width = sum(picture.width + _GAP for picture in pictures)
    row = Image.new("RGB", (max(width, 1), _CAPTION_HEIGHT + _THUMBNAIL_HEIGHT + _GAP), "white")
    ImageDraw.Draw(row).text((2, 2), _caption(dataset, episode, start), fill="black")
    left = 0
    for picture in pictures:
        row.paste(picture, (left, _CAPTION_HEIGHT))
        left += picture.width + _GAP
    return row


def _thumbnail(picture: np.ndarray) -> Image.Image:
    image = Image.fromarray(picture)
    return image.resize((round(image.width * _THUMBNAIL_HEIGHT / image.height), _THUMBNAIL_HEIGHT))


def _caption(dataset: RldsDataset, episode: int, start: int) -> str:
    cameras = ", ".join(name.removeprefix("observation/") for name in dataset.cameras)
    words = ""
    if _INSTRUCTION in dataset.specs:
        words = dataset.texts(_INSTRUCTION)[int(dataset.text_ids(_INSTRUCTION)[start])]
    return f"episode {episode}: {words}   (first, middle, last of {cameras})"
