"""`vla-jax data`: make, look at and measure demonstrations on disk."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import rich.console
import tyro

from data_pipelines import tabletop
from vla_jax.core import progress
from vla_jax.data import inspect as inspection
from vla_jax.data.demonstrations import compute_statistics
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.data.schema import DatasetConfig


def generate(arguments: list[str], console: rich.console.Console) -> None:
    """Scripted demonstrations of the tabletop suite as RLDS; a finished dataset is left alone."""

    @dataclasses.dataclass(frozen=True)
    class Generate:
        out: str  # the version folder, for example data/tabletop/1.0.0
        data: Annotated[tabletop.TabletopDataConfig, tyro.conf.arg(name="")] = tabletop.TabletopDataConfig()

    options = tyro.cli(Generate, args=arguments, prog="vla-jax data generate")
    total = options.data.episodes_per_task * len(options.data.tasks)
    with progress.bar(console) as shown:
        bar = shown.add_task("compiling the simulator, then episodes", total=total)
        tabletop.generate(options.out, options.data, lambda done, _: shown.update(bar, completed=done))
    console.print(inspection.inspect(options.out))


def inspect(arguments: list[str], console: rich.console.Console) -> None:
    """Schema, counts, sizes, instructions and ranges; with --sheet a picture of first, middle and last frames."""

    @dataclasses.dataclass(frozen=True)
    class Inspect:
        dataset: Annotated[str, tyro.conf.Positional]  # the version folder, which holds dataset_info.json
        sheet: str | None = None  # PNG to write
        split: str = "train"  # of the sheet

    options = tyro.cli(Inspect, args=arguments, prog="vla-jax data inspect")
    console.print(inspection.inspect(options.dataset))
    if options.sheet is not None:
        path = inspection.contact_sheet(RldsDataset(options.dataset, options.split), options.sheet)
        console.print(f"contact sheet: {path}")


def stats(arguments: list[str], console: rich.console.Console) -> None:
    """Normalization statistics of states and actions, from the columns alone."""

    @dataclasses.dataclass(frozen=True)
    class Stats:
        dataset: Annotated[str, tyro.conf.Positional]  # the version folder
        split: str = "train"
        state_keys: tuple[str, ...] = ("state",)  # under observation/
        action_key: str = "action"
        out: str | None = None  # JSON to write

    options = tyro.cli(Stats, args=arguments, prog="vla-jax data stats")
    config = DatasetConfig(
        options.dataset,
        action_horizon=1,
        cameras=(),
        split=options.split,
        state_keys=options.state_keys,
        action_key=options.action_key,
    )
    statistics = compute_statistics(config)
    console.print(inspection.statistics_table(statistics))
    if options.out is not None:
        statistics.save(Path(options.out))
        console.print(f"written to {options.out}")


VERBS: dict[str, Callable[[list[str], rich.console.Console], None]] = {
    "generate": generate,
    "inspect": inspect,
    "stats": stats,
}
