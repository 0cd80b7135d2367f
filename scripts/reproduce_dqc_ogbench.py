"""DQC on OGBench: trained offline, judged by its five tasks of a scene. Minutes per run on one CPU core.

    python -m data_pipelines.ogbench generate --env cube-single --steps 100000 --out runs/ogbench/cube-single-play
    python scripts/reproduce_dqc_ogbench.py --seeds 0 1 2
    python scripts/reproduce_dqc_ogbench.py --seeds 0 1 2 --size million     # rows that end in _1m
    python scripts/reproduce_dqc_ogbench.py --seeds 0 1 2 --size maze --methods dqc q_chunking
    python scripts/reproduce_dqc_ogbench.py --judge

A run that was stopped goes on from its last save, and one whose results are there is not made again. The policies are
behaviour cloning: judged with one candidate, DQC's is the row `flow_bc`, of single actions, and QC's `flow_bc_5`. Every
run is also judged by the best of fewer candidates (rows that end in _of_4), all of them from the same initial states.
"""

import dataclasses
import itertools
import sys
from pathlib import Path
from typing import Literal

import rich.console
import tyro

import vla_jax  # noqa: F401  (first: sets XLA's CPU flags before jax starts)
from recipes import dqc_ogbench
from vla_jax import experiment
from vla_jax.core import errors, runtime
from vla_jax.evaluation import results, tables
from vla_jax.training import trained
from vla_jax.training.recipe import Recipe
from vla_jax.training.trained import TrainedPolicy

TABLE = "dqc_ogbench"
SUFFIXES = {"quick": "", "million": "_1m", "maze": "_maze"}  # of rows, by size
FEWER = 4  # candidates
CLONES = {"dqc": "flow_bc", "q_chunking": "flow_bc_5"}  # rows of their policies without the choice
CONSOLE = rich.console.Console(highlight=False)


@dataclasses.dataclass(frozen=True)
class Options:
    methods: tuple[str, ...] = ("dqc", "dqc_093", "q_chunking")  # keys of recipes/dqc_ogbench.py METHODS
    seeds: tuple[int, ...] = (0, 1, 2)
    size: Literal["quick", "million", "maze"] = "quick"  # of recipes/dqc_ogbench.py
    num_train_steps: int | None = None  # None: the recipe's
    episodes_per_task: int = 50
    dataset: str | None = None  # version folder; None: the recipe's
    runs: str = "runs/dqc_ogbench"  # run folders
    results: str = "results"
    train_only: bool = False  # on a machine with an accelerator; the same command without it judges
    judge: bool = False  # print the claims against the results, and run nothing


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.judge:
        return print_verdict(results.load_table(Path(options.results), TABLE))
    runtime.enable_compile_cache()
    try:
        for seed in options.seeds:
            for method in options.methods:
                done = {(entry.row, entry.seeds) for entry in results.load_table(Path(options.results), TABLE)}
                if (method + SUFFIXES[options.size], (seed,)) not in done and not run(method, seed, options):
                    return CONSOLE.print("stopped; run the same command to go on from here")
    except errors.VlaError as error:
        CONSOLE.print(f"{type(error).__name__}: {error}", style="red")
        sys.exit(2)


def run(method: str, seed: int, options: Options) -> bool:
    """Train and judge one method; whether it was not interrupted."""
    suffix = SUFFIXES[options.size]
    folder = Path(options.runs) / f"{method}{suffix}_seed{seed}"
    if experiment.train(recipe(method, seed, options), folder).interrupted:
        return False
    if options.train_only:
        return True
    policy = trained.load(folder)
    rows = {f"{method}{suffix}": policy}
    if method in CLONES:
        rows[f"{CLONES[method]}{suffix}"] = choosing(policy, 1)
    rows[f"{method}{suffix}_of_{FEWER}"] = choosing(policy, FEWER)
    entries = [judge(row, judged) for row, judged in rows.items()]
    results.append(Path(options.results), folder.name, entries)
    return True


def recipe(method: str, seed: int, options: Options) -> Recipe:
    built = getattr(dqc_ogbench, options.size)(method, seed)
    dataset = built.recorded.dataset
    dataset = dataclasses.replace(dataset, path=options.dataset or dataset.path)
    (env,) = built.evaluation.envs
    return dataclasses.replace(
        built,
        fit=dataclasses.replace(built.fit, num_train_steps=options.num_train_steps or built.fit.num_train_steps),
        recorded=dataclasses.replace(built.recorded, dataset=dataset),
        evaluation=dataclasses.replace(
            built.evaluation, num_episodes=options.episodes_per_task * len(env.instructions)
        ),
    )


def choosing(policy: TrainedPolicy, num_candidates: int) -> TrainedPolicy:
    """The policy with another number of samples to choose from; of one it is behaviour cloning."""
    config = dataclasses.replace(policy.learner.config, num_candidates=num_candidates)
    return dataclasses.replace(
        policy,
        learner=dataclasses.replace(policy.learner, config=config),
        recipe=dataclasses.replace(policy.recipe, learner=config),
    )


def judge(row: str, policy: TrainedPolicy) -> results.Entry:
    ((env_name, episodes),) = experiment.evaluate(policy).items()
    entry = experiment.entry(policy, env_name, episodes, table=TABLE, row=row, cell="success_rate")
    CONSOLE.print(f"{row}, seeds {entry.seeds}: {entry.mean:.1%} {entry.interval}")
    return entry


def print_verdict(entries: tuple[results.Entry, ...]) -> None:
    """DQC at least QC - 0.05, and above behaviour cloning by more than 0.2; means of all seeds that are there."""
    found = {
        row: tables.measure([e for e in entries if (e.row, e.cell) == (row, "success_rate")])
        for row in {entry.row for entry in entries}
    }
    for row, measured in sorted(found.items()):
        CONSOLE.print(f"{row}: {measured.mean:.1%} {measured.interval}, seeds {measured.seeds}")
    for suffix, choice in itertools.product(SUFFIXES.values(), ("", f"_of_{FEWER}")):
        for row, margin in ((f"q_chunking{suffix}{choice}", -0.05), (f"flow_bc{suffix}", 0.2)):
            ours = f"dqc{suffix}{choice}"
            if {ours, row} <= found.keys():
                lead = found[ours].mean - found[row].mean
                CONSOLE.print(f"{'holds' if lead > margin else 'FAILS'}: {ours} - {row} = {lead:.3f} > {margin}")


if __name__ == "__main__":
    main()
