"""LIBERO data as RLDS: scripted demonstrations, or the official HDF5 demonstrations of someone who has them.

    python -m data_pipelines.libero generate --suite libero_object --tasks 0 1 2 --episodes 50 \\
        --out runs/libero/libero_object_scripted
    python -m data_pipelines.libero shrink --source runs/libero/libero_object_scripted/1.0.0 --image-size 64 \\
        --out runs/libero/libero_object_scripted_64
    python -m data_pipelines.libero import --files ~/libero_object/*.hdf5 --out runs/libero/libero_object_no_noops

Scripted demonstrations run on the official tasks and assets, from initial states drawn for this purpose, never the
official (evaluation) ones; they are not the official demonstrations and results with them are not comparable. An
attempt is planned without rendering (1 CPU-s); only a success is run again with the cameras (0.12 CPU-s per step).
Every episode is a part file, so an interrupted run goes on where it stopped.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import json
import multiprocessing
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from data_pipelines import libero_expert, libero_records
from data_pipelines.libero_expert import ExpertOptions
from data_pipelines.libero_records import LiberoEpisode
from vla_jax.core import errors
from vla_jax.data.formats import image_codec
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.envs import libero_sim
from vla_jax.envs.libero_sim import Backend, LiberoSim, RenderOptions, Task
from vla_jax.evaluation import fingerprint, manifest

Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """Scripted demonstrations on the official tasks."""

    out: Path  # the dataset's folder; its name becomes the dataset's name
    suite: str = "libero_object"
    tasks: tuple[int, ...] = (0, 1, 2)
    episodes: int = 50  # successes per task
    first_seed: int = 100_000  # attempt i of a task uses seed first_seed + i
    workers: int = 1  # processes; each needs about 2 GB
    reflections: bool = False
    backend: Backend = "egl"
    expert: ExpertOptions = dataclasses.field(default_factory=ExpertOptions)
    keep_parts: bool = False

    def __post_init__(self):
        known = libero_sim.SUITES
        if self.suite not in known:
            raise errors.ConfigError(f"unknown suite {self.suite!r}", expected=errors.closest(self.suite, known))
        tasks = known[self.suite].num_tasks
        if not self.tasks or len(set(self.tasks)) != len(self.tasks) or not all(0 <= t < tasks for t in self.tasks):
            raise errors.ConfigError(
                f"tasks of {self.suite}", expected=f"different ones of 0..{tasks - 1}", found=self.tasks
            )
        if self.episodes < 1 or self.workers < 1:
            raise errors.ConfigError("episodes, workers", expected="at least 1", found=(self.episodes, self.workers))

    @property
    def render(self) -> RenderOptions:
        return _render(self.reflections, self.backend)


@dataclasses.dataclass(frozen=True)
class ShrinkConfig:
    """The same set with smaller pictures, for policies that are trained on few pixels."""

    source: Path  # version folder, such as runs/libero/libero_object_scripted/1.0.0
    out: Path
    image_size: int = 64  # a divisor of the source's


@dataclasses.dataclass(frozen=True)
class ImportConfig:
    """The official HDF5 demonstrations, no-ops left out."""

    files: tuple[Path, ...]
    out: Path
    suite: str | None = None  # given: draw frames of 256 pixels again, as OpenVLA does; else keep the stored ones
    reflections: bool = True
    backend: Backend = "egl"

    @property
    def render(self) -> RenderOptions:
        return _render(self.reflections, self.backend)


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One seed of one task; whether it succeeded is read from the files it leaves."""

    task: int
    seed: int
    folder: Path

    @property
    def part(self) -> Path:
        return self.folder / f"task{self.task:02d}_seed{self.seed}.npz"

    @property
    def failure(self) -> Path:
        return self.part.with_suffix(".failed")


def generate(config: GenerateConfig, progress: Progress = print) -> Path:
    """Make the parts that are missing, then the dataset; returns its version folder. Resumable at every episode."""
    _require_new(config.out)
    made_with = _made_with(config)
    mark = fingerprint.take([config.suite], config.render)
    done: list[Path] = []
    for task in config.tasks:
        done += _collect(config, task, progress)
    description = (
        f"Scripted demonstrations on the official tasks {list(config.tasks)} of {config.suite}, not the official "
        "demonstrations. Initial states were drawn for training; no-ops are filtered as OpenVLA does."
    )
    metadata = {"config": manifest.plain(config), "made_with": made_with, "fingerprint": mark.to_json()}
    mark.save(config.out / "fingerprint.json")
    episodes = (libero_records.load_part(part) for part in done)
    folder = libero_records.write_dataset(config.out, episodes, description=description, metadata=metadata)
    if not config.keep_parts:
        shutil.rmtree(config.out / "parts")
    progress(f"wrote {len(done)} episodes to {folder}")
    return folder


def _collect(config: GenerateConfig, task: int, progress: Progress) -> list[Path]:
    """Parts of the first `episodes` seeds that succeed."""
    limit = 3 * config.episodes + 10
    attempts = [Attempt(task, config.first_seed + i, config.out / "parts") for i in range(limit)]
    parts: list[Path] = []
    with _runner(config) as run:
        while len(parts) < config.episodes and attempts:
            batch, attempts = attempts[: config.episodes - len(parts)], attempts[config.episodes - len(parts) :]
            for attempt in run(batch):
                parts += [attempt.part] if attempt.part.exists() else []
                outcome = "success" if attempt.part.exists() else "failed"
                progress(f"{config.suite} task {task} seed {attempt.seed}: {outcome}, {len(parts)}/{config.episodes}")
    if len(parts) < config.episodes:
        raise errors.DataError(
            f"the scripted expert fails on {config.suite} task {task}",
            expected=f"{config.episodes} successes in {limit} attempts",
            found=len(parts),
            fix="choose tasks of the table in docs/libero.md, or fewer episodes",
        )
    return parts


@contextlib.contextmanager
def _runner(config: GenerateConfig) -> Iterator[Callable[[list[Attempt]], Iterable[Attempt]]]:
    """A function that makes attempts and returns them in order, in this process or in several."""
    work = functools.partial(make_attempt, config)
    if config.workers == 1:
        yield functools.partial(map, work)
        return
    context = multiprocessing.get_context("spawn")  # GL contexts do not survive a fork
    with concurrent.futures.ProcessPoolExecutor(config.workers, mp_context=context) as pool:
        yield functools.partial(pool.map, work)


def make_attempt(config: GenerateConfig, attempt: Attempt) -> Attempt:
    """Leave a part file if this seed succeeds and a failure file otherwise; nothing to do if either is there."""
    if attempt.part.exists() or attempt.failure.exists():
        return attempt
    sim = _simulator(config.render)
    limit = libero_sim.episode_length(config.suite)
    init_state = sim.reset(config.suite, attempt.task, init_state=None, scene_seed=attempt.seed)
    _check_not_official(sim.task, init_state)
    actions, success = libero_expert.run(sim, config.expert, attempt.seed, limit)
    actions = actions[libero_records.keep_mask(actions)]
    start = (config.suite, attempt.task, init_state, attempt.seed, actions)
    # Filtering changes the timing, so the filtered actions have to succeed by themselves before frames are drawn.
    if success and libero_records.replay(sim, *start):
        file_path = f"{config.suite}/{sim.task.name}/scripted_{attempt.seed}"
        episode = libero_records.record(sim, *start, file_path)
        libero_records.save_part(attempt.part, episode)
    else:
        attempt.failure.parent.mkdir(parents=True, exist_ok=True)
        attempt.failure.touch()
    return attempt


@functools.cache
def _simulator(render: RenderOptions) -> LiberoSim:
    """One per process: loading a task and its textures costs seconds."""
    return LiberoSim(render)


def _check_not_official(task: Task, init_state: np.ndarray) -> None:
    official = {libero_sim.state_hash(state) for state in task.init_states}
    if libero_sim.state_hash(init_state) in official:
        raise errors.DataError(
            f"{task.suite} task {task.index}: a drawn initial state is one of the evaluation's",
            fix="choose another --first-seed",
        )


def _render(reflections: bool, backend: Backend) -> RenderOptions:
    return RenderOptions(
        image_size=libero_records.IMAGE_SIZE,
        reflections=reflections,
        jpeg_quality=libero_records.JPEG_QUALITY,
        backend=backend,
    )


def _made_with(config: GenerateConfig) -> dict[str, Any]:
    """Options and code of the first run, written beside the parts. Raises DataError where this run's options differ:
    parts of an interrupted run may only be joined by parts made in the same way."""
    path = config.out / "parts" / "made_with.json"
    options = {name: manifest.plain(getattr(config, name)) for name in ("suite", "expert", "render")}
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made_with = {"options": options, "git": manifest.git_state(Path(__file__).parent)}
        path.write_text(json.dumps(made_with, indent=1) + "\n")
    made_with = json.loads(path.read_text())
    if made_with["options"] != json.loads(json.dumps(options)):
        raise errors.DataError(
            f"{path.parent} holds episodes made with other options",
            expected=made_with["options"],
            found=options,
            fix="repeat those options, or delete the parts",
        )
    return made_with


def _require_new(out: Path) -> None:
    folder = out / libero_records.VERSION
    if folder.exists():
        raise errors.DataError(f"{folder} exists", fix="choose another --out, or delete it to make it again")


def shrink(config: ShrinkConfig, progress: Progress = print) -> Path:
    """Average blocks of pixels; `RenderOptions(downscale=...)` does the same at evaluation."""
    _require_new(config.out)
    dataset = RldsDataset(config.source)
    size = dataset.image(0, "observation/image").shape[0]
    if size % config.image_size:
        raise errors.ConfigError("shrink", expected=f"image_size that divides {size}", found=config.image_size)
    factor = size // config.image_size
    episodes = (libero_records.shrink(episode, factor) for episode in libero_records.read_dataset(dataset))
    if (config.source.parent / "fingerprint.json").exists():
        mark = fingerprint.load(config.source.parent)
        render = dataclasses.replace(mark.render, downscale=mark.render.downscale * factor)
        dataclasses.replace(mark, render=render).save(config.out / "fingerprint.json")
    folder = libero_records.write_dataset(
        config.out,
        episodes,
        description=dataset.info.description,
        metadata={"source": dataset.place, "downscale": factor},
        image_size=config.image_size,
    )
    progress(f"wrote {len(dataset)} episodes to {folder}")
    return folder


def import_hdf5(config: ImportConfig, progress: Progress = print) -> Path:
    """One RLDS set of all files; reports every demonstration that failed where frames were drawn again."""
    _require_new(config.out)
    episodes = _imported(config, progress)
    first = next(episodes, None)
    if first is None:
        raise errors.DataError(f"nothing to import from {len(config.files)} files", expected="one success or more")
    if config.suite is not None:
        fingerprint.take([config.suite], config.render).save(config.out / "fingerprint.json")
    folder = libero_records.write_dataset(
        config.out,
        itertools.chain([first], episodes),
        description="The official LIBERO demonstrations; no-ops are filtered as OpenVLA does.",
        metadata={"config": manifest.plain(config)},
        image_size=image_codec.image_shape(first.images[0])[0],
    )
    progress(f"wrote {folder}")
    return folder


def _imported(config: ImportConfig, progress: Progress) -> Iterator[LiberoEpisode]:
    from data_pipelines import libero_hdf5  # h5py comes with the extra "libero"; the other commands do without

    for path in config.files:
        if config.suite is None:
            yield from libero_hdf5.stored_episodes(path)
            continue
        drawn = libero_hdf5.rerendered_episodes(path, config.suite, _simulator(config.render))
        for number, episode in enumerate(drawn):
            if episode is None:
                progress(f"{path.name}: demonstration {number} fails without its no-ops, left out")
            else:
                yield episode


_COMMANDS = (
    Annotated[GenerateConfig, tyro.conf.subcommand("generate")]
    | Annotated[ShrinkConfig, tyro.conf.subcommand("shrink")]
    | Annotated[ImportConfig, tyro.conf.subcommand("import")]
)


def main() -> None:
    run = {GenerateConfig: generate, ShrinkConfig: shrink, ImportConfig: import_hdf5}
    try:
        config = tyro.cli(_COMMANDS, description=__doc__, config=(tyro.conf.OmitSubcommandPrefixes,))
        run[type(config)](config, functools.partial(print, flush=True))
    except errors.VlaError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
