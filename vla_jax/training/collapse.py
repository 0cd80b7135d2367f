"""When a run has collapsed: a metric against its own history. `fit` then goes back to the last good checkpoint.

success   .2 .5 .8 .9 .85 .3 .2        falls: below half of the best, twice in a row: back to .9
q_values  1  2  3  4  4   40 900       grows: above three times the median of what was good: back to 4
"""

import contextlib
import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
from jax.experimental import multihost_utils

from vla_jax.core import errors, files
from vla_jax.training import checkpoints

FILE = "rollbacks.jsonl"  # in the run folder


@dataclasses.dataclass(frozen=True)
class CollapseConfig:
    """Defaults: success that is lost for good. For values that run away: `critic/q_values`, "grows", 3."""

    metric: str = "eval/success_rate"  # as logged or evaluated
    direction: Literal["falls", "grows"] = "falls"
    factor: float = 0.5  # falls: of the best mean of `window` measurements; grows: of the median of the last `window`
    window: int = 2
    patience: int = 2  # measurements in a row beyond it
    max_rollbacks: int = 3  # the run fails at the next one

    def __post_init__(self):
        is_sound = 0 < self.factor < 1 if self.direction == "falls" else self.factor > 1
        if not is_sound or min(self.window, self.patience) < 1 or self.max_rollbacks < 0:
            raise errors.ConfigError(
                "CollapseConfig",
                expected="factor between 0 and 1 (falls) or above 1 (grows), window and patience of 1 or more",
                found=self,
            )


@dataclasses.dataclass(frozen=True)
class Collapse:
    good_step: int  # of the last measurement but one before it went wrong: the last may be half wrong, being a mean
    good: float  # what it is compared with
    found: float  # the last measurement


def find(history: Sequence[tuple[int, float]], config: CollapseConfig) -> Collapse | None:
    """The collapse that a history of (step, value) ends in, if it does."""
    good: list[tuple[int, float]] = []
    reference, streak = None, 0
    for step, value in history:
        reference = _reference([value for _, value in good], config)
        if reference is not None and _is_beyond(value, reference, config):
            streak += 1
        else:
            good.append((step, value))
            streak = 0
    if streak < config.patience:
        return None
    return Collapse(good[max(len(good) - 2, 0)][0], reference, history[-1][1])


def _reference(good: Sequence[float], config: CollapseConfig) -> float | None:
    window = config.window
    if len(good) < window:
        return None
    if config.direction == "grows":
        return statistics.median(abs(value) for value in good[-window:])
    return max(sum(good[i : i + window]) / window for i in range(len(good) - window + 1))


def _is_beyond(value: float, reference: float, config: CollapseConfig) -> bool:
    if config.direction == "grows":
        return abs(value) > config.factor * reference
    return value < config.factor * reference


class Collapsed(Exception):
    """Raised inside `fit` to leave the loop."""

    def __init__(self, collapse: Collapse):
        super().__init__(collapse)
        self.collapse = collapse


def rollbacks(run_dir: Path) -> list[dict[str, Any]]:
    """What was given up so far, oldest first."""
    path = run_dir / FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def seed_of(seed: int, run_dir: Path) -> int:
    """Of the updates: after a rollback other keys, since with the same ones the run would end where it did."""
    return seed + (len(rollbacks(run_dir)) << 16)


def roll_back(run_dir: Path, collapse: Collapse, config: CollapseConfig) -> None:
    """Delete the checkpoints behind the last good measurement, and write down why.

    Raises TrainingError when no good one is left or the run has collapsed too often.
    """
    before = rollbacks(run_dir)
    with contextlib.closing(checkpoints.Checkpoints(run_dir)) as store:
        kept = [step for step in store.steps() if step <= collapse.good_step]
        if not kept or len(before) >= config.max_rollbacks:
            raise errors.TrainingError(
                f"{run_dir}: {config.metric} has collapsed",
                expected=f"no more than {config.factor} away from {collapse.good:.4g}, as until step "
                f"{collapse.good_step}",
                found=f"{collapse.found:.4g}, " + (f"{len(before)} rollbacks so far" if kept else "no checkpoint"),
                fix="lower the learning rate or the update ratio; checkpoint_every below eval_every keeps good states",
            )
        for step in store.steps():
            if step > collapse.good_step:
                store.delete(step)
    row = {**dataclasses.asdict(collapse), "metric": config.metric, "to_step": kept[-1]}
    if jax.process_index() == 0:
        files.write_text(run_dir / FILE, "".join(json.dumps(each) + "\n" for each in [*before, row]))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("rollback")
