"""What a run says: `metrics.jsonl` always, TensorBoard and W&B on request, and progress on the terminal.

`metrics.jsonl` holds only what the run computed, so a resumed run's file equals an uninterrupted one's to the byte.
Speeds, which differ, go to `timing.jsonl`.
"""

import dataclasses
import importlib
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import rich.console
import rich.progress

from vla_jax.core import errors

METRICS_FILE = "metrics.jsonl"
TIMING_FILE = "timing.jsonl"


@dataclasses.dataclass(frozen=True)
class LogConfig:
    tensorboard: bool = False  # event files in <run>/tensorboard
    wandb_project: str | None = None
    wandb_name: str | None = None  # of the run; default: the run folder's name
    plain_seconds: float = 10.0  # between progress lines when the output is not a terminal

    def __post_init__(self):
        if self.plain_seconds <= 0:
            raise errors.ConfigError("LogConfig.plain_seconds", expected="above 0", found=self.plain_seconds)


class Writer(Protocol):
    def write(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One JSON object per line, `step` first, flushed line by line."""

    def __init__(self, path: Path, *, resume_step: int):
        """Opens for appending; lines of later steps than `resume_step`, and a half-written one, are cut off."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        truncate(path, resume_step)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Reach the disk: called before a checkpoint that relies on these lines."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Scalars for TensorBoard; later steps of an earlier attempt are purged."""

    def __init__(self, folder: Path, *, resume_step: int):
        module = require("tensorboardX", "LogConfig.tensorboard")
        self._writer = module.SummaryWriter(str(folder), purge_step=resume_step + 1 if resume_step else None)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """One W&B run per run folder, taken up again on resume."""

    def __init__(self, run_dir: Path, project: str, name: str | None, config: Mapping[str, Any]):
        module = require("wandb", "LogConfig.wandb_project")
        id_file = run_dir / "wandb_id.txt"
        run_id = id_file.read_text().strip() if id_file.exists() else None
        self._run = module.init(
            project=project, name=name or run_dir.name, id=run_id, resume="allow", dir=str(run_dir), config=dict(config)
        )
        id_file.write_text(self._run.id)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


class RunLog:
    """All writers of one run; on processes other than the first it writes nothing."""

    def __init__(
        self,
        run_dir: Path,
        config: LogConfig,
        *,
        resume_step: int = 0,
        recipe: Mapping[str, Any] | None = None,
        is_main: bool = True,
    ):
        self._metrics: JsonLines | None = None
        self._timing: JsonLines | None = None
        self._extra: list[Writer] = []
        if not is_main:
            return
        self._metrics = JsonLines(run_dir / METRICS_FILE, resume_step=resume_step)
        self._timing = JsonLines(run_dir / TIMING_FILE, resume_step=resume_step)
        if config.tensorboard:
            self._extra.append(TensorBoard(run_dir / "tensorboard", resume_step=resume_step))
        if config.wandb_project is not None:
            self._extra.append(WeightsAndBiases(run_dir, config.wandb_project, config.wandb_name, recipe or {}))

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self._write(self._metrics, step, metrics)

    def timing(self, step: int, values: Mapping[str, float]) -> None:
        self._write(self._timing, step, values)

    def sync(self) -> None:
        if self._metrics is not None:
            self._metrics.sync()

    def close(self) -> None:
        for writer in (self._metrics, self._timing, *self._extra):
            if writer is not None:
                writer.close()

    def _write(self, lines: JsonLines | None, step: int, values: Mapping[str, float]) -> None:
        if lines is not None:
            lines.write(step, values)
        for writer in self._extra:
            writer.write(step, values)


class Progress:
    """Where the run stands: a bar on a terminal, a line every `plain_seconds` elsewhere, nothing when `quiet`."""

    def __init__(self, total: int, start: int, batch_size: int, config: LogConfig, *, quiet: bool = False):
        self._total, self._batch_size, self._plain_seconds = total, batch_size, config.plain_seconds
        self._quiet, self._loss, self._paused = quiet, "", 0.0
        self._mark = self._last_line = time.monotonic()
        self._mark_step = start
        self._steps_per_second = 0.0
        self._bar: rich.progress.Progress | None = None
        if not quiet and sys.stderr.isatty():
            columns = ("{task.description}", rich.progress.BarColumn(), "{task.completed}/{task.total}")
            self._bar = rich.progress.Progress(
                *columns,
                "{task.fields[speed]}",
                rich.progress.TimeRemainingColumn(),
                console=rich.console.Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("training", total=total, completed=start, speed="")
            self._bar.start()

    def say(self, text: str) -> None:
        """One line that stays."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        elif not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def advance(self, step: int) -> None:
        """`step` updates are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, speed=self._speed())
        elif not self._quiet and time.monotonic() - self._last_line >= self._plain_seconds:
            self._last_line = time.monotonic()
            self.say(f"step {step}/{self._total}  {self._speed()}  {self._eta(step)}")

    def logged(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """New numbers for the display; returns the speeds since the last call, pauses left out."""
        now = time.monotonic()
        seconds = max(now - self._mark - self._paused, 1e-9)
        self._steps_per_second = (step - self._mark_step) / seconds
        self._mark, self._mark_step, self._paused = now, step, 0.0
        self._loss = _loss(metrics)
        return {
            "timing/steps_per_second": self._steps_per_second,
            "timing/samples_per_second": self._steps_per_second * self._batch_size,
        }

    def paused(self, seconds: float) -> None:
        """Time that was not training: evaluation, checkpoints."""
        self._paused += seconds

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _speed(self) -> str:
        if not self._steps_per_second:
            return self._loss
        rate = self._steps_per_second
        return f"{rate:.3g} steps/s  {rate * self._batch_size:.3g} samples/s  {self._loss}".rstrip()

    def _eta(self, step: int) -> str:
        if not self._steps_per_second:
            return "ETA -"
        seconds = int((self._total - step) / self._steps_per_second)
        return f"ETA {seconds // 3600}:{seconds % 3600 // 60:02}:{seconds % 60:02}"


def truncate(path: Path, step: int) -> None:
    """Cut a metrics file before its first line of a later step than `step`, or its first damaged line."""
    if not path.exists():
        return
    keep = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
            keep += len(line)
    os.truncate(path, keep)


def read(path: str | Path) -> list[dict[str, float]]:
    """The records of a metrics file, or of the run folder that holds one."""
    path = Path(path)
    return [json.loads(line) for line in (path / METRICS_FILE if path.is_dir() else path).read_text().splitlines()]


def require(package: str, asked_by: str) -> ModuleType:
    """Import an optional package. Raises ConfigError naming the extra that brings it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise errors.ConfigError(
            f"{asked_by} needs {package}, which is not installed", fix='pip install "vla-jax[logging]", or turn it off'
        ) from error


def _loss(metrics: Mapping[str, float]) -> str:
    """The number people watch: `loss`, else the first `.../loss`, else the first metric."""
    name = next((name for name in metrics if name.split("/")[-1] == "loss"), next(iter(metrics), None))
    return "" if name is None else f"{name} {metrics[name]:.4g}"
