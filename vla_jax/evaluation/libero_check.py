"""Before a policy is judged on LIBERO: is this the simulator that its training data came from?

experiment.train   -> marks(datasets), stored in the checkpoint
vla-jax eval       -> check(tasks, marks) -> SimulatorCheck -> printed, and stored with the results
vla-jax eval --doctor                      -> also runs recorded episodes of the training data again
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vla_jax.core import errors
from vla_jax.envs.libero import LiberoTasks
from vla_jax.evaluation import fingerprint, libero_replay
from vla_jax.evaluation.fingerprint import Difference, Fingerprint
from vla_jax.evaluation.libero_replay import Replay

Marks = Mapping[str, Any]  # dataset path -> fingerprint as JSON


@dataclasses.dataclass(frozen=True)
class SimulatorCheck:
    """What is known of the simulator that is about to judge a policy."""

    here: Fingerprint
    differences: Mapping[str, tuple[Difference, ...]]  # dataset -> what differs from the simulator that made it
    replays: Mapping[str, tuple[Replay, ...]] = dataclasses.field(default_factory=dict)  # dataset -> its episodes, here

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the success rate has to know first, worst first; empty when all is well."""
        blamed = [_blame(path, replays) for path, replays in self.replays.items()]
        differing = [fingerprint.warning(found, first=path) for path, found in self.differences.items()]
        unknown = "*** THE TRAINING DATA HAVE NO FINGERPRINT: nothing says that this simulator looks like theirs ***"
        return tuple(filter(None, [*blamed, *differing, "" if self.differences else unknown]))

    def to_json(self) -> dict[str, Any]:
        """For the manifest of a result."""
        return {
            "fingerprint": self.here.to_json(),
            "differences": {path: [str(each) for each in found] for path, found in self.differences.items()},
            "replayed": {
                path: {"episodes": len(replays), "succeeded": sum(replay.success for replay in replays)}
                for path, replays in self.replays.items()
            },
        }


def marks(datasets: Sequence[str]) -> dict[str, Any]:
    """The fingerprints beside these datasets (their version folders); those without one are left out."""
    folders = {path: Path(path).parent for path in datasets}
    return {
        path: fingerprint.load(folder).to_json()
        for path, folder in folders.items()
        if (folder / "fingerprint.json").is_file()
    }


def check(tasks: LiberoTasks, data_marks: Marks) -> SimulatorCheck:
    """Draw the golden frames here and compare them with those of the training data: 10 to 20 s, mostly imports."""
    here = fingerprint.take([tasks.suite], tasks.render)
    theirs = {path: Fingerprint.from_json(value) for path, value in data_marks.items()}
    return SimulatorCheck(here, {path: tuple(fingerprint.compare(mark, here)) for path, mark in theirs.items()})


def replay(
    datasets: Sequence[str], num_episodes: int, num_workers: int = 1, run: Callable[..., Any] | None = None
) -> dict[str, tuple[Replay, ...]]:
    """Run the first episodes of the datasets again, 1 CPU-s each; `run` replaces `replay_check` in tests.

    Raises DataError when none of the datasets holds the simulator states that this takes.
    """
    able = [path for path in datasets if libero_replay.has_starts(path)]
    if not able:
        raise errors.DataError(
            "nothing to replay",
            expected=f"{libero_replay.STARTS_FILE} beside one of the training datasets, on this machine",
            found=f"none at {', '.join(datasets)}",
            fix="evaluate without --doctor, or make a set with data_pipelines.libero here",
        )
    run = run or libero_replay.replay_check
    return {path: run(path, num_episodes, num_workers) for path in able}


def _blame(path: str, replays: Sequence[Replay]) -> str:
    failed = [replay.start.file_path for replay in replays if not replay.success]
    if not failed:
        return ""
    return (
        f"*** THE SIMULATOR IS TO BLAME: {len(failed)} of {len(replays)} recorded episodes of {path} fail here ***\n"
        f"  {', '.join(failed[:3])}\n"
        "Recorded actions reach the goal from their own initial states where the set was made: what follows says "
        "little about the policy. Compare package versions (vla-jax doctor, fingerprint.json)."
    )
