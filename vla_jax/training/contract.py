"""The sides that this package knows, as contracts: recipes, checkpoints, environments. `core/contract.py` compares
them; a robot's side is in `serving/robots.py`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vla_jax.core.contract import ACCEPTABLE, Contract, Difference, compare, require
from vla_jax.envs.base import EnvSpec
from vla_jax.training.plain import from_plain
from vla_jax.training.recipe import Recipe

__all__ = [
    "ACCEPTABLE",
    "Contract",
    "Difference",
    "compare",
    "of_checkpoint",
    "of_environment",
    "of_recipe",
    "require",
]


def of_recipe(recipe: Recipe, action_dim: int | None = None) -> Contract:
    """What a recipe's policy takes and gives. `action_dim` is the robot's: its decoder's may be padded."""
    backbone = recipe.policy.backbone
    # A policy trained on resized pictures resizes any (see `trained.Edges`): their size is then no matter of contract.
    resizes = any(dataset.resize is not None for dataset in recipe.data.datasets)
    cameras = {name: None if resizes else tuple(backbone.image_size) for name in backbone.cameras}
    return Contract(
        f"recipe {recipe.name}",
        cameras,
        state_dim=backbone.state_dim,
        action_dim=action_dim,
        normalization=dataclasses.asdict(recipe.data.normalization),
    )


def of_checkpoint(path: Any, metadata: Mapping[str, Any]) -> Contract:
    """What the metadata beside the weights says (`checkpoints.read_metadata`). Older ones name no state dims."""
    recipe = from_plain(Recipe, metadata["recipe"], f"{path}: recipe")
    names, state = tuple(metadata["action"]["names"]), metadata.get("state")
    return dataclasses.replace(
        of_recipe(recipe, len(names) or None),
        place=f"{path} (recipe {recipe.name})",
        action_names=names or None,
        state_names=tuple(state["names"]) if state else None,
        control_hz=metadata["action"]["control_hz"],
    )


def of_environment(spec: EnvSpec) -> Contract:
    return Contract(
        spec.name,
        {name: tuple(size) for name, size in spec.cameras.items()},
        state_dim=spec.state_dim,
        state_names=tuple(spec.state_names),
        action_dim=spec.action_dim,
        action_names=tuple(spec.action_names),
        control_hz=spec.control_hz,
    )
