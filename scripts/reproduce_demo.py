"""The demo's table: every arm, several seeds, into results/demo. Half an hour per seed on two idle CPU cores.

    python scripts/reproduce_demo.py --seeds 0 1 2

A seed changes the demonstrations and every training; all arms of all seeds are judged on the same 256 initial states.
Finished parts are not run again.
"""

import dataclasses
import sys
from pathlib import Path

import rich.console
import tyro

import vla_jax  # noqa: F401  (first: sets XLA's CPU flags before jax starts)
from data_pipelines import rollouts
from recipes import tabletop_demo
from vla_jax import experiment, main_job
from vla_jax.core import errors, progress, runtime
from vla_jax.evaluation import results
from vla_jax.training import trained
from vla_jax.training.recipe import Recipe

TABLE = "demo"
CONSOLE = rich.console.Console(highlight=False)


@dataclasses.dataclass(frozen=True)
class Options:
    seeds: tuple[int, ...] = (0, 1, 2)
    out: str = "runs/reproduce_demo"
    results: str = "results"
    arms: tuple[str, ...] = ("main", "swapped", "best_of_n", "filtered")


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    runtime.enable_compile_cache()
    arms = {"main": run_main, "swapped": run_swapped, "best_of_n": run_best_of_n, "filtered": run_filtered}
    try:
        for seed in options.seeds:
            folder = f"{options.out}/seed{seed}"
            for arm in options.arms:
                CONSOLE.print(f"[bold]seed {seed}: {arm}[/bold]")
                entries = arms[arm](folder, seed)
                results.append(Path(options.results), f"seed{seed}", entries)
    except (main_job.Interrupted, KeyboardInterrupt):
        CONSOLE.print("stopped; run the same command to go on from here")
    except errors.VlaError as error:
        CONSOLE.print(f"{type(error).__name__}: {error}", style="red")
        sys.exit(2)


def run_main(folder: str, seed: int) -> list[results.Entry]:
    main_job.run(tabletop_demo.job(folder, seed), CONSOLE)
    return list(results.load(Path(folder) / "results" / TABLE / "run.json"))


def run_swapped(folder: str, seed: int) -> list[results.Entry]:
    """The control: told another instruction than it is judged by, a policy that listens must fail."""
    return [judge(f"{folder}/{run}", row, swap=True) for run, row in main_job.ROWS.items()]


def run_best_of_n(folder: str, seed: int) -> list[results.Entry]:
    return [train_and_judge(tabletop_demo.best_of_n(folder, seed), f"{folder}/best_of_n", "best_of_n")]


def run_filtered(folder: str, seed: int) -> list[results.Entry]:
    config = tabletop_demo.rollouts(folder, seed)
    with progress.bar(CONSOLE) as shown:
        bar = shown.add_task("the imitation policy's own episodes", total=config.num_episodes)
        rollouts.generate(f"{folder}/rollouts/1.0.0", config, lambda done, _: shown.update(bar, completed=done))
    recipe = tabletop_demo.filtered_imitation(folder, seed)
    return [train_and_judge(recipe, f"{folder}/filtered_imitation", "filtered_imitation")]


def train_and_judge(recipe: Recipe, run_dir: str, row: str) -> results.Entry:
    if experiment.train(recipe, run_dir).interrupted:
        raise main_job.Interrupted(run_dir)
    return judge(run_dir, row)


def judge(run_dir: str, row: str, swap: bool = False) -> results.Entry:
    policy = trained.load(run_dir)
    ((env_name, episodes),) = experiment.evaluate(policy, swap_instructions=swap).items()
    cell = "swapped_instructions" if swap else "success_rate"
    found = experiment.entry(policy, env_name, episodes, table=TABLE, row=row, cell=cell)
    CONSOLE.print(f"  {row} {cell}: {found.mean:.1%} of {found.episodes}")
    return found


if __name__ == "__main__":
    main()
