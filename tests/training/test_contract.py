"""A checkpoint meets something it was not made for: every difference is named, with what overrides it."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes import tabletop_demo
from vla_jax.core import errors
from vla_jax.data.normalization import FieldStatistics, NormalizationConfig, Statistics
from vla_jax.envs.base import EnvSpec
from vla_jax.training import contract, trained
from vla_jax.training.contract import Contract

POLICY = Contract(
    "runs/a",
    {"front": (64, 64), "wrist": (64, 64)},
    state_dim=3,
    state_names=("x", "y", "grip"),
    action_dim=2,
    action_names=("dx", "grip"),
    control_hz=20.0,
    normalization=NormalizationConfig(),
)
MATCHING = dataclasses.replace(POLICY, place="robot")
CHANGES = {
    "cameras": dict(cameras={"front": (64, 64), "hand": (64, 64)}),
    "size of wrist": dict(cameras={"front": (64, 64), "wrist": (96, 96)}),
    "state_dim": dict(state_dim=4, state_names=("x", "y", "z", "grip")),
    "state_names": dict(state_names=("y", "x", "grip")),
    "action_dim": dict(action_dim=1, action_names=("dx",)),
    "action_names": dict(action_names=("grip", "dx")),
    "control_hz": dict(control_hz=10.0),
    "normalization": dict(normalization=NormalizationConfig(mode="z_score")),
}


def test_the_same_side_has_no_difference():
    assert contract.compare(POLICY, MATCHING) == ()
    contract.require(POLICY, MATCHING)


@pytest.mark.parametrize("field", CHANGES)
def test_each_difference_is_found_alone_and_says_its_override(field):
    other = dataclasses.replace(MATCHING, **CHANGES[field])
    (found,) = contract.compare(POLICY, other)
    assert found.field == field
    with pytest.raises(errors.CheckpointError, match="runs/a does not fit robot") as error:
        contract.require(POLICY, other)
    row = next(line for line in str(error.value).splitlines() if line.strip().startswith(field))
    assert found.policy in row and found.other in row and found.override in row
    assert (f"accept '{field}'" in row) == (field in contract.ACCEPTABLE)


@given(st.sets(st.sampled_from(sorted(contract.ACCEPTABLE))), st.sets(st.sampled_from(sorted(contract.ACCEPTABLE))))
def test_what_is_accepted_passes_and_nothing_else(changed, accepted):
    other = MATCHING
    for field in changed:
        other = dataclasses.replace(other, **CHANGES[field])
    if changed <= accepted:
        contract.require(POLICY, other, sorted(accepted))
    else:
        with pytest.raises(errors.CheckpointError) as error:
            contract.require(POLICY, other, sorted(accepted))
        named = {line.split()[0] for line in str(error.value).splitlines() if line.startswith("  ")}
        assert named & set(contract.ACCEPTABLE) == changed - accepted


def test_shapes_cannot_be_accepted_away():
    with pytest.raises(errors.ConfigError, match="state_names"):
        contract.require(POLICY, MATCHING, ["state_name"])
    with pytest.raises(errors.ConfigError, match="cannot accept 'state_dim'"):
        contract.require(POLICY, MATCHING, ["state_dim"])


def test_more_cameras_and_whole_multiples_fit():
    cameras = {"front": (128, 128), "wrist": (64, 64), "side": (10, 10)}
    assert contract.compare(POLICY, dataclasses.replace(MATCHING, cameras=cameras)) == ()


def test_only_the_names_that_differ_are_shown():
    (found,) = contract.compare(POLICY, dataclasses.replace(MATCHING, **CHANGES["state_names"]))
    assert (found.policy, found.other) == ("0: x, 1: y", "0: y, 1: x")


def test_what_one_side_does_not_say_is_not_compared():
    assert contract.compare(POLICY, Contract("robot", POLICY.cameras)) == ()


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
