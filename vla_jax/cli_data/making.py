"""Verbs that write data: generate, convert, cache."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import rich.console
import tyro

from data_pipelines import lerobot, tabletop
from vla_jax.core import errors, progress
from vla_jax.data import picture_sources
from vla_jax.data.look import inspect as inspection
from vla_jax.data.look.layout import read_layout
from vla_jax.data.open import open_dataset
from vla_jax.data.pictures import image_cache
from vla_jax.data.pictures.resize import Fit
from vla_jax.data.schema import DatasetConfig


def generate(arguments: list[str], console: rich.console.Console) -> None:
    """Scripted demonstrations of the tabletop suite as RLDS; a finished dataset is left alone."""

    @dataclasses.dataclass(frozen=True)
    class Generate:
        out: str  # the version folder, for example data/tabletop/1.0.0
        data: Annotated[tabletop.TabletopDataConfig, tyro.conf.arg(name="")] = tabletop.TabletopDataConfig()

    options = tyro.cli(Generate, args=arguments, prog="vla-jax data generate", description=generate.__doc__)
    total = options.data.episodes_per_task * len(options.data.tasks)
    with progress.bar(console) as shown:
        bar = shown.add_task("compiling the simulator, then episodes", total=total)
        tabletop.generate(options.out, options.data, lambda done, _: shown.update(bar, completed=done))
    console.print(inspection.inspect(options.out))


def convert(arguments: list[str], console: rich.console.Console) -> None:
    """A dataset in the other format: RLDS to LeRobot v3.0, LeRobot to RLDS. Damaged episodes are left out and named.
    What was stopped goes on when it is called again."""

    @dataclasses.dataclass(frozen=True)
    class Convert:
        dataset: Annotated[str, tyro.conf.Positional]  # an RLDS version folder, or the folder of a LeRobot set
        out: Annotated[str, tyro.conf.Positional]  # a folder that does not exist yet; RLDS: <root>/<dataset>/1.0.0
        to: Literal["lerobot", "rlds"]
        split: str = "train"
        names: tuple[str, ...] | None = None  # features to take; by default all
        fps: float | None = None  # to lerobot: control steps per second; by default what the set's metadata says
        lossless: bool = False  # to lerobot: pictures as they are stored; to rlds: PNG

    options = tyro.cli(Convert, args=arguments, prog="vla-jax data convert", description=convert.__doc__)
    with progress.bar(console) as shown:
        bar = shown.add_task("episodes", total=None)

        def show(done: int, total: int) -> None:
            shown.update(bar, completed=done, total=total)

        if options.to == "lerobot":
            fps = options.fps or read_layout(options.dataset).control_hz
            if fps is None:
                raise errors.ConfigError(
                    f"{options.dataset}: a LeRobot set needs its frequency", fix="give --fps, control steps per second"
                )
            wanted = lerobot.ToLeRobotOptions(
                fps, options.split, options.names, pictures="parquet" if options.lossless else "video"
            )
            report = lerobot.rlds_to_lerobot(options.dataset, options.out, wanted, progress=show)
        else:
            wanted = lerobot.ToRldsOptions(options.split, options.names, pictures="png" if options.lossless else "jpeg")
            report = lerobot.lerobot_to_rlds(options.dataset, options.out, wanted, progress=show)
    console.print(f"{options.out}: {report.num_episodes:,} episodes, {report.num_frames:,} frames")
    for place in report.damaged_episodes:
        console.print(f"left out, damaged: {place}", markup=False)
    if report.left_out:
        console.print(f"features left out: {', '.join(report.left_out)}", markup=False)


def cache(arguments: list[str], console: rich.console.Console) -> None:
    """Every picture once in the size that training wants, for a DatasetConfig of just these cameras and this size."""

    @dataclasses.dataclass(frozen=True)
    class Cache:
        dataset: Annotated[str, tyro.conf.Positional]
        out: Annotated[str, tyro.conf.Positional]  # folder; an interrupted cache goes on where it stopped
        size: tuple[int, int] | None = None  # height and width; by default as stored
        fit: Fit = "pad"
        format: image_cache.Format = "jpeg"  # raw: a memory map, about 10 times the bytes, the fastest to read
        cameras: tuple[str, ...] = ()  # under observation/, those of the DatasetConfig; by default all
        split: str = "train"
        threads: int = 2

    options = tyro.cli(Cache, args=arguments, prog="vla-jax data cache", description=cache.__doc__)
    dataset = open_dataset(options.dataset, options.split)
    cameras = options.cameras or tuple(name.removeprefix("observation/") for name in dataset.cameras)
    config = DatasetConfig(
        options.dataset,
        action_horizon=1,
        cameras=tuple((name, name) for name in cameras),
        split=options.split,
        resize=None if options.size is None else (*options.size, options.fit),
    )
    names = [f"observation/{name}" for name in cameras]
    for name in names:
        if name not in dataset.cameras:
            raise errors.DataError(f'{dataset.place}: no camera "{name}"', fix=errors.closest(name, dataset.cameras))
    with progress.bar(console) as shown:
        bar = shown.add_task("pictures", total=None)
        made = image_cache.build(
            picture_sources.sized_pictures(dataset, config),
            names,
            options.out,
            picture_sources.cache_identity(dataset, config),
            format=options.format,
            num_threads=options.threads,
            progress=lambda done, total: shown.update(bar, completed=done, total=total),
        )
    num_bytes = sum(path.stat().st_size for path in Path(options.out).iterdir())
    console.print(f"{options.out}: {made.num_frames:,} frames of {', '.join(made.cameras)}, {num_bytes / 1e6:,.1f} MB")
    console.print(f"in the DatasetConfig: image_cache={options.out!r}, resize={config.resize}", markup=False)
