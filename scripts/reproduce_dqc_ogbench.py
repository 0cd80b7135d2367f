"""DQC on OGBench's cube-single: trained offline, judged by OGBench's five tasks. Minutes per run on one CPU core.

    python -m data_pipelines.ogbench generate --env cube-single --steps 100000 --out runs/ogbench/cube-single-play
    python scripts/reproduce_dqc_ogbench.py --methods dqc q_chunking --seeds 0 1 2
    python scripts/reproduce_dqc_ogbench.py --judge

A run that was stopped goes on from its last save, and one whose results are there is not made again. The policy of DQC
is behaviour cloning of single actions that no critic chooses among: judged with one candidate, it is the row `flow_bc`.
Every run of every seed is judged from the same initial states.
"""

import dataclasses
import functools
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
import tyro
from flax import serialization

import vla_jax  # noqa: F401  (first: sets XLA's CPU flags before jax starts)
from recipes import dqc_ogbench
from recipes.dqc_ogbench import Study
from vla_jax.core import keys, runtime
from vla_jax.core.types import Params
from vla_jax.data import trajectory_sets
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.data.trajectories import Trajectories, chunk_starts, goal_batch
from vla_jax.envs.ogbench_sim import NUM_TASKS
from vla_jax.evaluation import manifest, results, statistics, tables
from vla_jax.learners.dqc import DQC, DQCState

TABLE = "dqc_ogbench"
EVALUATION_SEED = 1000
STEPS_PER_CALL = 500
CONSOLE = rich.console.Console(highlight=False)


@dataclasses.dataclass(frozen=True)
class Options:
    methods: tuple[str, ...] = ("dqc", "q_chunking")  # keys of recipes/dqc_ogbench.py METHODS
    seeds: tuple[int, ...] = (0, 1, 2)
    num_train_steps: int = 20_000
    episodes_per_task: int = 50
    dataset: str | None = None  # version folder; None: the recipe's
    runs: str = "runs/dqc_ogbench"  # where unfinished runs are kept
    results: str = "results"
    judge: bool = False  # print the claims against the results, and run nothing


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.judge:
        return print_verdict(results.load_table(Path(options.results), TABLE))
    runtime.enable_compile_cache()
    for seed in options.seeds:
        for method in options.methods:
            done = {(entry.row, entry.seeds) for entry in results.load_table(Path(options.results), TABLE)}
            if (method, (seed,)) not in done:
                run(method, seed, options)


def run(method: str, seed: int, options: Options) -> None:
    study = dqc_ogbench.quick(method, options.num_train_steps)
    study = dataclasses.replace(study, dataset=options.dataset or study.dataset)
    learner = make(study, study.learner.num_candidates)
    params = learner.actor(train(study, learner, method, seed, options))
    rows = {method: learner}
    if method == "dqc":
        rows["flow_bc"] = make(study, 1)
    for row, judged in rows.items():
        success = judge(study, judged, params, seed, options.episodes_per_task)
        results.append(Path(options.results), f"{method}_seed{seed}", _entries(row, success, study, seed))


def make(study: Study, num_candidates: int) -> DQC:
    config = dataclasses.replace(study.learner, num_candidates=num_candidates)
    sizes = (study.action_dim, study.state_dim, study.goal_dim)
    return DQC(study.policy.constructor(), *sizes, optax.adam(study.lr), config)


def load(folder: str) -> Trajectories:
    """States and actions as OGBench scales them, actions clipped as the released code does; goals of every row."""
    dataset = RldsDataset(folder)
    states, actions, goals = (
        np.asarray(dataset.columns[name], np.float32)
        for name in ("observation/state", "action", "observation/oraclerep")
    )
    nothing = np.zeros(len(states), np.float32)
    lengths = np.diff(np.asarray(dataset.episode_starts))
    observations = trajectory_sets.state_observations(states)
    clipped = np.clip(actions, -1 + 1e-5, 1 - 1e-5)
    return trajectory_sets.from_arrays(observations, clipped, nothing, nothing + 1, lengths, goals)


def train(study: Study, learner: DQC, method: str, seed: int, options: Options) -> DQCState:
    """From the last save on: keys are functions of the step, so a stop changes nothing."""
    trajectories, horizon = load(study.dataset), study.learner.backup_horizon
    starts = chunk_starts(trajectories, horizon, arrives=True)

    @functools.partial(jax.jit, donate_argnums=0)
    def advance(state, key, trajectories, starts):
        def step(state, _):
            draw_key, update_key = jax.random.split(keys.at_step(key, state.step))
            batch = goal_batch(trajectories, starts, draw_key, (study.batch_size,), horizon, study.hindsight)
            return learner.update(state, update_key, batch)

        state, metrics = jax.lax.scan(step, state, None, STEPS_PER_CALL)
        return state, jax.tree.map(jnp.mean, metrics)

    state, path = learner.init(keys.stream(seed, "init")), Path(options.runs) / f"{method}_seed{seed}.msgpack"
    if path.exists():
        state = serialization.from_bytes(state, path.read_bytes())
    began, first = time.monotonic(), int(state.step)
    while int(state.step) < options.num_train_steps:
        state, metrics = advance(state, keys.stream(seed, "updates"), trajectories, starts)
        step = int(state.step)
        if step % 2000 == 0 or step == options.num_train_steps:
            _save(path, serialization.to_bytes(state))
            rate = (step - first) / (time.monotonic() - began)
            shown = ", ".join(f"{name} {metrics[name]:.3f}" for name in ("loss", "value/values", "policy/loss"))
            CONSOLE.print(f"{method}, seed {seed}, {step} updates, {rate:.0f} per second: {shown}")
    return state


def judge(study: Study, learner: DQC, params: Params, seed: int, episodes_per_task: int) -> np.ndarray:
    """Success of every episode, [tasks, episodes]: a task at a time, its episodes side by side in this process."""
    envs = [study.env.make() for _ in range(min(episodes_per_task, 25))]
    act = jax.jit(learner.act)
    success = np.zeros((NUM_TASKS, episodes_per_task), bool)
    for task in range(NUM_TASKS):
        for first in range(0, episodes_per_task, len(envs)):
            lanes = list(range(first, min(first + len(envs), episodes_per_task)))
            states = [env.reset(EVALUATION_SEED + lane, task=task) for lane, env in zip(lanes, envs, strict=False)]
            states, running, decision = np.stack([each.state for each in states]), set(range(len(lanes))), 0
            while running:
                observation = trajectory_sets.state_observations(states[:, : study.state_dim])
                draw = keys.at_step(keys.stream(seed, f"act {task} {first}"), decision)
                actions = np.asarray(act(params, draw, observation, states[:, study.state_dim :])[0])
                for lane in sorted(running):
                    chunk = envs[lane].step(actions[lane])
                    states[lane] = chunk.observation.state
                    success[task, lanes[lane]] |= chunk.success
                    running -= {lane} if chunk.done else set()
                decision += 1
        CONSOLE.print(f"  task {task + 1}: {success[task].mean():.1%}")
    for env in envs:
        env.close()
    return success


def _save(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".incomplete")
    partial.write_bytes(content)
    os.replace(partial, path)


def _entries(row: str, success: np.ndarray, study: Study, seed: int) -> list[results.Entry]:
    account = manifest.manifest(seeds=(seed,), recipe=study)
    values, cell = success.ravel(), "success_rate"
    tasks = np.repeat(np.arange(NUM_TASKS), success.shape[1])
    interval, rate = statistics.wilson(int(values.sum()), values.size), float(values.mean())
    records = {"success": values.tolist(), "task": tasks.tolist()}
    CONSOLE.print(f"{row}, seed {seed}: {rate:.1%} {interval}")
    return [results.Entry(TABLE, row, cell, (seed,), values.size, rate, interval, account, records=records)]


def print_verdict(entries: tuple[results.Entry, ...]) -> None:
    """DQC at least QC - 0.05, and above behaviour cloning by more than 0.2; means of all seeds that are there."""
    found = {
        row: tables.measure([e for e in entries if (e.row, e.cell) == (row, "success_rate")])
        for row in {entry.row for entry in entries}
    }
    for row, measured in sorted(found.items()):
        CONSOLE.print(f"{row}: {measured.mean:.1%} {measured.interval}, seeds {measured.seeds}")
    for row, margin in (("q_chunking", -0.05), ("flow_bc", 0.2)):
        if row in found and "dqc" in found:
            lead = found["dqc"].mean - found[row].mean
            CONSOLE.print(f"{'holds' if lead > margin else 'FAILS'}: dqc - {row} = {lead:.3f} > {margin}")


if __name__ == "__main__":
    main()
