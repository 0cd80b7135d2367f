"""Verbs that read data: inspect, index, stats, view."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import rich.console
import tyro
from rich.table import Table

from vla_jax.core import progress
from vla_jax.data import statistics
from vla_jax.data.formats.episodes import EpisodeDataset
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.data.lint.sample import vectors
from vla_jax.data.look import inspect as inspection
from vla_jax.data.look import view as viewing
from vla_jax.data.look.layout import read_layout
from vla_jax.data.normalization import FieldStatistics, Statistics
from vla_jax.data.open import open_dataset
from vla_jax.evaluation.dataset_quality import QualityCard, quality_card


def inspect(arguments: list[str], console: rich.console.Console) -> None:
    """Schema, counts, sizes, instructions, ranges and damage; a sheet of pictures; how good and varied it is."""

    @dataclasses.dataclass(frozen=True)
    class Inspect:
        dataset: Annotated[str, tyro.conf.Positional]  # an RLDS version folder, or the folder of a LeRobot set
        sheet: str | None = None  # PNG to write: first, middle and last frame of some episodes
        quality: bool = False  # coverage, entropy of actions, returns (arXiv 2111.04714)
        split: str = "train"  # of the sheet and the quality
        state_keys: tuple[str, ...] = ("state",)  # under observation/
        action_keys: tuple[str, ...] = ("action",)
        reference: str | None = None  # of the quality: the set to compare the coverage with
        g_min: float | None = None  # likewise: mean return of a random policy
        g_max: float | None = None  # and the best return seen

    options = tyro.cli(Inspect, args=arguments, prog="vla-jax data inspect", description=inspect.__doc__)
    console.print(inspection.inspect(options.dataset))
    if options.quality:
        card = quality_card(
            open_dataset(options.dataset, options.split),
            tuple(f"observation/{key}" for key in options.state_keys),
            options.action_keys,
            reference=open_dataset(options.reference, options.split) if options.reference else None,
            g_min=options.g_min,
            g_max=options.g_max,
        )
        console.print(_quality_table(card))
    if options.sheet is not None:
        path = inspection.contact_sheet(open_dataset(options.dataset, options.split), options.sheet)
        console.print(f"contact sheet: {path}")


def index(arguments: list[str], console: rich.console.Console) -> None:
    """Find every frame once, in parallel; an interrupted index goes on. Training does it too, when it begins."""

    @dataclasses.dataclass(frozen=True)
    class Index:
        dataset: Annotated[str, tyro.conf.Positional]
        beside_data: bool = False  # RLDS: keep the index in the dataset's folder, for every machine that mounts it
        workers: int | None = None  # RLDS: processes, by default one per core

    options = tyro.cli(Index, args=arguments, prog="vla-jax data index", description=index.__doc__)
    folder = Path(options.dataset)
    for split in read_layout(folder).splits:
        with progress.bar(console) as shown:
            bar = shown.add_task(f"shards of {split}", total=None)
            if (folder / "dataset_info.json").is_file():
                dataset = RldsDataset(
                    folder,
                    split,
                    index_beside_data=options.beside_data,
                    num_workers=options.workers,
                    progress=lambda done, total, bar=bar: shown.update(bar, completed=done, total=total),
                )
            else:
                dataset = open_dataset(folder, split)
        console.print(f"{dataset.place}: {len(dataset):,} episodes, {dataset.num_frames:,} frames")
        for fault in dataset.faults.faults:
            console.print(f"left out, {fault.kind}: {fault.place}: {fault.reason}", markup=False)


def stats(arguments: list[str], console: rich.console.Console) -> None:
    """Normalization statistics of states and actions over all frames of one or several sets together."""

    @dataclasses.dataclass(frozen=True)
    class Stats:
        datasets: Annotated[tuple[str, ...], tyro.conf.Positional]  # RLDS version folders, or folders of LeRobot sets
        split: str = "train"
        state_keys: tuple[str, ...] = ("state",)  # under observation/, joined in this order
        action_keys: tuple[str, ...] = ("action",)  # likewise
        out: str | None = None  # JSON to write

    options = tyro.cli(Stats, args=arguments, prog="vla-jax data stats", description=stats.__doc__)
    fields = [tuple(f"observation/{key}" for key in options.state_keys), options.action_keys]
    names = tuple(name for field in fields for name in field)
    datasets = [open_dataset(folder, options.split, names=names) for folder in options.datasets]
    parts = {"fingerprints": [statistics.fingerprint(dataset, names) for dataset in datasets], "fields": fields}
    with console.status("reading columns"):
        computed = statistics.cached(parts, lambda: Statistics(*(_over(datasets, field) for field in fields)))
    console.print(inspection.statistics_table(computed))
    if options.out is not None:
        computed.save(Path(options.out))
        console.print(f"written to {options.out}")


def view(arguments: list[str], console: rich.console.Console) -> None:
    """An HTML page of episodes: pictures, words, actions and states over time. One file, opens offline."""

    @dataclasses.dataclass(frozen=True)
    class View:
        dataset: Annotated[str, tyro.conf.Positional]
        out: str = "episodes.html"
        episodes: tuple[int, ...] = ()  # by default four, spread over the set
        pictures: int = 8  # per camera and episode
        split: str = "train"
        instruction_key: str = "language_instruction"

    options = tyro.cli(View, args=arguments, prog="vla-jax data view", description=view.__doc__)
    path = viewing.write_page(
        open_dataset(options.dataset, options.split),
        options.out,
        options.episodes or None,
        num_pictures=options.pictures,
        instruction_name=options.instruction_key,
    )
    console.print(f"written to {path}")


def _over(datasets: Sequence[EpisodeDataset], names: tuple[str, ...]) -> FieldStatistics:
    """Statistics of joined columns over all frames of all sets."""
    total: statistics.Summary | None = None
    for dataset in datasets:
        summary = statistics.summarize(
            functools.partial(vectors, dataset, names), dataset.num_frames, f"{dataset.place}, {', '.join(names)}"
        )
        if total is None:
            total = summary
        else:
            total.merge(summary)
    return total.finish()


def _quality_table(card: QualityCard) -> Table:
    table = Table(title="quality", title_justify="left", show_header=False)
    counted = "counted" if card.unique_is_exact else "estimated to 1 %"
    rows = {
        "trajectory quality (TQ)": "give --g-min and --g-max" if card.tq is None else f"{card.tq:.3f}",
        "coverage (SACo)": "give --reference" if card.saco is None else f"{card.saco:.3f}",
        "distinct state-actions": f"{card.unique:,}, {counted}",
        "trajectories": f"{card.num_trajectories:,}",
        "mean length": f"{card.mean_length:.1f}",
        "mean return": "no finished episode with a reward" if card.mean_return is None else f"{card.mean_return:.3f}",
        "frames without reward": "no reward" if card.reward_sparsity is None else f"{card.reward_sparsity:.1%}",
        "entropy of actions": f"{card.action_entropy:.3f} of 1",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table
