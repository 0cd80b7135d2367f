"""A policy meets something it was not made for: every difference is named, with what overrides it."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_jax.core import contract, errors
from vla_jax.core.contract import Contract

POLICY = Contract(
    "runs/a",
    {"front": (64, 64), "wrist": (64, 64)},
    state_dim=3,
    state_names=("x", "y", "grip"),
    action_dim=2,
    action_names=("dx", "grip"),
    control_hz=20.0,
    normalization={"mode": "quantile", "raw_state_dims": ()},
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
    "normalization": dict(normalization={"mode": "z_score"}),
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
    assert (f"--accept {found.accepted_by}" in error.value.fix) == (found.accepted_by is not None)
    assert found.policy in row and found.other in row and found.override in row
    assert (f"accept '{field}'" in row) == (field in contract.ACCEPTABLE)


# A difference by its name in the table is accepted by that name; sizes of pictures are another matter, see below.
COMPARED = sorted(set(contract.ACCEPTABLE) & set(CHANGES))


@given(st.sets(st.sampled_from(COMPARED)), st.sets(st.sampled_from(COMPARED)))
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


def test_a_server_scales_pictures_so_their_size_can_be_accepted():
    cameras = {"front": (64, 64), "wrist": (96, 96)}
    other = dataclasses.replace(MATCHING, cameras=cameras, scales_pictures=True)
    with pytest.raises(errors.CheckpointError, match=r"size of wrist .* accept 'image_size'"):
        contract.require(POLICY, other)
    contract.require(POLICY, other, ["image_size"])
    with pytest.raises(errors.CheckpointError, match="size of wrist"):  # an environment does not
        contract.require(POLICY, dataclasses.replace(other, scales_pictures=False), ["image_size"])


def test_a_chunk_has_to_be_as_long_as_what_is_run_of_it():
    policy = dataclasses.replace(POLICY, action_horizon=8)
    assert contract.compare(policy, dataclasses.replace(MATCHING, action_horizon=8)) == ()
    (found,) = contract.compare(policy, dataclasses.replace(MATCHING, action_horizon=9))
    assert (found.field, found.accepted_by) == ("action_horizon", None) and "at most 8" in found.override


def test_normalization_is_compared_where_both_sides_say_it():
    assert contract.compare(POLICY, dataclasses.replace(MATCHING, normalization={"raw_state_dims": ()})) == ()


def test_only_the_names_that_differ_are_shown():
    (found,) = contract.compare(POLICY, dataclasses.replace(MATCHING, **CHANGES["state_names"]))
    assert (found.policy, found.other) == ("0: x, 1: y", "0: y, 1: x")


def test_what_one_side_does_not_say_is_not_compared():
    assert contract.compare(POLICY, Contract("robot", POLICY.cameras)) == ()
