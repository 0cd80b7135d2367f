"""Success rates on host environments, such as Gymnasium's and OGBench's: every episode counted once.

    policy = HostPolicy(act=actor.act, actor_params=params)
    with OgbenchConfig("cube-single", goal="oraclerep").make_lanes(4) as env:
        records = evaluate(policy, env, tasks=range(5), seeds=range(50), execution_horizon=5)
    entry = to_entry(records, table="ogbench", row="DQC", cell="cube-single", train_seed=0, manifest=manifest())

The loop is that of LIBERO (`lanes.py`), whose episodes start from official states instead of seeds.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float

from vla_jax.core import errors, keys
from vla_jax.core.types import Observation, Params
from vla_jax.envs.host import HostVectorEnv
from vla_jax.evaluation import results, statistics
from vla_jax.evaluation.lanes import Lanes, decider, restart
from vla_jax.evaluation.rollouts import Act, Progress, Unnormalize
from vla_jax.learners.base import Memory


def _nothing_to_remember(batch_size: int) -> Memory:
    return ()


def _identity(value: Any) -> Any:
    return value


def _as_predicted(actions: Float[Array, "b h a"], state: Float[Array, "b s"]) -> Float[Array, "b h a"]:
    return actions


@dataclasses.dataclass(frozen=True)
class HostPolicy:
    """An actor and the edges it was trained with; what it is told in words comes from the environment."""

    act: Act  # (actor_params, key, observation, memory) -> (actions "b h a", memory)
    actor_params: Params
    initial_memory: Callable[[int], Memory] = _nothing_to_remember
    normalize: Callable[[Observation], Observation] = _identity  # pure; physical units to the network's
    unnormalize: Unnormalize = _as_predicted  # chunks and states, in physical units, to the environment's [-1, 1]
    jit: bool = True  # False for an actor that is no JAX program, such as a client of a server


@dataclasses.dataclass(frozen=True)
class HostRecord:
    """What became of one episode."""

    task: int  # index into the environment's instructions
    seed: int  # of the episode: equal seeds, equal starts
    success: bool
    returns: float  # undiscounted sum of rewards
    num_steps: int


@dataclasses.dataclass(frozen=True)
class HostEpisodes:
    """What became of the episodes of one environment, tasks outermost."""

    records: tuple[HostRecord, ...]

    @property
    def success(self) -> Bool[np.ndarray, "n"]:
        return np.array([record.success for record in self.records], bool)

    @property
    def returns(self) -> Float[np.ndarray, "n"]:
        return np.array([record.returns for record in self.records])


def evaluate(
    policy: HostPolicy,
    env: HostVectorEnv,
    *,
    tasks: Sequence[int],
    seeds: Sequence[int],
    execution_horizon: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[HostRecord, ...]:
    """Every task from every seed, tasks outermost; records in that order.

    The policy looks and decides once per `execution_horizon` control steps, for all lanes at once. Repeating the call
    repeats every episode; another number of lanes gives a sampling policy other noise. Raises ConfigError when there is
    nothing to do or the chunk is too short.
    """
    jobs = list(itertools.product(map(int, tasks), map(int, seeds)))
    if not jobs or execution_horizon < 1:
        raise errors.ConfigError(
            f"evaluation on {env.spec.name}",
            expected="tasks, seeds and execution_horizon >= 1",
            found=f"{len(jobs)} episodes, execution_horizon {execution_horizon}",
        )

    def start(episodes: Sequence[int], lanes: Sequence[int]) -> None:
        env.reset([jobs[i][1] for i in episodes], [jobs[i][0] for i in episodes], lanes)

    lanes = Lanes(env.num_lanes, len(jobs), start=start, look=env.observe, step=env.step)
    decide, noise = decider(policy), keys.stream(seed, "host")
    memory = policy.initial_memory(env.num_lanes)
    returns = np.zeros(env.num_lanes)
    records: dict[int, HostRecord] = {}
    for decision in itertools.count():
        started = lanes.refill()
        if not lanes.busy:
            return tuple(records[job] for job in range(len(jobs)))
        returns[started] = 0.0
        memory = restart(memory, policy.initial_memory(env.num_lanes), started)
        actions, memory = decide(policy.actor_params, keys.at_step(noise, decision), lanes.observe(), memory)
        ran = lanes.run(_fitting(np.asarray(actions), execution_horizon, env))
        returns[ran.lanes] += ran.result.rewards.sum(axis=1)
        for lane, job in ran.ended:
            task, start_seed = jobs[job]
            success, num_steps = bool(env.success[lane]), int(env.env_steps[lane])
            records[job] = HostRecord(task, start_seed, success, float(returns[lane]), num_steps)
            if progress is not None:
                progress(len(records), len(jobs), sum(record.success for record in records.values()))


def to_entry(
    records: Sequence[HostRecord],
    *,
    environment: str,
    table: str,
    row: str,
    cell: str,
    train_seed: int,
    manifest: Mapping[str, Any],
) -> results.Entry:
    """A results cell: success rate, Wilson interval and the record of every episode, paired by task and seed."""
    successes = [record.success for record in records]
    return results.Entry(
        table=table,
        row=row,
        cell=cell,
        seeds=(train_seed,),
        episodes=len(records),
        mean=float(np.mean(successes)),
        interval=statistics.wilson(sum(successes), len(successes)),
        manifest=manifest,
        records={
            "success": successes,
            "returns": [record.returns for record in records],
            "length": [record.num_steps for record in records],
            "instruction": [record.task for record in records],
            "initial_state": [f"{environment}:{record.task}:{record.seed}" for record in records],
        },
    )


def _fitting(
    actions: Float[np.ndarray, "b h a"], execution_horizon: int, env: HostVectorEnv
) -> Float[np.ndarray, "b e d"]:
    width = env.spec.action_dim
    if actions.ndim != 3 or actions.shape[1] < execution_horizon or actions.shape[2] < width:
        raise errors.ConfigError(
            f"the actor's chunk does not fit {env.spec.name}",
            expected=f"[b, h >= {execution_horizon} (execution_horizon), a >= {width}]",
            found=list(actions.shape),
        )
    return actions[:, :execution_horizon, :width]
