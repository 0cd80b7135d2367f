"""Runs recipes: everything a recipe names is built here and handed to `fit`, and its checkpoint is judged.

recipe -> learner, source, edges -> fit -> checkpoint -> TrainedPolicy -> Rollout -> Episodes
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax

from vla_jax.core import errors
from vla_jax.data import normalization
from vla_jax.data.demonstrations import compute_statistics
from vla_jax.data.loader import Loader
from vla_jax.envs.base import Env
from vla_jax.evaluation.rollouts import Episodes, Progress, Rollout, swapped_instructions
from vla_jax.learners.base import LearnerState
from vla_jax.learners.expo import EXPOConfig
from vla_jax.training import trained
from vla_jax.training.fit import Evaluate, FitResult, fit
from vla_jax.training.online import ReplaySource
from vla_jax.training.recipe import EvaluationConfig, Recipe
from vla_jax.training.sources import DatasetSource, Source
from vla_jax.training.trained import Edges, TrainedPolicy


def train(recipe: Recipe, run_dir: str | Path, *, quiet: bool = False) -> FitResult:
    """Train a recipe in `run_dir`, going on where an earlier call stopped.

    Raises DataError when the data is missing, and what `fit` raises.
    """
    statistics = data_statistics(recipe)
    edges = trained.make_edges(recipe, statistics)
    env = recipe.evaluation.env.make(edges.prompts(recipe.evaluation.env.instructions))
    _check_env(recipe, env)
    learner = trained.make_learner(recipe)
    source, warm_start = _source(recipe, learner, edges, env)
    return fit(
        learner,
        source,
        recipe.fit,
        run_dir,
        evaluate=_evaluator(recipe, learner, edges, env) if recipe.fit.eval_every else None,
        metadata=trained.contract(recipe, statistics, env.spec.action_names, env.spec.control_hz),
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
) -> Episodes:
    """Judge a checkpoint by `config`, by default the one of its recipe."""
    config = config or policy.recipe.evaluation
    key = jax.random.key(config.seed)
    return rollout(policy, config, swap_instructions=swap_instructions).evaluate(
        policy.params, key, config.num_episodes, config.batch_size, progress=progress
    )


def rollout(policy: TrainedPolicy, config: EvaluationConfig, *, swap_instructions: bool = False) -> Rollout:
    """The policy in an environment, with the statistics and the tokenizer it was trained with."""
    env = config.env.make(policy.edges.prompts(config.env.instructions))
    _check_env(dataclasses.replace(policy.recipe, evaluation=config), env)
    shown = swapped_instructions(len(env.spec.instructions)) if swap_instructions else None
    learner, edges = policy.learner, policy.edges
    return Rollout(
        env, learner.act, config.execution_horizon, learner.initial_memory, edges.normalize, edges.unnormalize, shown
    )


def _source(
    recipe: Recipe, learner, edges: Edges, env: Env
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


def _evaluator(recipe: Recipe, learner, edges: Edges, env: Env) -> Evaluate:
    config = recipe.evaluation
    judge = Rollout(
        env, learner.act, config.execution_horizon, learner.initial_memory, edges.normalize, edges.unnormalize
    )

    def evaluate_actor(actor_params, step: int) -> dict[str, float]:
        episodes = judge.evaluate(actor_params, jax.random.key(config.seed), config.num_episodes, config.batch_size)
        return {"eval/success_rate": float(episodes.success.mean()), "eval/return": float(episodes.returns.mean())}

    return evaluate_actor


def _check_env(recipe: Recipe, env: Env) -> None:
    """The environment must show and take what the policy was made for."""
    backbone, decoder = recipe.policy.backbone, recipe.policy.decoder
    ours = {
        "state dims": backbone.state_dim,
        "cameras": {name: tuple(backbone.image_size) for name in backbone.cameras},
        "action dims": decoder.action_dim,
    }
    theirs = {
        "state dims": env.spec.state_dim,
        "cameras": {name: tuple(size) for name, size in env.spec.cameras.items() if name in backbone.cameras},
        "action dims": env.spec.action_dim,
    }
    different = [name for name in ours if ours[name] != theirs[name]]
    if different:
        raise errors.ConfigError(
            f"policy of recipe {recipe.name} does not fit {env.spec.name}",
            expected="; ".join(f"{name} {ours[name]}" for name in different),
            found="; ".join(f"{name} {theirs[name]}" for name in different),
            fix="evaluate it where it was trained for, or train it on data of this environment",
        )
