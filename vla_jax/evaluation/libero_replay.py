"""Do a dataset's own actions still succeed here? If not, the simulator is to blame and not the policy.

Needs the initial simulator states that `data_pipelines.libero` keeps in `episodes.jsonl` beside a set; published RLDS
sets do not hold any.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from vla_jax.core import errors
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.envs.libero import LiberoVectorEnv

STARTS_FILE = "episodes.jsonl"
_FILE_PATH = "episode_metadata/file_path"


@dataclasses.dataclass(frozen=True)
class Start:
    """How to begin an episode of a set again; one line of `episodes.jsonl`."""

    file_path: str  # the episode's name in the set
    suite: str
    task: int
    scene_seed: int  # places the fixtures
    num_steps: int
    init_state: Float64[np.ndarray, "d"]  # simulator state before settling


@dataclasses.dataclass(frozen=True)
class Replay:
    """How one recorded episode went."""

    start: Start
    success: bool


def save_starts(folder: Path, starts: Iterable[Start]) -> None:
    """Write `episodes.jsonl`; 17 digits carry a float64 through JSON exactly."""
    rows = ({**dataclasses.asdict(start), "init_state": start.init_state.tolist()} for start in starts)
    (folder / STARTS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))


def has_starts(folder: str | Path) -> bool:
    return _starts_path(folder) is not None


def load_starts(folder: str | Path) -> tuple[Start, ...]:
    """From a set's folder, or from the folder of its version. Raises DataError where they are not kept."""
    path = _starts_path(folder)
    if path is None:
        raise errors.DataError(
            f"{folder}: no {STARTS_FILE}",
            expected="the initial simulator state of every episode",
            fix="regenerate the set with data_pipelines.libero; published RLDS sets do not hold simulator states",
        )
    rows = (json.loads(line) for line in path.read_text().splitlines())
    return tuple(Start(**{**row, "init_state": np.array(row["init_state"], np.float64)}) for row in rows)


def recorded_actions(folder: str | Path) -> dict[str, Float[np.ndarray, "t 7"]]:
    """file_path -> actions, from the RLDS set in `folder` (the version folder)."""
    dataset = RldsDataset(folder, names=("action", _FILE_PATH))
    names, ids = dataset.texts(_FILE_PATH), dataset.text_ids(_FILE_PATH)
    bounds = dataset.episode_starts
    actions = dataset.columns["action"]
    return {names[ids[i]]: np.array(actions[bounds[i] : bounds[i + 1]]) for i in range(len(dataset))}


def replay_check(
    folder: str | Path,
    num_episodes: int | None = None,
    num_workers: int = 1,
    make_env: Callable[[str, int], LiberoVectorEnv] | None = None,
) -> tuple[Replay, ...]:
    """Run `num_episodes` episodes (all by default), spread over the set in `folder`, again, without rendering.

    Anything but success in all of them means that this simulator is not the one the set was made with. About 1
    CPU-second per episode. `make_env(suite, num_workers)` replaces the simulator in tests.
    """
    starts, actions = load_starts(folder), recorded_actions(folder)
    if num_episodes is not None and num_episodes < len(starts):
        starts = tuple(starts[i * len(starts) // num_episodes] for i in range(num_episodes))
    if missing := [start.file_path for start in starts if start.file_path not in actions]:
        raise errors.DataError(f"{folder}", expected=f"the episodes of {STARTS_FILE}", found=f"no {missing[:3]}")
    outcome: list[Replay] = []
    for suite, group in itertools.groupby(starts, key=lambda start: start.suite):
        with (make_env or _state_only)(suite, num_workers) as env:
            for batch in _batches(group, env.num_workers):
                outcome += _replay(env, batch, actions)
    return tuple(outcome)


def _replay(env: LiberoVectorEnv, starts: Sequence[Start], actions: Mapping[str, np.ndarray]) -> list[Replay]:
    lanes = list(range(len(starts)))
    env.reset([s.task for s in starts], [s.init_state for s in starts], [s.scene_seed for s in starts], lanes)
    recorded = [actions[start.file_path] for start in starts]
    chunk = np.zeros((len(starts), max(map(len, recorded)), recorded[0].shape[-1]), np.float32)
    for row, episode in zip(chunk, recorded, strict=True):
        row[: len(episode)] = episode
    result = env.step_chunk(chunk, lanes)
    # A success in the padding after a recorded episode came too late to be the recorded one.
    in_time = result.action_mask.sum(1) <= [len(episode) for episode in recorded]
    return [Replay(start, bool(ok)) for start, ok in zip(starts, result.success & in_time, strict=True)]


def _starts_path(folder: str | Path) -> Path | None:
    """Beside the version folder, where the set keeps what does not belong to RLDS."""
    candidates = (place / STARTS_FILE for place in (Path(folder), Path(folder).parent))
    return next((path for path in candidates if path.is_file()), None)


def _state_only(suite: str, num_workers: int) -> LiberoVectorEnv:
    return LiberoVectorEnv(suite, num_workers, render=None)


def _batches(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
