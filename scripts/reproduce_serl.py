"""The small reproduction of SERL's learner: pick up a cube, with 20 demonstrations. Minutes per arm and seed.

    python scripts/reproduce_serl.py --seeds 0 1 2

Four arms with the same networks, update ratio and budget: SAC alone; SAC whose buffer starts with the demonstrations;
RLPD, whose every batch is half demonstrations; and RLPD without LayerNorm. Two more ask whether the frame of the tool
carries over to another place, two give the grip to HIL-SERL's DQN, and one sees the cube in pictures. The task is the
suite's pick-cube, with the gripper on slides and the sparse reward. Demonstrations are scripted, with jitter on every
action; a seed changes them and the training, and all policies are judged on the same 100 initial states. A run that was
stopped goes on from its last save.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import rich.console
import tyro

import vla_jax  # noqa: F401  (first: sets XLA's CPU flags before jax starts)
from recipes import serl_pick_cube
from vla_jax import experiment
from vla_jax.core import errors, runtime
from vla_jax.evaluation import results, statistics
from vla_jax.training import trained
from vla_jax.training.recipe import EvaluationConfig, Recipe
from vla_jax.training.trained import TrainedPolicy

TABLE = "serl"
SHIFTED = ("absolute_frame", "relative_frame")  # arms that are judged in another place as well
CONSOLE = rich.console.Console(highlight=False)


@dataclasses.dataclass(frozen=True)
class Options:
    seeds: tuple[int, ...] = (0, 1, 2)
    arms: tuple[str, ...] = tuple(serl_pick_cube.ARMS)
    runs: str = serl_pick_cube.FOLDER  # run folders, and the demonstrations
    results: str = "results"


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    runtime.enable_compile_cache()
    try:
        for arm in options.arms:
            for seed in options.seeds:
                recipe = in_folder(serl_pick_cube.ARMS[arm](seed), options.runs)
                entries = run(arm, recipe, Path(options.runs) / f"seed{seed}" / arm)
                if entries is None:
                    return CONSOLE.print("stopped; run the same command to go on from here")
                results.append(Path(options.results), f"seed{seed}", entries)
    except errors.VlaError as error:
        CONSOLE.print(f"{type(error).__name__}: {error}", style="red")
        sys.exit(2)


def in_folder(recipe: Recipe, runs: str) -> Recipe:
    """The recipe with its demonstrations under another folder."""
    (dataset,) = recipe.data.datasets
    path = runs + dataset.path.removeprefix(serl_pick_cube.FOLDER)
    recorded = recipe.recorded
    if recorded is not None:
        recorded = dataclasses.replace(recorded, dataset=dataclasses.replace(recorded.dataset, path=path))
    data = dataclasses.replace(recipe.data, datasets=(dataclasses.replace(dataset, path=path),))
    return dataclasses.replace(recipe, data=data, recorded=recorded)


def run(arm: str, recipe: Recipe, folder: Path) -> list[results.Entry] | None:
    """Demonstrations, training and judgement; None where training was stopped."""
    serl_pick_cube.generate(recipe)
    began = time.monotonic()
    if experiment.train(recipe, folder, quiet=True).interrupted:
        return None
    seconds = round(time.monotonic() - began, 1)
    policy = trained.load(folder)
    entries = [judge(policy, recipe.evaluation, arm, "success_rate")]
    if arm in SHIFTED:
        entries.append(judge(policy, serl_pick_cube.shifted(recipe), arm, "shifted_success_rate"))
    entries.append(_area(entries[0], success_curve(folder)))
    cost = {"env_steps": recipe.fit.num_train_steps * recipe.replay.num_envs, "train_seconds": seconds}
    cost["critic_updates"] = recipe.fit.num_train_steps * recipe.replay.rounds * recipe.replay.critic_updates
    return [dataclasses.replace(entry, manifest=entry.manifest | {"cost": cost}) for entry in entries]


def judge(policy: TrainedPolicy, config: EvaluationConfig, arm: str, cell: str) -> results.Entry:
    ((env_name, episodes),) = experiment.evaluate(policy, config).items()
    entry = experiment.entry(policy, env_name, episodes, table=TABLE, row=arm, cell=cell)
    CONSOLE.print(f"{arm}, seed {policy.recipe.fit.seed}: {cell} {entry.mean:.1%}")
    return entry


def success_curve(folder: Path) -> list[float]:
    """Success at every evaluation in the course of training."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [line["eval/success_rate"] for line in logged if "eval/success_rate" in line]


def _area(final: results.Entry, curve: list[float]) -> results.Entry:
    """The mean success over the evaluations of a run, as many as it had."""
    cell, interval = "curve_area", statistics.bootstrap_mean(np.asarray(curve))
    return results.Entry(
        TABLE, final.row, cell, final.seeds, len(curve), float(np.mean(curve)), interval, final.manifest, cell,
        {cell: curve},
    )  # fmt: skip


if __name__ == "__main__":
    main()
