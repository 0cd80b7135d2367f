"""Runs recipes: everything a recipe names is built here and handed to `fit`, and its checkpoint is judged.

recipe -> learner, source, edges -> fit -> checkpoint -> TrainedPolicy -> Judge -> Episodes -> results entries
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from vla_jax.core import errors
from vla_jax.core.types import Params
from vla_jax.data import normalization
from vla_jax.data.demonstrations import compute_statistics
from vla_jax.data.pictures.augment import augment_batch
from vla_jax.envs.base import Env, EnvSpec
from vla_jax.envs.libero import LiberoTasks
from vla_jax.evaluation import host, judges, libero, libero_check, manifest, results
from vla_jax.evaluation.held_out import HeldOut, sets_of, together
from vla_jax.evaluation.host import HostEpisodes
from vla_jax.evaluation.judges import AnyEpisodes, Judge
from vla_jax.evaluation.libero import LiberoEpisodes
from vla_jax.evaluation.libero_check import SimulatorCheck
from vla_jax.evaluation.rollouts import Episodes, Progress, Rollout
from vla_jax.learners.base import HasFrozen, Learner, LearnerState
from vla_jax.learners.imitation import ImitationConfig
from vla_jax.learners.pa_rl import PARLConfig
from vla_jax.training import checkpoints, contract, recipe_sources, trained
from vla_jax.training.fit import Evaluate, FitResult, WarmStart, fit
from vla_jax.training.plain import to_plain
from vla_jax.training.recipe import AROUND_A_POLICY, EvaluationConfig, PureEnvConfig, Recipe
from vla_jax.training.sources import Source
from vla_jax.training.step import Augment
from vla_jax.training.trained import Edges, TrainedPolicy

RENDERER = "vla_jax.envs.mjx.renderer"
_MARKS = "data_simulators"  # in the checkpoint: which simulators drew the training data, where that is known

MakeSource = Callable[[Learner, Edges], Source]


def train(
    recipe: Recipe,
    run_dir: str | Path,
    *,
    accept: Sequence[str] = (),
    make_source: MakeSource | None = None,
    quiet: bool = False,
) -> FitResult:
    """Train a recipe in `run_dir`, going on where an earlier call stopped.

    `make_source` makes the batches where they are not from what the recipe names but from actors elsewhere. `accept`
    names differences between the recipe and the checkpoint it starts from that are meant (see `contract.ACCEPTABLE`).
    Raises DataError when the data is missing, CheckpointError when the recipe is not what that checkpoint was made for,
    and what `fit` raises.
    """
    if recipe.start_from is not None:
        start = checkpoints.read_metadata(checkpoints.step_folder(recipe.start_from))
        contract.require(contract.of_checkpoint(recipe.start_from, start), contract.of_recipe(recipe), accept)
    by_dataset = dataset_statistics(recipe) if recipe.data.per_dataset else {}
    statistics = next(iter(by_dataset.values())) if by_dataset else data_statistics(recipe)
    edges = trained.make_edges(recipe, statistics)
    learner = trained.make_learner(recipe)
    judging = [_judge(recipe, config, learner, edges, recipe.evaluation) for config in recipe.evaluation.envs]
    if make_source is None:
        env = None if recipe.replay is None else make_env(recipe, recipe.evaluation.envs[0], edges)
        source = recipe_sources.of_recipe(recipe, learner, edges, by_dataset, env)
    else:
        source = make_source(learner, edges)
    action_names, state_names, control_hz = _signature(judging, statistics)
    metadata = trained.contract(recipe, statistics, action_names, control_hz, by_dataset)
    metadata["state"] = {"names": list(state_names)}
    metadata[_MARKS] = libero_check.marks(_dataset_paths(recipe))
    thaw = None
    if recipe.tuning.freezes:
        mark = metadata[trained.BASE] = trained.base_mark(recipe, run_dir)

        def thaw(state: LearnerState) -> LearnerState:
            return learner.with_frozen(state, trained.load_base(recipe.start_from, mark, run_dir))

    return fit(
        learner,
        source,
        recipe.fit,
        run_dir,
        evaluate=_evaluator(judging, recipe, learner, edges, action_names, by_dataset)
        if recipe.fit.eval_every
        else None,
        metadata=metadata,
        logical_axes=trained.logical_axes(recipe),
        warm_start=_warm_start(recipe, learner),
        thaw=thaw,
        augment=augmentation(recipe),
        quiet=quiet,
    )


def _signature(
    judging: Sequence[Judge], statistics: normalization.Statistics
) -> tuple[tuple[str, ...], tuple[str, ...], float | None]:
    """Names of action and state dims and the control rate; of a robot without a simulator here, numbers."""
    if judging:
        spec = judging[0].spec
        return spec.action_names, spec.state_names, spec.control_hz
    return (
        tuple(f"action_{dim}" for dim in range(statistics.actions.dim)),
        tuple(f"state_{dim}" for dim in range(statistics.state.dim)),
        None,
    )


def augmentation(recipe: Recipe) -> Augment | None:
    """What training does to a batch on the device."""
    return None if recipe.data.augment is None else functools.partial(augment_batch, config=recipe.data.augment)


def data_statistics(recipe: Recipe) -> normalization.Statistics:
    """Those the policy was trained with: from the checkpoint it starts from, else computed from all data together."""
    if recipe.start_from is not None:
        return trained.load_statistics(recipe.start_from)
    if not recipe.data.datasets:  # a learner that needs no recordings: states and actions as the environment has them
        return normalization.Statistics.identity(recipe.policy.backbone.state_dim, recipe.policy.decoder.action_dim)
    _require_datasets(recipe)
    return compute_statistics(recipe.data.datasets, faults=recipe.data.faults)


def dataset_statistics(recipe: Recipe) -> dict[str, normalization.Statistics]:
    """Those of every dataset by its key: from the checkpoint the recipe starts from where that has them."""
    known = {} if recipe.start_from is None else trained.load_dataset_statistics(recipe.start_from)
    new = [dataset for dataset in recipe.data.datasets if dataset.key not in known]
    if new:
        _require_datasets(recipe)
    known |= {dataset.key: compute_statistics(dataset, faults=recipe.data.faults) for dataset in new}
    return {dataset.key: known[dataset.key] for dataset in recipe.data.datasets}


def _require_datasets(recipe: Recipe) -> None:
    for dataset in recipe.data.datasets:
        folder = Path(dataset.path)
        if not any((folder / name).is_file() for name in ("dataset_info.json", "meta/info.json")):
            raise errors.DataError(
                f"{dataset.path}: no dataset",
                expected=f"the dataset that recipe {recipe.name} trains on (RLDS: its version folder)",
                found="no dataset_info.json in it" if folder.is_dir() else "no such folder",
                fix="make it with `vla-jax data generate`, or point data.datasets at yours",
            )


def evaluate(
    policy: TrainedPolicy,
    config: EvaluationConfig | None = None,
    *,
    swap_instructions: bool = False,
    accept: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, AnyEpisodes]:
    """Judge a checkpoint in every environment of `config`, by default the evaluation of its recipe.

    `accept` names differences between checkpoint and environment that are meant (see `contract.ACCEPTABLE`); others
    raise CheckpointError. `progress` counts over all environments. Keys are environment names.
    """
    config = config or policy.recipe.evaluation
    judging = [
        _judge(policy.recipe, env_config, policy.learner, policy.edges, config, swap_instructions=swap_instructions)
        for env_config in config.envs
    ]
    ours = contract.of_checkpoint(policy.path, policy.metadata)
    for judge in judging:
        contract.require(ours, contract.of_environment(judge.spec), accept)
    total, found = sum(judge.num_episodes for judge in judging), {}
    for judge in judging:
        done_before = sum(len(episodes.success) for episodes in found.values())
        solved_before = sum(int(episodes.success.sum()) for episodes in found.values())

        def show(done: int, _: int, solved: int, done_before=done_before, solved_before=solved_before) -> None:
            if progress is not None:
                progress(done_before + done, total, solved_before + solved)

        found[judge.name] = judge.evaluate(policy.params, show)
    return found


def check_simulators(
    policy: TrainedPolicy, config: EvaluationConfig, *, num_replays: int = 0
) -> dict[str, SimulatorCheck]:
    """For every LIBERO environment of `config`, by name: its fingerprint, compared with the training data's, and, with
    `num_replays`, how that many recorded episodes of each training dataset go here."""
    replays = libero_check.replay(_dataset_paths(policy.recipe), num_replays) if num_replays else {}
    marks = policy.metadata.get(_MARKS, {})  # older checkpoints do not say
    return {
        tasks.name: dataclasses.replace(libero_check.check(tasks, marks), replays=replays)
        for tasks in config.envs
        if isinstance(tasks, LiberoTasks)
    }


def entry(
    policy: TrainedPolicy, env_name: str, episodes: Episodes | HostEpisodes, *, table: str, row: str, cell: str
) -> results.Entry:
    """One evaluation as a cell of a table, with everything a rerun needs."""
    if isinstance(episodes, HostEpisodes):
        return host.to_entry(
            episodes.records,
            environment=env_name,
            table=table,
            row=row,
            cell=cell,
            train_seed=policy.recipe.fit.seed,
            manifest=_manifest(policy, None),
        )
    return results.from_episodes(
        episodes,
        table=table,
        row=row,
        cell=cell,
        seed=policy.recipe.fit.seed,
        env_name=env_name,
        manifest=_manifest(policy, RENDERER),
    )


def entries(
    policy: TrainedPolicy,
    env_name: str,
    episodes: AnyEpisodes,
    *,
    table: str,
    row: str,
    suffix: str = "",
    check: SimulatorCheck | None = None,
) -> list[results.Entry]:
    """The cells of one environment's episodes, named as the environment and ending in `suffix`. On LIBERO one per task
    and their average, with the `check` of the simulator in the manifest."""
    if not isinstance(episodes, LiberoEpisodes):
        return [entry(policy, env_name, episodes, table=table, row=row, cell=f"{env_name}{suffix}")]
    account = _manifest(policy, check.here.renderer if check else None)
    account |= {"evaluated": manifest.plain(episodes.tasks), "simulator": check.to_json() if check else None}
    seed = policy.recipe.fit.seed
    return libero.to_entries(episodes, table=table, row=row, suffix=suffix, train_seed=seed, manifest=account)


def rollout(
    policy: TrainedPolicy, env_config: PureEnvConfig, execution_horizon: int, *, swap_instructions: bool = False
) -> Rollout:
    """The policy in an environment, with the statistics and the tokenizer it was trained with."""
    env = make_env(policy.recipe, env_config, policy.edges)
    return judges.make_rollout(env, policy.learner, policy.edges, execution_horizon, swap_instructions)


def make_env(recipe: Recipe, config: PureEnvConfig, edges: Edges) -> Env:
    """Raises ConfigError when the environment does not show and take what the recipe's policy was made for."""
    env = config.make(edges.prompts(config.instructions))
    _check_env(recipe, env.spec, edges)
    return env


def _judge(
    recipe: Recipe,
    config: judges.EnvConfig,
    learner: Learner,
    edges: Edges,
    evaluation: EvaluationConfig,
    *,
    swap_instructions: bool = False,
) -> Judge:
    judge = judges.make_judge(config, learner, edges, evaluation, swap_instructions=swap_instructions)
    _check_env(recipe, judge.spec, edges)
    return judge


def _manifest(policy: TrainedPolicy, renderer: str | None) -> dict[str, Any]:
    recipe = policy.recipe
    seeds = [recipe.fit.seed, recipe.evaluation.seed]
    return manifest.manifest(seeds=seeds, recipe=to_plain(recipe), renderer=renderer)


def _dataset_paths(recipe: Recipe) -> list[str]:
    return [dataset.path for dataset in recipe.data.datasets]


def _warm_start(recipe: Recipe, learner: Learner) -> WarmStart | None:
    """What the checkpoint that the recipe starts from brings into the fresh state: its policy, and PA-RL's critics.

    RLPD, HIL-SERL and DQC, which are around no other policy, go on with all their networks and forget the optimizers'
    moments.
    Raises ConfigError where the checkpoint is another learner's.
    """
    if recipe.start_from is None:
        return None
    if not isinstance(recipe.learner, (ImitationConfig, *AROUND_A_POLICY)):
        return functools.partial(_go_on, recipe, learner)

    def warm_start(state: LearnerState) -> LearnerState:
        start = trained.load(recipe.start_from)
        state = learner.with_base(state, start.base_params, jax.random.key(recipe.fit.seed))
        if not (isinstance(recipe.learner, PARLConfig) and isinstance(start.recipe.learner, PARLConfig)):
            return state
        earlier = checkpoints.load_learner(recipe.start_from, learner.without_frozen(state))
        return learner.with_critics(state, earlier)

    return warm_start


def _go_on(recipe: Recipe, learner: Learner, state: LearnerState) -> LearnerState:
    started, wanted = trained.load(recipe.start_from).recipe.learner, type(recipe.learner)
    if type(started) is not wanted:
        raise errors.ConfigError(
            f"recipe {recipe.name}: start_from={recipe.start_from!r}",
            expected=f"a run of {wanted.__name__}, whose networks this one goes on with",
            found=f"one of {type(started).__name__}",
        )
    stored = learner.without_frozen(state) if isinstance(learner, HasFrozen) else state
    return _with_networks(state, checkpoints.load_learner(recipe.start_from, stored))


def _with_networks(state: LearnerState, earlier: LearnerState) -> LearnerState:
    """The fresh `state` with the networks of another one; a learner inside it, such as HIL-SERL's arm, likewise."""
    fresh, known = ("step", "opt_state", "frozen"), {}
    for field in dataclasses.fields(state):
        ours, theirs = getattr(state, field.name), getattr(earlier, field.name)
        if field.name not in fresh:
            known[field.name] = _with_networks(ours, theirs) if dataclasses.is_dataclass(ours) else theirs
    return state.replace(**known)


def _evaluator(
    judging: Sequence[Judge],
    recipe: Recipe,
    learner: Learner,
    edges: Edges,
    action_names: Sequence[str],
    by_dataset: dict[str, normalization.Statistics],
) -> Evaluate:
    """Success in the environments, and, where datasets hold out episodes, loss and action error on those."""

    def evaluate_actor(actor_params: Params, step: int) -> dict[str, float]:
        by_env = [judge.evaluate(actor_params) for judge in judging]
        names = [f"eval/{judge.name}" for judge in judging] if len(judging) > 1 else []
        rates = [float(episodes.success.mean()) for episodes in by_env]
        metrics = {"eval/success_rate": sum(rates) / len(rates), **dict(zip(names, rates, strict=False))}
        return metrics | {"eval/return": sum(float(episodes.returns.mean()) for episodes in by_env) / len(by_env)}

    held_out = validation(recipe, learner, edges, action_names, by_dataset)
    if not judging:
        if held_out is None:
            raise errors.ConfigError(
                f"recipe {recipe.name}: fit.eval_every",
                expected="environments in evaluation.envs, or a dataset with holdout",
                found="neither",
                fix="set fit.eval_every to None",
            )
        return held_out
    return evaluate_actor if held_out is None else together(held_out, evaluate_actor)


def validation(
    recipe: Recipe,
    learner: Learner,
    edges: Edges,
    action_names: Sequence[str],
    by_dataset: dict[str, normalization.Statistics],
) -> HeldOut | None:
    """The evaluation on held-out episodes, normalized as in training (`by_dataset`: `dataset_statistics`, or nothing
    where all have the same); None where no dataset holds any out, and for learners that act online."""
    if not isinstance(recipe.learner, ImitationConfig):
        return None
    sets = sets_of(recipe.data.datasets, recipe_sources.normalizers(recipe, edges, by_dataset), edges.encode)
    return HeldOut(learner, sets, action_names) if sets else None


def _check_env(recipe: Recipe, spec: EnvSpec, edges: Edges) -> None:
    """The environment must show and take what the policy was made for."""
    ours = contract.of_recipe(recipe, edges.normalizer.robot_action_dim)
    contract.require(ours, contract.of_environment(spec), raises=errors.ConfigError)
