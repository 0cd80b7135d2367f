"""A checkpoint's side, and an environment's."""

import dataclasses

from recipes import tabletop_demo
from vla_jax.data.normalization import FieldStatistics, Statistics
from vla_jax.envs.base import EnvSpec
from vla_jax.training import contract, trained


def test_the_metadata_of_a_checkpoint_fits_the_environment_of_its_recipe():
    recipe = tabletop_demo.imitation()
    config = recipe.evaluation.envs[0]
    backbone, decoder = recipe.policy.backbone, recipe.policy.decoder
    sides = [FieldStatistics(*[(0.0,) * dim] * 6, count=1) for dim in (backbone.state_dim, decoder.action_dim)]
    statistics = Statistics(*sides)
    spec: EnvSpec = config.make(trained.make_edges(recipe, statistics).prompts(config.instructions)).spec
    metadata = trained.contract(recipe, statistics, spec.action_names, spec.control_hz)
    metadata["state"] = {"names": list(spec.state_names)}
    ours = contract.of_checkpoint("runs/demo", metadata)
    contract.require(ours, contract.of_environment(spec))
    slower = dataclasses.replace(spec, control_hz=5.0, state_names=tuple(reversed(spec.state_names)))
    fields = [each.field for each in contract.compare(ours, contract.of_environment(slower))]
    assert fields == ["state_names", "control_hz"]
    contract.require(ours, contract.of_recipe(tabletop_demo.finetune()))  # which starts from this one
