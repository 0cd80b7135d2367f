"""The rows of embodiments.toml as lint settings."""

import dataclasses

import numpy as np

from tests.data.memory_set import clean_set
from vla_jax.data.embodiments import Gripper, Vector, embodiment, embodiments
from vla_jax.data.lint.checks import lint
from vla_jax.data.lint.declared import config_of

BRIDGE = embodiment("bridge_dataset")
MEMORY = dataclasses.replace(
    BRIDGE,
    name="memory",
    images={"primary": "front", "wrist": "wrist"},
    gripper=Gripper("absolute", open=-1.0, closed=1.0),
    control_hz=15.0,
)


def test_a_row_names_features_dims_and_the_gripper():
    config = config_of(embodiment("droid"), action_horizon=8)
    assert config.state_names == ("observation/joint_position", "observation/gripper_position")
    assert config.action_names == ("action_dict/joint_velocity", "action_dict/gripper_position")
    declared = config.declared
    assert (declared.state_dim, declared.action_dim, declared.control_hz) == (8, 8, 15.0)
    assert (declared.gripper_action_dim, declared.larger_action_opens) == (7, False)  # 0 is open
    assert declared.action_kind == "delta"  # a velocity moves


def test_a_row_says_where_a_rotation_vector_is():
    assert config_of(embodiment("libero")).declared.rotation_state_dims == (3, 4, 5)
    assert config_of(embodiment("droid")).declared.rotation_state_dims is None


def test_every_row_makes_a_config():
    for row in embodiments().values():
        config = config_of(row)
        assert config.declared.action_dim == row.action_dim


def test_a_set_that_is_as_its_row_says_has_no_finding():
    report = lint(clean_set(), config_of(MEMORY), row=MEMORY)
    assert report.findings == () and report.facts["control frequency"] == "15 Hz, as declared"


def test_a_set_that_is_not_as_its_row_says_is_found_before_its_numbers_are_looked_at():
    row = dataclasses.replace(MEMORY, state=(Vector("proprio", (("joints", 7),)),))
    (finding,) = lint(clean_set(), config_of(row), row=row).findings
    assert (finding.check, finding.severity) == ("embodiment", "error")
    assert "observation/proprio" in finding.reason and "observation/state" in finding.reason


def test_a_gripper_outside_the_range_of_its_row_is_found():
    dataset = clean_set()
    dataset.columns["action"][:, 6] = np.where(dataset.columns["action"][:, 6] > 0, 255, 0)
    assert [finding.check for finding in lint(dataset, config_of(MEMORY), row=MEMORY).findings] == ["embodiment"]
