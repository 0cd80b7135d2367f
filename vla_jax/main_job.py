"""The main job, from demonstrations on disk to a report, as stages that each leave one file when they are done.

    data -> imitation -> its evaluation -> fine-tuning -> its evaluation -> films -> results and report

A stage whose record exists is not run again, so the same command resumes after Ctrl-C or a crash; training inside a
stage resumes from its own checkpoint.
"""

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.console
import rich.table

from data_pipelines import tabletop
from vla_jax import experiment
from vla_jax.core import errors, files, progress
from vla_jax.envs.mjx.scene import CONTROL_HZ
from vla_jax.envs.mjx.tabletop import TabletopConfig
from vla_jax.evaluation import charts, picture, report, results, statistics
from vla_jax.evaluation.rollouts import Episodes, Recording
from vla_jax.training import trained
from vla_jax.training.plain import to_plain
from vla_jax.training.recipe import Recipe

NUM_FILMS = 4
_FILM_SIZE = 192  # pixels; policies see 64
_STRIP_LENGTH = 6  # frames of the picture
_FILM_STRIDE = 2  # control steps per frame
ROWS = {"imitation": "imitation", "finetune": "fine_tuned"}  # training stage -> row of the table
_TITLES = {"imitation": "imitation", "finetune": "reinforcement learning"}
_SUMMARY = (
    "A policy that sees two cameras and reads an instruction learns tabletop/{task} from {count} scripted "
    "demonstrations and is then fine-tuned by reinforcement learning in the simulator (EXPO: a frozen base, a learned "
    "edit, a choice by value). Both policies are judged on the same initial states."
)


@dataclasses.dataclass(frozen=True)
class MainJob:
    """What is run in `folder`. Both recipes evaluate on the same initial states, so their episodes pair."""

    name: str  # of the table that the results go to
    folder: str
    data: tabletop.TabletopDataConfig
    imitation: Recipe
    finetune: Recipe

    @property
    def env(self) -> TabletopConfig:
        """The one environment of the job."""
        (env,) = self.imitation.evaluation.envs
        return env


@dataclasses.dataclass(frozen=True)
class StageRecord:
    """What a finished stage leaves in `<folder>/stages/<name>.json`."""

    name: str
    seconds: float
    steps: int  # of what the stage does: episodes, updates
    unit: str

    @property
    def steps_per_second(self) -> float:
        return self.steps / max(self.seconds, 1e-9)


class Interrupted(Exception):
    """A stage was told to stop and has saved; the same command goes on."""


def run(job: MainJob, console: rich.console.Console) -> None:
    """Every stage that is not done yet, then the summary. Raises Interrupted after a signal during training."""
    folder = Path(job.folder)
    _check_same_job(folder, job)
    stages = [
        ("data", "scripted demonstrations to RLDS", lambda: _generate(job, console)),
        ("imitation", "imitation", lambda: _train(job.imitation, folder / "imitation")),
        ("imitation_evaluation", "evaluation of the imitation policy", lambda: _evaluate(job, "imitation", console)),
        ("finetune", "online reinforcement learning", lambda: _train(job.finetune, folder / "finetune")),
        ("finetune_evaluation", "evaluation of the fine-tuned policy", lambda: _evaluate(job, "finetune", console)),
        ("films", "films for the report", lambda: _film(job)),
    ]
    records = {}
    for number, (name, title, stage) in enumerate(stages, 1):
        head = f"[bold]{number}/{len(stages)} {title}[/bold]"
        done = _read(folder, name)
        if done is None:
            console.print(head)
            start = time.monotonic() - _seconds_before(folder, name)
            try:
                steps, unit = stage()
            finally:  # an interrupted stage goes on later; its time counts
                files.write_text(_record_path(folder, name, "seconds"), str(time.monotonic() - start))
            done = StageRecord(name, time.monotonic() - start, steps, unit)
            _write_json(_record_path(folder, name), dataclasses.asdict(done))
        else:
            console.print(f"{head}: done before")
        records[name] = done
    _write_results_and_report(job, records)
    console.print(_summary(job, records))
    console.print(f"report: {folder / 'report.html'} (opens offline)")


def _generate(job: MainJob, console: rich.console.Console) -> tuple[int, str]:
    total = job.data.episodes_per_task * len(job.data.tasks)
    with progress.bar(console) as shown:
        bar = shown.add_task("compiling the simulator, then episodes", total=total)
        tabletop.generate(
            job.imitation.data.datasets[0].path, job.data, lambda done, _: shown.update(bar, completed=done)
        )
    return total, "episodes"


def _train(recipe: Recipe, run_dir: Path) -> tuple[int, str]:
    outcome = experiment.train(recipe, run_dir)
    if outcome.interrupted:
        raise Interrupted(str(run_dir))
    return outcome.train_step, "updates"


def _evaluate(job: MainJob, stage: str, console: rich.console.Console) -> tuple[int, str]:
    policy = trained.load(Path(job.folder) / stage)
    total = policy.recipe.evaluation.num_episodes
    with progress.bar(console) as shown:
        bar = shown.add_task("compiling, then episodes", total=total)

        def show(done: int, _: int, successes: int) -> None:
            shown.update(bar, completed=done, description=f"{successes} of {done} episodes succeeded")

        (episodes,) = experiment.evaluate(policy, progress=show).values()
    _save_episodes(_episodes_path(job, stage), episodes)
    return total, "episodes"


def _film(job: MainJob) -> tuple[int, str]:
    """The same initial states before and after fine-tuning, the first ones the imitation policy fails in first."""
    before = _load_episodes(_episodes_path(job, "imitation"))
    failed, solved = np.flatnonzero(~before.success), np.flatnonzero(before.success)
    half = min(NUM_FILMS // 2, len(failed))
    chosen = (*failed[:half].tolist(), *solved[: NUM_FILMS - half].tolist())
    for stage in ("imitation", "finetune"):
        policy = trained.load(Path(job.folder) / stage)
        config = policy.recipe.evaluation
        large = experiment.make_env(policy.recipe, dataclasses.replace(job.env, image_size=_FILM_SIZE), policy.edges)
        recording = experiment.rollout(policy, job.env, config.execution_horizon).record(
            policy.params,
            jax.random.key(config.seed),
            chosen,
            render=lambda state, large=large: large.render(state)["front"].rgb,
            frame_stride=_FILM_STRIDE,
        )
        _save_arrays(_films_path(job, stage), {"frames": recording.frames, "num_frames": recording.num_frames})
        _save_episodes(_episodes_path(job, f"{stage}_films"), recording.episodes)
    return 2 * len(chosen), "films"


def _write_results_and_report(job: MainJob, records: dict[str, StageRecord]) -> None:
    folder = Path(job.folder)
    instructions = job.env.instructions
    first = report.Stage(
        "demonstrations",
        f"{records['data'].steps} scripted episodes as RLDS",
        seconds=records["data"].seconds,
        steps_per_second=records["data"].steps_per_second,
        step_name="episodes",
    )
    entries, stages = [], [first]
    for stage, row in ROWS.items():
        episodes = _load_episodes(_episodes_path(job, stage))
        env_name = f"tabletop/{job.env.task}"
        policy = trained.load(folder / stage)
        entry = experiment.entry(policy, env_name, episodes, table=job.name, row=row, cell="success_rate")
        entries.append(entry)
        shown = report.Stage(
            _TITLES[stage],
            f"{records[stage].steps} updates, then {entry.episodes} episodes from states never trained on",
            seconds=records[stage].seconds,
            steps_per_second=records[stage].steps_per_second,
            curves=charts.read_curves(folder / stage / "metrics.jsonl"),
            films=report.films(_load_films(job, stage), instructions, CONTROL_HZ / _FILM_STRIDE),
        )
        stages.append(shown.with_episodes(episodes))
    results.append(folder / "results", "run", entries)
    _draw(job, entries)
    report.write_report(
        folder,
        report.Report(
            title=f"vla_jax: {job.name}",
            summary=_SUMMARY.format(task=job.env.task, count=records["data"].steps),
            stages=tuple(stages),
            instructions=instructions,
            comparisons=((_TITLES["imitation"], _TITLES["finetune"]),),
            manifest=entries[-1].manifest,
        ),
    )


def _draw(job: MainJob, entries: list[results.Entry]) -> None:
    """The first filmed episode before and after, for a README."""
    strips = []
    for stage, entry in zip(ROWS, entries, strict=True):
        films = _load_films(job, stage)
        frames = picture.evenly(films.frames[0], int(films.num_frames[0]), _STRIP_LENGTH)
        strips.append(picture.Strip(_TITLES[stage], frames, entry.mean, entry.interval, entry.episodes))
    instruction = job.env.instructions[int(films.episodes.instruction[0])]
    picture.draw(strips, f'"{instruction}"', Path(job.folder) / "picture.png")


def _summary(job: MainJob, records: dict[str, StageRecord]) -> rich.table.Table:
    count = job.imitation.evaluation.num_episodes
    title = f"{job.name}: tabletop/{job.env.task}, {count} episodes per evaluation"
    table = rich.table.Table(title=title, title_justify="left")
    for name in ("stage", "success [95 %]", "return", "seconds", "per second"):
        table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    titles = {
        "data": "demonstrations",
        "imitation": "imitation",
        "imitation_evaluation": "  evaluated",
        "finetune": "online RL",
        "finetune_evaluation": "  evaluated",
    }
    for name, title in titles.items():
        record = records[name]
        judged = name.removesuffix("_evaluation") if name.endswith("_evaluation") else None
        judgement = _judgement(_load_episodes(_episodes_path(job, judged))) if judged else ("", "")
        table.add_row(title, *judgement, f"{record.seconds:.0f}", f"{record.steps_per_second:.1f} {record.unit}")
    table.add_section()
    table.add_row("total", "", "", f"{sum(record.seconds for record in records.values()):.0f}", "")
    return table


def _judgement(episodes: Episodes) -> tuple[str, str]:
    successes, count = int(episodes.success.sum()), len(episodes.success)
    low, high = statistics.wilson(successes, count)
    return f"{successes / count:.1%} [{100 * low:.1f}, {100 * high:.1f}]", f"{episodes.returns.mean():.3f}"


def _check_same_job(folder: Path, job: MainJob) -> None:
    """A folder holds one job: stages of another one would be mistaken for this one's."""
    path, ours = folder / "job.json", json.loads(json.dumps(to_plain(job)))
    if not path.exists():
        _write_json(path, ours)
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    different = sorted(name for name in ours | found if ours.get(name) != found.get(name))
    if different:
        raise errors.ConfigError(
            f"{folder}: holds another job",
            expected="the settings in its job.json",
            found=f"other settings of {', '.join(different)}",
            fix="choose another folder with --out, or delete this one",
        )


def _episodes_path(job: MainJob, stage: str) -> Path:
    return Path(job.folder) / "stages" / f"{stage}_episodes.npz"


def _films_path(job: MainJob, stage: str) -> Path:
    return Path(job.folder) / "stages" / f"{stage}_films.npz"


def _save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".incomplete.npz")
    np.savez_compressed(partial, **arrays)
    os.replace(partial, path)


def _save_episodes(path: Path, episodes: Episodes) -> None:
    _save_arrays(path, {field.name: getattr(episodes, field.name) for field in dataclasses.fields(episodes)})


def _load_episodes(path: Path) -> Episodes:
    with np.load(path) as stored:
        return Episodes(**{field.name: stored[field.name] for field in dataclasses.fields(Episodes)})


def _load_films(job: MainJob, stage: str) -> Recording:
    with np.load(_films_path(job, stage)) as stored:
        frames, num_frames = stored["frames"], stored["num_frames"]
    return Recording(frames, num_frames, _load_episodes(_episodes_path(job, f"{stage}_films")))


def _record_path(folder: Path, stage: str, suffix: str = "json") -> Path:
    return folder / "stages" / f"{stage}.{suffix}"


def _read(folder: Path, stage: str) -> StageRecord | None:
    path = _record_path(folder, stage)
    return StageRecord(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def _seconds_before(folder: Path, stage: str) -> float:
    """What interrupted attempts at this stage have taken."""
    path = _record_path(folder, stage, "seconds")
    return float(path.read_text(encoding="utf-8")) if path.exists() else 0.0


def _write_json(path: Path, value: Any) -> None:
    files.write_text(path, json.dumps(value, indent=2))
