"""From a recipe to its learner, and from a checkpoint to a policy that acts: nothing else is needed to evaluate it."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from flax import nnx
from jaxtyping import Array, Float, UInt8

from vla_jax.codecs.text import Tokenizer, prompt_table
from vla_jax.core import errors
from vla_jax.core.images import average_blocks
from vla_jax.core.types import Observation, Params, PromptTable
from vla_jax.data.normalization import Normalizer, Statistics
from vla_jax.learners.base import Learner
from vla_jax.learners.expo import EXPO, EXPOConfig
from vla_jax.learners.imitation import Imitation
from vla_jax.policies.base import Policy
from vla_jax.training import checkpoints
from vla_jax.training.recipe import Recipe, from_plain, to_plain

_BY_DATASET = "normalization_by_dataset"  # in the metadata, where every dataset has its own


def make_learner(recipe: Recipe) -> Learner:
    """The learner a recipe names, around its policy and optimizer."""
    constructor, optimizer = recipe.policy.constructor(), recipe.optimizer.build()
    if isinstance(recipe.learner, EXPOConfig):
        backbone = recipe.policy.backbone
        return EXPO(
            constructor,
            action_dim=recipe.policy.decoder.action_dim,
            feature_dim=backbone.feature_dim + backbone.state_dim,
            optimizer=optimizer,
            base_optimizer=optimizer,
            config=recipe.learner,
        )
    return Imitation(constructor, optimizer, recipe.learner)


@dataclasses.dataclass(frozen=True)
class Edges:
    """What stands between an environment and a policy: the instruction's tokens, and the saved statistics."""

    tokenizer: Tokenizer
    prompt_length: int
    normalizer: Normalizer
    image_size: tuple[int, int]  # height and width the policy sees

    def encode(self, instruction: str) -> tuple[Any, Any]:
        return self.tokenizer.encode(instruction, self.prompt_length)

    def prompts(self, instructions: tuple[str, ...]) -> PromptTable:
        return prompt_table(self.tokenizer, instructions, self.prompt_length)

    def normalize(self, observation: Observation) -> Observation:
        """States by the statistics; pictures a whole number of times too large are averaged down."""
        images = {name: self._fit(name, image) for name, image in observation.images.items()}
        return observation.replace(images=images, state=self.normalizer.normalize_state(observation.state))

    def unnormalize(self, actions: Float[Array, "*b h action_dim"]) -> Float[Array, "*b h a"]:
        return self.normalizer.unnormalize_actions(actions)

    def _fit(self, camera: str, image: UInt8[Array, "*b height width 3"]) -> UInt8[Array, "*b h w 3"]:
        factor = max(1, image.shape[-3] // self.image_size[0])
        if tuple(image.shape[-3:-1]) != (self.image_size[0] * factor, self.image_size[1] * factor):
            raise errors.ConfigError(
                f"camera {camera!r} does not fit the policy",
                expected=f"pictures of {list(self.image_size)} or a whole multiple of it",
                found=list(image.shape[-3:-1]),
            )
        return average_blocks(image, factor)


def make_edges(recipe: Recipe, statistics: Statistics) -> Edges:
    """Raises ConfigError when the statistics are not of the policy's state and actions."""
    expected = (recipe.policy.backbone.state_dim, recipe.policy.decoder.action_dim)
    found = (statistics.state.dim, statistics.actions.dim)
    if expected[0] != found[0] or expected[1] < found[1]:
        raise errors.ConfigError(
            f"recipe {recipe.name}: the policy does not fit the data",
            expected=f"state_dim {expected[0]} (policy.backbone) and action_dim {expected[1]} (policy.decoder)",
            found=f"{found[0]} state dims and {found[1]} action dims in the data's statistics",
            fix="set policy.backbone.state_dim and policy.decoder.action_dim to those of the data",
        )
    normalizer = Normalizer.create(statistics, recipe.data.normalization)
    return Edges(
        recipe.text.tokenizer(), recipe.text.prompt_length, normalizer, tuple(recipe.policy.backbone.image_size)
    )


def contract(
    recipe: Recipe,
    statistics: Statistics,
    action_names: tuple[str, ...],
    control_hz: float | None,
    by_dataset: Mapping[str, Statistics] | None = None,
) -> dict:
    """What travels with the weights: recipe, statistics, cameras, actions. `by_dataset` are those of every dataset, by
    its key, where each was normalized by its own."""
    return {
        "recipe": to_plain(recipe),
        "normalization": dataclasses.asdict(statistics),
        **({_BY_DATASET: {key: dataclasses.asdict(own) for key, own in by_dataset.items()}} if by_dataset else {}),
        "cameras": list(recipe.policy.backbone.cameras),
        "action": {
            "names": list(action_names),
            "horizon": recipe.policy.decoder.action_horizon,
            "control_hz": control_hz,
        },
    }


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedPolicy:
    """A checkpoint, ready to act. `params` are the actor's; `act` takes normalized observations (see `edges`)."""

    path: Path
    recipe: Recipe
    learner: Learner
    params: Params
    edges: Edges
    metadata: dict[str, Any]

    @property
    def act(self) -> Callable:
        return self.learner.act

    @cached_property
    def base_params(self) -> Params:
        """The parameters of the policy network alone, whatever trained it."""
        return self.params["base"] if isinstance(self.recipe.learner, EXPOConfig) else self.params

    @property
    def constructor(self) -> Callable[[nnx.Rngs], Policy]:
        return self.recipe.policy.constructor()


def load(path: str | Path, step: int | None = None, *, dataset: str | None = None) -> TrainedPolicy:
    """A checkpoint as a policy. Of one whose datasets were normalized each by its own statistics, `dataset` is the key
    of those to act with; without it, the first.

    Raises CheckpointError when `path` is no complete checkpoint of ours or has no statistics of that name.
    """
    params, metadata = checkpoints.load_actor(path, step=step)
    recipe = from_plain(Recipe, metadata["recipe"], f"{path}: recipe")
    statistics = _statistics(path, metadata)
    if dataset is not None:
        by_dataset = _by_dataset(path, metadata)
        if dataset not in by_dataset:
            raise errors.CheckpointError(
                f"{path}: no statistics of dataset {dataset!r}", fix=errors.closest(dataset, by_dataset)
            )
        statistics = by_dataset[dataset]
    edges = make_edges(recipe, statistics)
    return TrainedPolicy(Path(path), recipe, make_learner(recipe), params, edges, metadata)


def load_statistics(path: str | Path, step: int | None = None) -> Statistics:
    """The statistics a checkpoint carries."""
    return _statistics(path, checkpoints.read_metadata(checkpoints.step_folder(path, step)))


def load_dataset_statistics(path: str | Path, step: int | None = None) -> dict[str, Statistics]:
    """Those of every dataset by its key; empty where the policy was trained with one for all."""
    return _by_dataset(path, checkpoints.read_metadata(checkpoints.step_folder(path, step)))


def _by_dataset(path: str | Path, metadata: dict[str, Any]) -> dict[str, Statistics]:
    return {
        key: Statistics.from_json(json.dumps(own), f"{path}: {_BY_DATASET}, {key}")
        for key, own in metadata.get(_BY_DATASET, {}).items()
    }


def _statistics(path: str | Path, metadata: dict[str, Any]) -> Statistics:
    return Statistics.from_json(json.dumps(metadata["normalization"]), f"{path}: normalization")
