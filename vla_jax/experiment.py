"""Runs recipes: everything a recipe names is built here and handed to `fit`, and its checkpoint is judged.

recipe -> learner, source, edges -> fit -> checkpoint -> TrainedPolicy -> Rollout -> Episodes
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from vla_jax.core import errors
from vla_jax.core.types import Params
from vla_jax.data import normalization
from vla_jax.data.demonstrations import compute_statistics
from vla_jax.data.loader import Loader
from vla_jax.envs.base import Env
from vla_jax.envs.mjx.tabletop import TabletopConfig
from vla_jax.evaluation import manifest, results
from vla_jax.evaluation.rollouts import Episodes, Progress, Rollout, swapped_instructions
from vla_jax.learners.base import Learner, LearnerState
from vla_jax.learners.expo import EXPOConfig
from vla_jax.training import trained
from vla_jax.training.fit import Evaluate, FitResult, fit
from vla_jax.training.online import ReplaySource
from vla_jax.training.recipe import EvaluationConfig, Recipe, to_plain
from vla_jax.training.sources import DatasetSource, Source
from vla_jax.training.trained import Edges, TrainedPolicy

RENDERER = "vla_jax.envs.mjx.renderer"


def train(recipe: Recipe, run_dir: str | Path, *, quiet: bool = False) -> FitResult:
    """Train a recipe in `run_dir`, going on where an earlier call stopped.

    Raises DataError when the data is missing, and what `fit` raises.
    """
    statistics = data_statistics(recipe)
    edges = trained.make_edges(recipe, statistics)
    envs = [make_env(recipe, config, edges) for config in recipe.evaluation.envs]
    learner = trained.make_learner(recipe)
    source, warm_start = _source(recipe, learner, edges, envs[0])
    return fit(
        learner,
        source,
        recipe.fit,
        run_dir,
        evaluate=_evaluator(recipe, learner, edges, envs) if recipe.fit.eval_every else None,
        metadata=trained.contract(recipe, statistics, envs[0].spec.action_names, envs[0].spec.control_hz),
        warm_start=warm_start,
        quiet=quiet,
    )


def data_statistics(recipe: Recipe) -> normalization.Statistics:
    """Those the policy was trained with: from the checkpoint it starts from, else computed from the data."""
    if recipe.start_from is not None:
        return trained.load_statistics(recipe.start_from)
    for dataset in recipe.data.datasets:
        if not (Path(dataset.path) / "dataset_info.json").is_file():
            raise errors.DataError(
                f"{dataset.path}: no dataset",
                expected=f"the RLDS dataset that recipe {recipe.name} trains on (its version folder)",
                found="no dataset_info.json in it" if Path(dataset.path).is_dir() else "no such folder",
                fix="make it with `vla-jax data generate`, or point data.datasets at yours",
            )
    return compute_statistics(recipe.data.datasets)


def evaluate(
    policy: TrainedPolicy,
    config: EvaluationConfig | None = None,
    *,
    swap_instructions: bool = False,
    progress: Progress | None = None,
) -> dict[str, Episodes]:
    """Judge a checkpoint in every environment of `config`, by default the evaluation of its recipe.

    `progress` counts over all environments. Keys are environment names.
    """
    config = config or policy.recipe.evaluation
    total, found = config.num_episodes * len(config.envs), {}
    for env_config in config.envs:
        done_before = sum(len(episodes.success) for episodes in found.values())
        solved_before = sum(int(episodes.success.sum()) for episodes in found.values())

        def show(done: int, _: int, solved: int, done_before=done_before, solved_before=solved_before) -> None:
            if progress is not None:
                progress(done_before + done, total, solved_before + solved)

        judge = rollout(policy, env_config, config.execution_horizon, swap_instructions=swap_instructions)
        key = jax.random.key(config.seed)
        found[judge.env.spec.name] = judge.evaluate(
            policy.params, key, config.num_episodes, config.batch_size, progress=show
        )
    return found


def entry(
    policy: TrainedPolicy, env_name: str, episodes: Episodes, *, table: str, row: str, cell: str
) -> results.Entry:
    """One evaluation as a cell of a table, with everything a rerun needs."""
    recipe = policy.recipe
    account = manifest.manifest(
        seeds=[recipe.fit.seed, recipe.evaluation.seed], recipe=to_plain(recipe), renderer=RENDERER
    )
    return results.from_episodes(
        episodes, table=table, row=row, cell=cell, seed=recipe.fit.seed, env_name=env_name, manifest=account
    )


def rollout(
    policy: TrainedPolicy, env_config: TabletopConfig, execution_horizon: int, *, swap_instructions: bool = False
) -> Rollout:
    """The policy in an environment, with the statistics and the tokenizer it was trained with."""
    env = make_env(policy.recipe, env_config, policy.edges)
    shown = swapped_instructions(len(env.spec.instructions)) if swap_instructions else None
    return _rollout(env, policy.learner, policy.edges, execution_horizon, shown)


def make_env(recipe: Recipe, config: TabletopConfig, edges: Edges) -> Env:
    """Raises ConfigError when the environment does not show and take what the recipe's policy was made for."""
    env = config.make(edges.prompts(config.instructions))
    _check_env(recipe, env)
    return env


def _source(
    recipe: Recipe, learner: Learner, edges: Edges, env: Env
) -> tuple[Source, Callable[[LearnerState], LearnerState] | None]:
    if isinstance(recipe.learner, EXPOConfig):
        base = trained.load(recipe.start_from).base_params
        actor = jax.eval_shape(lambda key: learner.actor(learner.init(key)), jax.random.key(0))
        source = ReplaySource(
            env, learner, actor, recipe.replay, normalize=edges.normalize, unnormalize=edges.unnormalize
        )
        return source, lambda state: learner.with_base(state, base)
    loader = Loader(
        recipe.data.datasets,
        batch_size=recipe.data.batch_size,
        seed=recipe.data.seed,
        tokenizer=edges.encode,
        normalizer=edges.normalizer,
        weights=recipe.data.weights,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    if recipe.start_from is None:
        return DatasetSource(loader), None
    base = trained.load(recipe.start_from).base_params
    return DatasetSource(loader), lambda state: state.replace(
        params=base, ema_params=jax.tree.map(lambda x: x + 0, base)
    )


def _evaluator(recipe: Recipe, learner: Learner, edges: Edges, envs: Sequence[Env]) -> Evaluate:
    config = recipe.evaluation
    judges = [_rollout(env, learner, edges, config.execution_horizon) for env in envs]

    def evaluate_actor(actor_params: Params, step: int) -> dict[str, float]:
        key = jax.random.key(config.seed)
        by_env = [judge.evaluate(actor_params, key, config.num_episodes, config.batch_size) for judge in judges]
        names = [f"eval/{env.spec.name}" for env in envs] if len(envs) > 1 else []
        rates = [float(episodes.success.mean()) for episodes in by_env]
        metrics = {"eval/success_rate": sum(rates) / len(rates), **dict(zip(names, rates, strict=False))}
        return metrics | {"eval/return": sum(float(episodes.returns.mean()) for episodes in by_env) / len(by_env)}

    return evaluate_actor


def _rollout(
    env: Env, learner: Learner, edges: Edges, execution_horizon: int, shown: tuple[int, ...] | None = None
) -> Rollout:
    return Rollout(
        env, learner.act, execution_horizon, learner.initial_memory, edges.normalize, edges.unnormalize, shown
    )


def _check_env(recipe: Recipe, env: Env) -> None:
    """The environment must show and take what the policy was made for."""
    backbone, decoder = recipe.policy.backbone, recipe.policy.decoder
    ours = {
        "state dims": backbone.state_dim,
        "action dims": decoder.action_dim,
        "cameras": {name: tuple(backbone.image_size) for name in backbone.cameras},
    }
    theirs = {
        "state dims": env.spec.state_dim,
        "action dims": env.spec.action_dim,
        "cameras": {
            name: _shrunk(tuple(size), tuple(backbone.image_size))
            for name, size in env.spec.cameras.items()
            if name in backbone.cameras
        },
    }
    different = [name for name in ours if ours[name] != theirs[name]]
    if different:
        raise errors.ConfigError(
            f"policy of recipe {recipe.name} does not fit {env.spec.name}",
            expected="; ".join(f"{name} {ours[name]}" for name in different),
            found="; ".join(f"{name} {theirs[name]}" for name in different),
            fix="evaluate it where it was trained for, or train it on data of this environment",
        )


def _shrunk(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int]:
    """The size that the policy's edge makes of a camera: a whole multiple is averaged down (see `Edges.normalize`)."""
    factor = max(1, size[0] // wanted[0])
    return wanted if size == (wanted[0] * factor, wanted[1] * factor) else size
