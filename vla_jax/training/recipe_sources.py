"""Where a recipe's learner finds its batches: demonstrations, recorded transitions, an environment."""

from functools import partial

import jax

from vla_jax.core.types import Transitions
from vla_jax.data import normalization
from vla_jax.data.loader import Loader
from vla_jax.envs.base import Env
from vla_jax.learners.base import Learner
from vla_jax.learners.dqc import DQCConfig
from vla_jax.learners.imitation import ImitationConfig
from vla_jax.training import recorded
from vla_jax.training.online import ReplaySource
from vla_jax.training.online_windows import WindowSource
from vla_jax.training.recipe import Recipe, chunk_steps
from vla_jax.training.recorded import OfflineSource
from vla_jax.training.sources import DatasetSource, Source
from vla_jax.training.trained import Edges


def of_recipe(
    recipe: Recipe,
    learner: Learner,
    edges: Edges,
    by_dataset: dict[str, normalization.Statistics],
    env: Env | None = None,
) -> Source:
    """`by_dataset` has the statistics of every dataset of demonstrations by its key, where each has its own; `env` is
    what learners with `recipe.replay` act in. Raises DataError as the loader does."""
    if recipe.replay is not None:
        return _online(recipe, learner, edges, env)
    if not isinstance(recipe.learner, ImitationConfig):
        return _offline(recipe, edges)
    loader = Loader(
        recipe.data.datasets,
        batch_size=recipe.data.batch_size,
        seed=recipe.data.seed,
        tokenizer=edges.encode,
        normalizer=normalizers(recipe, edges, by_dataset),
        weights=recipe.data.weights,
        temperature=recipe.data.temperature,
        balance_embodiments=recipe.data.balance_embodiments,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=recipe.data.num_threads,
        image_cache_bytes=recipe.data.image_cache_bytes,
        faults=recipe.data.faults,
    )
    return DatasetSource(loader)


def _online(recipe: Recipe, learner: Learner, edges: Edges, env: Env) -> Source:
    actor = jax.eval_shape(lambda key: learner.actor(learner.init(key)), jax.random.key(0))
    make = ReplaySource
    if isinstance(recipe.learner, DQCConfig):
        make = partial(WindowSource, window=recipe.learner.backup_horizon, stride=recipe.learner.steps_run)
    return make(
        env,
        learner,
        actor,
        recipe.replay,
        recorded=None if recipe.recorded is None else recorded_rows(recipe, edges),
        recorded_fraction=0.0 if recipe.recorded is None else recipe.recorded.fraction,
        discount=recipe.learner.discount,
        normalize=edges.normalize,
        unnormalize=edges.unnormalize,
    )


def _offline(recipe: Recipe, edges: Edges) -> Source:
    config, seed = recipe.recorded, recipe.fit.seed
    by_update = isinstance(recipe.learner, DQCConfig)  # the others take rounds of several updates
    shape = (config.batch_size,) if by_update else (1, config.critic_updates, config.batch_size)
    if config.hindsight is not None:
        return OfflineSource.of_trajectories(config, edges.normalizer, shape, chunk_steps(recipe.learner), seed)
    return OfflineSource.of_rows(recorded_rows(recipe, edges), shape, seed)


def recorded_rows(recipe: Recipe, edges: Edges) -> Transitions:
    """The chunks of `recipe.recorded` as the learner's rows, on the host."""
    steps = chunk_steps(recipe.learner)
    return recorded.transitions(recipe.recorded, steps, edges.encode, edges.normalizer, recipe.learner.discount)


def normalizers(
    recipe: Recipe, edges: Edges, by_dataset: dict[str, normalization.Statistics]
) -> list[normalization.Normalizer]:
    """Of every dataset of demonstrations: its own, or the one for all."""
    own = [normalization.Normalizer.create(each, recipe.data.normalization) for each in by_dataset.values()]
    return own or [edges.normalizer] * len(recipe.data.datasets)
