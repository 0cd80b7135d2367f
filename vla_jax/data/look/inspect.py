"""What is in a dataset, for people: schema, counts, instructions, ranges, damage, and a sheet of pictures."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from rich.console import Group
from rich.table import Table

from vla_jax.data import statistics
from vla_jax.data.formats.episodes import EpisodeDataset
from vla_jax.data.formats.faults import Fault
from vla_jax.data.formats.features import FeatureSpec
from vla_jax.data.look.layout import read_layout
from vla_jax.data.normalization import FieldStatistics, Statistics
from vla_jax.data.open import open_dataset

_INSTRUCTION = "language_instruction"
_FAULTS_SHOWN = 10
_WIDEST_RANGE = 32  # dims; an embedding has hundreds and its ranges tell nobody anything
_THUMBNAIL_HEIGHT, _CAPTION_HEIGHT, _GAP = 128, 16, 4  # pixels


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """One split of a dataset."""

    name: str
    num_episodes: int
    num_frames: int
    num_files: int
    num_bytes: int  # on disk
    episode_lengths: tuple[int, int, int]  # shortest, median, longest
    instructions: Mapping[str, int]  # -> episodes that begin with it, most frequent first
    ranges: Mapping[str, FieldStatistics]  # of the vectors and scalars of a step, over its finite rows
    faults: tuple[Fault, ...]  # met while indexing


@dataclasses.dataclass(frozen=True)
class Report:
    """A whole dataset."""

    title: str
    description: str
    features: Mapping[str, FeatureSpec]
    splits: tuple[SplitReport, ...]

    def __rich__(self) -> Group:
        return Group(*_parts(self))


def inspect(folder: str | Path, cache_folder: str | Path | None = None) -> Report:
    """Read every split of the dataset in `folder`; pictures are located but not decoded. Raises DataError."""
    layout = read_layout(folder)
    datasets = {split: open_dataset(folder, split, cache_folder=cache_folder) for split in layout.splits}
    reports = tuple(report_split(dataset, split, layout.splits[split]) for split, dataset in datasets.items())
    specs = next((dataset.specs for dataset in datasets.values()), {})
    return Report(layout.title, layout.description, specs, reports)


def report_split(dataset: EpisodeDataset, name: str, files: Sequence[Path]) -> SplitReport:
    """What is in one split, which is stored in `files`."""
    lengths = np.diff(dataset.episode_starts)
    ranges = {
        feature: found
        for feature, spec in dataset.specs.items()
        if spec.is_step and spec.kind == "tensor" and (found := _range(dataset.columns[feature])) is not None
    }
    return SplitReport(
        name=name,
        num_episodes=len(dataset),
        num_frames=dataset.num_frames,
        num_files=len(files),
        num_bytes=sum(file.stat().st_size for file in files),
        episode_lengths=(int(lengths.min()), int(np.median(lengths)), int(lengths.max())),
        instructions=_count_instructions(dataset),
        ranges=ranges,
        faults=dataset.faults.faults,
    )


def statistics_table(computed: Statistics) -> Table:
    """Every dim of state and actions with its moments, quantiles and extremes."""
    table = Table(title=f"normalization statistics over {computed.actions.count:,} frames", title_justify="left")
    for heading in ("field", "dim", "mean", "std", "q01", "q99", "min", "max"):
        table.add_column(heading, justify="left" if heading == "field" else "right")
    for name, field in (("state", computed.state), ("actions", computed.actions)):
        for dim in range(field.dim):
            row = (field.mean, field.std, field.q01, field.q99, field.min, field.max)
            table.add_row(name, str(dim), *(f"{values[dim]:.4g}" for values in row))
    return table


def contact_sheet(dataset: EpisodeDataset, path: str | Path, num_episodes: int = 6) -> Path:
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


def _range(column: np.ndarray) -> FieldStatistics | None:
    """None for what has no range worth a line: bools, wide vectors, columns without a finite row."""
    dim = int(np.prod(column.shape[1:], dtype=np.int64))
    if column.dtype == bool or dim > _WIDEST_RANGE:
        return None
    summary = statistics.Summary(dim)
    for start in range(0, len(column), statistics.CHUNK_FRAMES):
        rows = np.asarray(column[start : start + statistics.CHUNK_FRAMES], np.float32).reshape(-1, dim)
        summary.add(rows[np.isfinite(rows).all(1)])
    return summary.finish() if summary.count else None


def _count_instructions(dataset: EpisodeDataset) -> dict[str, int]:
    if _INSTRUCTION not in dataset.specs:
        return {}
    ids = np.asarray(dataset.text_ids(_INSTRUCTION))[np.asarray(dataset.episode_starts[:-1])]
    counts = np.bincount(ids, minlength=len(dataset.texts(_INSTRUCTION)))
    order = np.argsort(-counts, kind="stable")
    return {dataset.texts(_INSTRUCTION)[i]: int(counts[i]) for i in order if counts[i]}


def _parts(report: Report) -> Iterator[str | Table]:
    yield report.title
    if report.description:
        yield report.description
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
        f"{split.num_bytes / 1e6:,.1f} MB in {split.num_files} files, "
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
    if split.faults:
        kinds = collections.Counter(fault.kind for fault in split.faults)
        damage = Table("kind", "place", "reason", title=f"damaged: {len(split.faults)}", title_justify="left")
        for fault in split.faults[:_FAULTS_SHOWN]:
            damage.add_row(fault.kind, fault.place, fault.reason)
        if len(split.faults) > _FAULTS_SHOWN:
            damage.add_row("", "in all: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items()), "")
        yield damage


def _sheet_row(dataset: EpisodeDataset, episode: int) -> Image.Image:
    start, stop = map(int, dataset.episode_starts[episode : episode + 2])
    frames = np.array([start, (start + stop - 1) // 2, stop - 1])
    pictures = []
    for camera in dataset.cameras:
        shown = np.empty((len(frames), *dataset.image_shape(camera)), np.uint8)
        dataset.read_images(frames, camera, shown)  # a damaged one is black
        pictures += map(_thumbnail, shown)
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


def _caption(dataset: EpisodeDataset, episode: int, start: int) -> str:
    cameras = ", ".join(name.removeprefix("observation/") for name in dataset.cameras)
    words = ""
    if _INSTRUCTION in dataset.specs:
        words = dataset.texts(_INSTRUCTION)[int(dataset.text_ids(_INSTRUCTION)[start])]
    return f"episode {episode}: {words}   (first, middle, last of {cameras})"
