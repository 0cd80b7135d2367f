"""OGBench data as RLDS: made here by its scripted oracles, and with the rewards of its single-task variants.

    python -m data_pipelines.ogbench generate --env cube-single --mode play --steps 100000 \\
        --out runs/ogbench/cube-single-play
    python -m data_pipelines.ogbench relabel --source runs/ogbench/cube-single-play/1.0.0 --task 2 \\
        --out runs/ogbench/cube-single-play-task2

These are not the published datasets: the same oracles, run again with other seeds. Both commands go on where they were
stopped, to the same bytes. Per step: observation/state and observation/oraclerep (what "oraclerep" environments give as
a goal), simulator/{qpos, qvel, button_states}, action. RLDS's last step only shows: nobody recorded what its action led
to, so an episode of 1001 rows has 1000 transitions (`TransitionConfig(last_step="shows")` reads it so).

A generated set has no rewards. A relabelled one is cut where the task is solved: OGBench counts every action in a
solved state as an end, and an episode of RLDS can only end at its last step, which then acts.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tensorflow_datasets as tfds
import tyro

from data_pipelines import ogbench_oracles, ogbench_tasks
from data_pipelines.finished import is_finished
from data_pipelines.ogbench_oracles import Mode, OracleEpisode
from data_pipelines.ogbench_tasks import TaskGoal
from vla_jax.core import errors
from vla_jax.data.formats.features import Episode
from vla_jax.data.formats.rlds import RldsDataset, load_info
from vla_jax.data.formats.rlds_writer import RldsWriter
from vla_jax.data.schema import DatasetConfig, TransitionConfig
from vla_jax.envs import ogbench_sim
from vla_jax.envs.ogbench_sim import SCENES, Scene

VERSION = "1.0.0"
Progress = Callable[[str], None]
_SHARD_BYTES = 8 << 20  # small: a stopped run goes on after the last full shard
_EPISODE_SECONDS = 600.0  # that one may take in a worker
_SIMULATOR = ("qpos", "qvel", "button_states")


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """Episodes of the scripted oracles, without rewards."""

    out: Path  # the dataset's folder; its name becomes the dataset's name
    env: str = "cube-single"
    mode: Mode = "play"  # "play" and "noisy" in manipulation, "navigate" in mazes
    steps: int = 100_000  # transitions
    episode_steps: int = 1000  # transitions per episode; one more state is recorded
    seed: int = 0
    workers: int = 1  # processes; the data do not depend on it

    def __post_init__(self):
        modes = ogbench_oracles.MODES[ogbench_sim.scene_of(self.env).kind]
        if self.mode not in modes:
            raise errors.ConfigError(f"mode of {self.env}", expected=" or ".join(modes), found=self.mode)
        if self.steps < 1 or self.episode_steps < 1 or self.steps % self.episode_steps or self.workers < 1:
            raise errors.ConfigError(
                "generate",
                expected="steps a multiple of episode_steps, all of them and workers at least 1",
                found=f"steps {self.steps}, episode_steps {self.episode_steps}, workers {self.workers}",
            )

    @property
    def num_episodes(self) -> int:
        return self.steps // self.episode_steps

    def content(self, package: str) -> dict[str, Any]:
        """What the data depend on; `package` is OGBench's version."""
        kept = {name: getattr(self, name) for name in ("env", "mode", "steps", "episode_steps", "seed")}
        return {**kept, "ogbench": package}


@dataclasses.dataclass(frozen=True)
class RelabelConfig:
    """A generated set with the rewards and ends of one task."""

    source: Path  # version folder, such as runs/ogbench/cube-single-play/1.0.0
    out: Path
    task: int = 1  # 1 first, as OGBench counts


def generate(config: GenerateConfig, progress: Progress = print) -> Path:
    """Write the dataset and return its version folder; a finished one of this config is left alone.

    Raises EnvError without OGBench, DataError when the folder holds something else.
    """
    ogbench_sim.require()
    simulator, _ = ogbench_sim.make_simulator(config.env)
    example = ogbench_oracles.Recorder(config.env, config.mode).episode(config.seed, 0, 2)
    goals = ogbench_tasks.task_goals(simulator)
    recorded = functools.partial(_episodes, config)
    return write(config, recorded, example, goals, metadata.version("ogbench"), progress)


def write(
    config: GenerateConfig,
    recorded: Callable[[range], Iterator[OracleEpisode]],
    example: OracleEpisode,
    goals: Sequence[TaskGoal],
    package: str,
    progress: Progress = print,
) -> Path:
    """What `recorded` gives for the numbers of the episodes, as the dataset of `config`; `example` shows its shapes.

    `package` is the version of OGBench that the episodes and the goals of its tasks are from.
    """
    content = config.content(package)
    folder = config.out / VERSION
    if is_finished(folder, _hash(content)):
        return folder
    scene = SCENES[config.env]
    with _writer(config.out, example, scene, content, _hash(content), goals, task=None) as writer:
        for episode in recorded(range(writer.notes.get("episode", 0), config.num_episodes)):
            writer.write(to_rlds(scene, episode), notes={"episode": episode.number})
            if (episode.number + 1) % 10 == 0 or episode.number + 1 == config.num_episodes:
                progress(f"{episode.number + 1} of {config.num_episodes} episodes")
    return folder


def relabel(config: RelabelConfig, progress: Progress = print) -> Path:
    """Write the relabelled dataset and return its version folder; a finished one is left alone.

    Rewards are 0 where the task is solved and minus the number of its unsolved parts elsewhere. Every action in a
    solved state ends an episode, the rest goes on as another one. Raises DataError when `source` is not a generated
    set, ConfigError for a task that is not there.
    """
    source = load_info(config.source).metadata
    if source.get("task", 0) is not None:
        raise errors.DataError(
            f"{config.source}: not what `generate` writes",
            expected='tasks and "task": null in metadata.json',
            found="a relabelled set" if "tasks" in source else ", ".join(sorted(source)) or "nothing",
        )
    if not 1 <= config.task <= len(source["tasks"]):
        raise errors.ConfigError("relabel", expected=f"task 1 to {len(source['tasks'])}", found=config.task)
    config_hash = _hash({"source": source["config_hash"], "task": config.task})
    folder = config.out / VERSION
    if is_finished(folder, config_hash):
        return folder
    goals = [TaskGoal.from_json(values) for values in source["tasks"]]
    scene, name = SCENES[source["config"]["env"]], f"{source['config']['env']} task {config.task}"
    dataset = RldsDataset(config.source)
    example, task = _read(dataset, 0), config.task
    with _writer(config.out, example, scene, source["config"], config_hash, goals, task) as writer:
        done = {"episode": 0, "piece": 0, **writer.notes}
        for number in range(done["episode"], len(dataset)):
            episode = _read(dataset, number)
            labels = ogbench_tasks.relabel(scene, episode.simulator_states, goals[config.task - 1])
            skipped = done["piece"] if number == done["episode"] else 0
            for i, piece in enumerate(cut(episode, *labels, name, scene)):
                if i >= skipped:
                    writer.write(piece, notes={"episode": number, "piece": i})
    progress(f"{len(dataset)} recordings relabelled for task {config.task}")
    return folder


def to_rlds(scene: Scene, episode: OracleEpisode) -> Episode:
    """The whole recording, without rewards or ends."""
    length = len(episode.actions)
    return _rlds(scene, episode, slice(0, length), np.zeros(length, np.float32), np.ones(length, np.float32), False, "")


def cut(
    episode: OracleEpisode, rewards: np.ndarray, discounts: np.ndarray, instruction: str, scene: Scene
) -> Iterator[Episode]:
    """Pieces that end where the discount is 0, and what is left over if it has a transition.

    The last row only shows, so its own reward is no part of any transition and it never ends the task.
    """
    start, last = 0, len(rewards) - 1
    for end in np.flatnonzero(discounts[:last] == 0):
        yield _rlds(scene, episode, slice(start, end + 1), rewards, discounts, True, instruction)
        start = end + 1
    if start < last:
        shown = discounts.copy()
        shown[last] = 1.0
        yield _rlds(scene, episode, slice(start, last + 1), rewards, shown, False, instruction)


def dataset_config(
    folder: str | Path,
    action_horizon: int,
    state_keys: tuple[str, ...] = ("state",),
) -> DatasetConfig:
    """How the loader reads what the commands wrote, as transitions. Raises DataError when it is none of theirs."""
    about = load_info(Path(folder)).metadata
    if "tasks" not in about:
        raise errors.DataError(f"{folder}: not an OGBench dataset", expected="tasks in metadata.json")
    last_step: Literal["acts", "shows"] = "shows" if about["task"] is None else "acts"
    return DatasetConfig(
        path=str(folder),
        action_horizon=action_horizon,
        cameras=(),
        state_keys=state_keys,
        transitions=TransitionConfig(last_step=last_step),
    )


def _episodes(config: GenerateConfig, numbers: range) -> Iterator[OracleEpisode]:
    rows = config.episode_steps + 1
    if config.workers == 1:
        recorder = ogbench_oracles.Recorder(config.env, config.mode)
        yield from (recorder.episode(config.seed, number, rows) for number in numbers)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(config.workers, context) as pool:
        ask = functools.partial(_in_worker, config.env, config.mode, config.seed, rows)
        # A window of work: results wait for their turn, and a stop does not leave a long queue behind.
        waiting = [pool.submit(ask, number) for number in numbers[: 2 * config.workers]]
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(pool.shutdown, wait=False, cancel_futures=True)
            for number in numbers:
                yield waiting.pop(0).result(timeout=_EPISODE_SECONDS)
                ahead = number + 2 * config.workers
                if ahead < numbers.stop:
                    waiting.append(pool.submit(ask, ahead))


@functools.cache
def _recorder(env: str, mode: Mode) -> ogbench_oracles.Recorder:
    return ogbench_oracles.Recorder(env, mode)


def _in_worker(env: str, mode: Mode, seed: int, rows: int, number: int) -> OracleEpisode:
    return _recorder(env, mode).episode(seed, number, rows)


def _rlds(
    scene: Scene,
    episode: OracleEpisode,
    rows: slice,
    rewards: np.ndarray,
    discounts: np.ndarray,
    ends: bool,
    instruction: str,
) -> Episode:
    length = rows.stop - rows.start
    is_last = np.arange(length) == length - 1
    oracle = ogbench_tasks.oracle_representation(scene, episode.simulator_states)
    steps = {
        "observation/state": episode.state[rows],
        "observation/oraclerep": oracle[rows],
        **{f"simulator/{name}": getattr(episode, name)[rows] for name in _kept(scene)},
        "action": episode.actions[rows],
        "reward": rewards[rows],
        "discount": discounts[rows],
        "is_first": np.arange(length) == 0,
        "is_last": is_last,
        "is_terminal": is_last & ends,
        "language_instruction": instruction,
    }
    about = {"number": episode.number, "first_row": rows.start, "attempts": episode.attempts}
    return Episode(steps, {f"episode_metadata/{name}": np.int64(value) for name, value in about.items()})


def _kept(scene: Scene) -> tuple[str, ...]:
    return _SIMULATOR if scene.num_buttons else _SIMULATOR[:2]


def _writer(
    out: Path,
    example: OracleEpisode,
    scene: Scene,
    content: Mapping[str, Any],
    config_hash: str,
    goals: Sequence[TaskGoal],
    task: int | None,
) -> RldsWriter:
    about = {
        "config": dict(content),
        "config_hash": config_hash,
        "task": task,
        "tasks": [goal.to_json() for goal in goals],
    }
    return RldsWriter(
        out / VERSION,
        _features(example, scene),
        out.name,
        VERSION,
        description="Scripted oracles of ogbench, run again; not the published dataset.",
        metadata=about,
        max_shard_bytes=_SHARD_BYTES,
        identity=config_hash,
    )


def _features(example: OracleEpisode, scene: Scene) -> tfds.features.FeaturesDict:
    def vector(array: np.ndarray) -> tfds.features.Tensor:
        return tfds.features.Tensor(shape=array.shape[1:], dtype=array.dtype)

    oracle = ogbench_tasks.oracle_representation(scene, example.simulator_states)
    flags = {name: tfds.features.Scalar(dtype=np.bool_) for name in ("is_first", "is_last", "is_terminal")}
    step = {
        "observation": {"state": vector(example.state), "oraclerep": vector(oracle)},
        "simulator": {name: vector(getattr(example, name)) for name in _kept(scene)},
        "action": vector(example.actions),
        "reward": tfds.features.Scalar(dtype=np.float32),
        "discount": tfds.features.Scalar(dtype=np.float32),
        **flags,
        "language_instruction": tfds.features.Text(),
    }
    about = {name: tfds.features.Scalar(dtype=np.int64) for name in ("number", "first_row", "attempts")}
    return tfds.features.FeaturesDict({"steps": tfds.features.Dataset(step), "episode_metadata": about})


def _read(dataset: RldsDataset, number: int) -> OracleEpisode:
    rows = slice(*map(int, dataset.episode_starts[number : number + 2]))
    columns = dataset.columns
    buttons = columns.get("simulator/button_states")
    return OracleEpisode(
        number=int(columns["episode_metadata/number"][number]),
        state=np.array(columns["observation/state"][rows]),
        actions=np.array(columns["action"][rows]),
        qpos=np.array(columns["simulator/qpos"][rows]),
        qvel=np.array(columns["simulator/qvel"][rows]),
        button_states=np.zeros((rows.stop - rows.start, 0), np.int64) if buttons is None else np.array(buttons[rows]),
        attempts=int(columns["episode_metadata/attempts"][number]),
    )


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


_COMMANDS = (
    Annotated[GenerateConfig, tyro.conf.subcommand("generate")]
    | Annotated[RelabelConfig, tyro.conf.subcommand("relabel")]
)


def main() -> None:
    run = {GenerateConfig: generate, RelabelConfig: relabel}
    try:
        config = tyro.cli(_COMMANDS, description=__doc__, config=(tyro.conf.OmitSubcommandPrefixes,))
        folder = run[type(config)](config, functools.partial(print, flush=True))
        print(folder)
    except errors.VlaError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
