"""The table of robot datasets: complete, consistent, refused when wrong, and compared with real and generated sets."""

import re
import tomllib
from importlib import resources

import pytest

from data_pipelines.droid_synthetic import DroidSyntheticConfig, generate
from tests.data.real_sets import BRIDGE, needs_bridge
from vla_jax.core import errors
from vla_jax.data import embodiments
from vla_jax.data.formats.rlds import RldsDataset

ASKED_FOR = (
    *("fractal20220817_data", "bridge", "bridge_dataset", "kuka", "taco_play", "jaco_play", "berkeley_cable_routing"),
    *("roboturk", "nyu_door_opening_surprising_effectiveness", "viola", "berkeley_autolab_ur5", "toto"),
    *("language_table", "stanford_hydra", "austin_buds", "nyu_franka_play", "furniture_bench", "ucsd_kitchen"),
    *("austin_sailor", "austin_sirius", "bc_z", "dlr_edan", "iamlab_cmu_pickup", "utaustin_mutex"),
    *("berkeley_fanuc_manipulation", "cmu_stretch", "fmb", "dobbe", "droid", "libero", "aloha_static_dataset"),
)
ROWS = sorted(embodiments.embodiments())
VALID = """
[sources]
page = "example.org"
[toy]
robot = "arm"
control_hz = 10
images = { primary = "front" }
state = [{ key = "state", parts = ["joints 2", "gripper 1"] }]
action = [{ key = "action", parts = ["position 3", "gripper 1"] }]
action_kind = "delta"
action_frame = "base"
gripper = { kind = "absolute", open = 1, closed = 0 }
instruction = "language_instruction"
sources = ["page"]
"""


@pytest.mark.parametrize("name", ASKED_FOR)
def test_the_common_sets_are_in_the_table(name):
    assert embodiments.embodiment(name).control_hz > 0


@pytest.mark.parametrize("name", ROWS)
def test_every_row_says_where_it_is_from_and_how_it_acts(name):
    row = embodiments.embodiment(name)
    assert row.sources and all(re.search(r"[a-z]\.(com|org|co)|of this repository|tests/", s) for s in row.sources)
    assert row.images and row.action_dim > 0
    assert any(
        part in ("position", "joints", "joint_velocities", "linear_velocity", "planar")
        for part, _ in row.action[0].parts
    )
    # A commanded gripper has a place in the action, and only then.
    has_gripper = any(vector.dims("gripper") for vector in row.action)
    assert has_gripper == (row.gripper.kind != "none")
    # Both ends unknown, or a note about why one is.
    if has_gripper and None in (row.gripper.open, row.gripper.closed):
        assert row.notes
    # No words as they stand: then what has to be done is said.
    assert row.instruction or row.needs


def test_texts_are_read_by_whoever_wrote_the_toml():
    table = tomllib.loads(resources.files("vla_jax.data").joinpath("embodiments.toml").read_text())
    used = {source for name, row in table.items() if name != "sources" for source in row["sources"]}
    assert used == set(table["sources"])  # no source is declared in vain


def test_known_facts_of_some_sets():
    droid = embodiments.embodiment("droid")
    assert (droid.control_hz, droid.state_dim, droid.action_dim) == (15, 8, 8)
    assert (droid.gripper.open, droid.gripper.closed) == (0, 1)
    libero = embodiments.embodiment("libero_spatial_no_noops")
    assert (libero.control_hz, libero.state_dim, libero.action_dim) == (20, 8, 7)
    assert (libero.gripper.open, libero.gripper.closed) == (-1, 1)
    aloha = embodiments.embodiment("aloha")
    assert aloha.action[0].dims("gripper") == (6, 13)
    assert embodiments.embodiment("fractal20220817_data").gripper.kind == "delta"


def test_an_unknown_name_is_answered_with_the_closest():
    with pytest.raises(errors.ConfigError, match="did you mean 'bridge_dataset'"):
        embodiments.embodiment("bridge_datset")


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('robot = "arm"\n', "", "robot"),
        ('robot = "arm"\n', 'robot = "arm"\nspeed = 3\n', "speed"),
        ('"delta"', '"relative"', "action_kind"),
        ('"base"', '"camera"', "action_frame"),
        ('"position 3", "gripper 1"', '"position 2", "gripper 1"', "position 2"),
        ('"position 3", "gripper 1"', '"elbow 3"', "elbow 3"),
        ("control_hz = 10", "control_hz = 0", "control_hz"),
        ("open = 1, closed = 0", "open = 1, closed = 1", "gripper"),
        ("open = 1, closed = 0", "open = 1", "gripper"),
        ("primary =", "front =", "images"),
        ('sources = ["page"]', 'sources = ["rumour"]', "sources"),
        ('sources = ["page"]', "sources = []", "sources"),
    ],
)
def test_a_wrong_row_is_refused_by_its_field(old, new, field):
    assert list(embodiments.parse(VALID)) == ["toy"]
    assert old in VALID
    with pytest.raises(errors.ConfigError, match=field):
        embodiments.parse(VALID.replace(old, new))


def test_a_name_belongs_to_one_row():
    with pytest.raises(errors.ConfigError, match="twin"):
        embodiments.parse(VALID + VALID.split("[toy]")[1].join(("\n[twin]", 'aliases = ["twin"]\n')))


def toy_row(text: str = VALID) -> embodiments.Embodiment:
    return embodiments.parse(text)["toy"]


def test_a_set_that_is_as_its_row_says_has_no_mismatch(toy_folder):
    # The toy set: cameras front and wrist, state of 3, action of 4 with values up to 303.75, so no gripper range.
    row = toy_row(VALID.replace("open = 1, closed = 0", 'open = "unknown", closed = 0'))
    assert embodiments.mismatches(RldsDataset(toy_folder), row) == ()


@pytest.mark.parametrize(
    ("old", "new", "field", "found"),
    [
        ('primary = "front"', 'primary = "top"', "images.primary", "observation/front"),
        ('"joints 2", "gripper 1"', '"joints 6", "gripper 1"', "state", r"tensor float32 \[3\]"),
        ('key = "action"', 'key = "language_instruction"', "action", "text"),
        ('instruction = "language_instruction"', 'instruction = "words"', "instruction", "language_instruction"),
    ],
)
def test_a_missing_or_other_feature_is_a_mismatch(toy_folder, old, new, field, found):
    row = toy_row(VALID.replace("open = 1, closed = 0", 'open = "unknown", closed = 0').replace(old, new))
    (mismatch,) = embodiments.mismatches(RldsDataset(toy_folder), row)
    assert mismatch.field == field and re.search(found, mismatch.found)


def test_gripper_commands_outside_the_stated_range_are_a_mismatch(toy_folder):
    (mismatch,) = embodiments.mismatches(RldsDataset(toy_folder), toy_row())
    # The last entry of action is 100 * episode + step + 0.75, over episodes 0 to 3 of 5, 1, 7 and 3 steps.
    assert str(mismatch) == "gripper: expected commands from 0 to 1, found 0.75 to 302.75"


def test_generated_droid_is_as_its_row_says(tmp_path):
    folder = generate(tmp_path / "1.0.1", DroidSyntheticConfig(num_episodes=2, shortest=20, longest=25))
    dataset = RldsDataset(folder, cache_folder=tmp_path / "cache")
    assert embodiments.mismatches(dataset, embodiments.embodiment("droid")) == ()


@needs_bridge
def test_real_bridge_is_as_its_row_says(tmp_path):
    dataset = RldsDataset(BRIDGE, cache_folder=tmp_path)
    assert embodiments.mismatches(dataset, embodiments.embodiment("bridge_dataset")) == ()
    other = embodiments.mismatches(dataset, embodiments.embodiment("libero"))
    assert {mismatch.field for mismatch in other} >= {"images.primary", "state", "images.wrist"}
