"""Success rates on LIBERO: official initial states, every episode counted once, the same episodes whenever repeated.

    lanes --observe (render)--> prepare --normalize--> act --unnormalize--> the first execution_horizon actions --+
      ^                                                                                                           |
      +------------- a lane whose episode ended takes the next (task, initial state) of the list <----------------+

Before blaming a policy, `libero_replay.replay_check` runs a dataset's own actions in the same simulator.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float

from vla_jax.core import errors, keys
from vla_jax.core.types import Observation, Params, PromptTable
from vla_jax.envs.libero import LiberoObservation, LiberoTasks, LiberoVectorEnv
from vla_jax.evaluation import results, statistics
from vla_jax.evaluation.lanes import Lanes, decider, restart
from vla_jax.evaluation.rollouts import Act, Progress, Unnormalize
from vla_jax.learners.base import Memory

_ACTION_DIM = 7


def _nothing_to_remember(batch_size: int) -> Memory:
    return ()


def _identity(value: Any) -> Any:
    return value


def _as_predicted(actions: Float[Array, "b h a"], state: Float[Array, "b s"]) -> Float[Array, "b h a"]:
    return actions


@dataclasses.dataclass(frozen=True)
class EpisodeRecord:
    """What became of one episode."""

    task: int
    init_state: int  # index of the official initial state
    success: bool
    num_steps: int  # control steps, settling not counted
    seed: int  # of the policy's noise
    shown_task: int  # whose instruction the policy was told; `task` unless swapped


@dataclasses.dataclass(frozen=True)
class LiberoEpisodes:
    """What became of the episodes of one `LiberoTasks`, tasks outermost."""

    tasks: LiberoTasks
    records: tuple[EpisodeRecord, ...]

    @property
    def success(self) -> Bool[np.ndarray, "n"]:
        return np.array([record.success for record in self.records], bool)

    @property
    def returns(self) -> Float[np.ndarray, "n"]:
        """The reward is 1 at success and 0 before."""
        return self.success.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Policy:
    """An actor and the two edges it was trained with."""

    act: Act  # (actor_params, key, observation, memory) -> (actions "b h a", memory)
    actor_params: Params
    prompts: PromptTable  # row i: the tokenized instruction of the suite's task i (`env.spec.instructions`)
    initial_memory: Callable[[int], Memory] = _nothing_to_remember
    normalize: Callable[[Observation], Observation] = _identity  # pure; physical units to the network's
    unnormalize: Unnormalize = _as_predicted  # chunks and states, in physical units, to LiberoSim's actions
    prepare: Callable[[LiberoObservation], LiberoObservation] = _identity  # on the host: rename or resize cameras
    jit: bool = True  # False for an actor that is no JAX program, such as a client of a server


def evaluate(
    policy: Policy,
    env: LiberoVectorEnv,
    *,
    tasks: Sequence[int],
    init_states: Sequence[int],
    execution_horizon: int,
    seed: int = 0,
    shown_tasks: Mapping[int, int] | None = None,
    progress: Progress | None = None,
) -> tuple[EpisodeRecord, ...]:
    """Every task from every initial state, tasks outermost; records in that order.

    The policy looks and decides once per `execution_horizon` control steps, for all lanes at once; idle lanes at the
    end are filled up, so one compiled program serves. Repeating the call repeats every episode; another number of
    workers gives the policy other noise. `shown_tasks` tells it the instruction of another task (swapped-instruction
    control). Raises ConfigError when the chunk is too short or `prompts` has no row for a task.
    """
    _check(policy, env, tasks, execution_horizon)
    shown = shown_tasks or {}
    jobs = list(itertools.product(tasks, init_states))

    def start(episodes: Sequence[int], lanes: Sequence[int]) -> None:
        tasks, init_states = zip(*(jobs[i] for i in episodes), strict=True)
        env.reset(tasks, init_states, lanes=lanes)

    lanes = Lanes(env.num_workers, len(jobs), start=start, look=env.observe, step=env.step_chunk, map_rows=_map_rows)
    decide = decider(policy)
    memory = policy.initial_memory(env.num_workers)
    noise = keys.stream(seed, "libero")
    records: dict[int, EpisodeRecord] = {}
    for decision in itertools.count():
        started = lanes.refill()
        if not lanes.busy:
            return tuple(records[job] for job in range(len(jobs)))
        memory = restart(memory, policy.initial_memory(env.num_workers), started)
        observation = _to_observation(policy, lanes.observe(), shown)
        actions, memory = decide(policy.actor_params, keys.at_step(noise, decision), observation, memory)
        for lane, job in lanes.run(_fitting(np.asarray(actions), execution_horizon)).ended:
            task, init_state = jobs[job]
            success, num_steps = bool(env.success[lane]), int(env.env_steps[lane])
            records[job] = EpisodeRecord(task, init_state, success, num_steps, seed, shown.get(task, task))
            if progress is not None:
                progress(len(records), len(jobs), sum(record.success for record in records.values()))


def to_entry(
    records: Sequence[EpisodeRecord],
    *,
    suite: str,
    table: str,
    row: str,
    cell: str,
    manifest: Mapping[str, Any],
) -> results.Entry:
    """A results cell: success rate, Wilson interval and the record of every episode, paired by initial state."""
    successes = [record.success for record in records]
    return results.Entry(
        table=table,
        row=row,
        cell=cell,
        seeds=tuple(sorted({record.seed for record in records})),
        episodes=len(records),
        mean=float(np.mean(successes)),
        interval=statistics.wilson(sum(successes), len(successes)),
        manifest=manifest,
        records={
            "success": successes,
            "length": [record.num_steps for record in records],
            "instruction": [record.task for record in records],
            "shown_instruction": [record.shown_task for record in records],
            "initial_state": [f"{suite}:{record.task}:{record.init_state}" for record in records],
        },
    )


def to_entries(
    episodes: LiberoEpisodes, *, table: str, row: str, suffix: str = "", train_seed: int, manifest: Mapping[str, Any]
) -> list[results.Entry]:
    """One cell per task, `<suite>/<task>`, then one over all of them, named as `LiberoTasks.name`; `suffix` ends both.

    `train_seed` is what tells repetitions of a row apart; the seed of the policy's noise is in the manifest.

    Every task has as many episodes, so the last cell is the average of the others.
    """
    suite, records = episodes.tasks.suite, episodes.records
    cells = {f"{suite}/{task}": [each for each in records if each.task == task] for task in episodes.tasks.tasks}
    cells[episodes.tasks.name] = list(records)
    found = [
        to_entry(chosen, suite=suite, table=table, row=row, cell=f"{cell}{suffix}", manifest=manifest)
        for cell, chosen in cells.items()
    ]
    return [dataclasses.replace(each, seeds=(train_seed,)) for each in found]


def _check(policy: Policy, env: LiberoVectorEnv, tasks: Sequence[int], execution_horizon: int) -> None:
    if execution_horizon < 1:
        raise errors.ConfigError("LIBERO evaluation", expected="execution_horizon >= 1", found=execution_horizon)
    rows = len(policy.prompts.mask)
    if not tasks or max(tasks) >= rows:
        raise errors.ConfigError(
            f"prompts of {env.suite}",
            expected=f"a row for every task, {max(tasks, default=0) + 1} or more",
            found=f"{rows} rows",
            fix="tokenize env.spec.instructions",
        )


def _to_observation(policy: Policy, seen: LiberoObservation, shown: Mapping[int, int]) -> Observation:
    seen = policy.prepare(seen)
    rows = np.array([shown.get(int(task), int(task)) for task in seen.tasks])
    return Observation(
        images=seen.images,
        image_mask={name: np.ones(len(rows), bool) for name in seen.images},
        state=seen.state,
        prompt=np.asarray(policy.prompts.tokens)[rows],
        prompt_mask=np.asarray(policy.prompts.mask)[rows],
    )


def _fitting(actions: Float[np.ndarray, "b h a"], execution_horizon: int) -> Float[np.ndarray, "b e 7"]:
    if actions.ndim != 3 or actions.shape[1] < execution_horizon or actions.shape[2] < _ACTION_DIM:
        raise errors.ConfigError(
            "the actor's chunk does not fit LIBERO",
            expected=f"[b, h >= {execution_horizon} (execution_horizon), a >= {_ACTION_DIM}]",
            found=list(actions.shape),
        )
    return actions[:, :execution_horizon, :_ACTION_DIM]


def _map_rows(function: Callable[..., np.ndarray], *seen: LiberoObservation) -> LiberoObservation:
    first = seen[0]
    return LiberoObservation(
        images={name: function(*(each.images[name] for each in seen)) for name in first.images},
        state=function(*(each.state for each in seen)),
        tasks=function(*(each.tasks for each in seen)),
    )
