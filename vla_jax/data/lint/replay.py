"""Recorded actions run again in the simulator the set comes from; the caller brings the simulator."""

import dataclasses
from collections.abc import Callable

from vla_jax.data.lint.report import Notes

_ENOUGH = 0.9


@dataclasses.dataclass(frozen=True)
class ReplayOutcome:
    """How the recorded actions of some episodes went; `reason` says why none could be run, `fix` what helps."""

    successes: int = 0
    total: int = 0
    reason: str = ""
    fix: str = "keep the initial simulator state of every episode when a set is recorded"


Replay = Callable[[], ReplayOutcome]


def check(replay: Replay, notes: Notes) -> None:
    outcome = replay()
    if outcome.total == 0:
        notes.warning(
            "replay",
            f"the actions were not run again: {outcome.reason}",
            outcome.fix,
        )
        return
    notes.fact("replay", f"{outcome.successes} of {outcome.total} episodes succeed again")
    if outcome.successes < _ENOUGH * outcome.total:
        notes.error(
            "replay",
            f"{outcome.successes} of {outcome.total} recorded episodes succeed when their actions are run again",
            "this simulator is not the one the set was made with, or the actions were changed on the way",
        )
