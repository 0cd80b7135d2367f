import dataclasses
import json

import pytest

from tests.serving import toy_policy
from vla_jax import cli, cli_serve
from vla_jax.core import errors, wire
from vla_jax.envs import libero_sim
from vla_jax.samplers.guided import GuidanceOptions
from vla_jax.serving import robots
from vla_jax.serving.keys import RequestReader
from vla_jax.serving.robots import Robot
from vla_jax.serving.served import guidance_of, metadata_of

ARM = Robot(
    "arm",
    {"observation/base": (16, 16), "observation/wrist": (32, 32)},  # twice the size is averaged down
    state_dim=8,
    action_names=toy_policy.NAMES,
    execution_horizon=6,
    control_hz=20.0,
    normalization={"mode": "quantile"},
)
CHANGES = {
    "cameras": dict(cameras={"observation/base": (16, 16)}),
    "size of observation/wrist": dict(cameras={"observation/base": None, "observation/wrist": (480, 640)}),
    "state_dim": dict(state_dim=7),
    "action_dim": dict(action_names=None, action_dim=7),
    "action_names": dict(action_names=("gripper", "x", "y")),
    "action_horizon": dict(execution_horizon=7),
    "control_hz": dict(control_hz=10.0),
    "normalization": dict(normalization={"mode": "z_score"}),
}
ACCEPTS = {"size of observation/wrist": "image_size"} | {
    name: name for name in ("action_names", "control_hz", "normalization")
}


@pytest.fixture(scope="module")
def metadata(policy):
    """As a client gets it."""
    return wire.unpack(wire.pack(metadata_of(policy, RequestReader.of(policy))))


def test_a_robot_that_sends_what_the_policy_wants_fits(metadata):
    robots.require_fit(metadata, ARM)
    more = {**ARM.cameras, "observation/extra": None}
    robots.require_fit(metadata, dataclasses.replace(ARM, cameras=more))


@pytest.mark.parametrize("field", CHANGES)
def test_each_difference_is_a_row_with_its_override(metadata, field):
    robot = dataclasses.replace(ARM, **CHANGES[field])
    with pytest.raises(errors.CheckpointError, match=r"toy .* does not fit robot arm") as caught:
        robots.require_fit(metadata, robot)
    lines = str(caught.value).splitlines()
    rows = [line for line in lines[2:] if not line.startswith("  fix")]
    assert len(rows) == 1 and rows[0].strip().startswith(field), lines
    if field in ACCEPTS:
        assert f"accept '{ACCEPTS[field]}'" in rows[0]
        robots.require_fit(metadata, robot, [ACCEPTS[field]])
    else:
        assert "none: " in rows[0]


def test_what_the_robot_does_not_say_is_not_compared(metadata):
    robots.require_fit(metadata, Robot("arm", {"observation/base": None, "observation/wrist": None}))


def test_names_that_are_only_numbers_are_no_names(metadata):
    unnamed = {**metadata, "action_names": ["action_0", "action_1", "action_2"]}
    robots.require_fit(unnamed, ARM)


def test_the_keys_are_those_of_the_layout_that_the_robot_speaks(metadata):
    """Of DROID's exterior cameras the policy wants one, whose key is the first; LIBERO's state has one key."""
    for name in ("libero", "droid"):
        known = dataclasses.replace(robots.KNOWN[name], action_dim=3, action_names=None, control_hz=20.0)
        ours, _ = robots.sides(metadata, dataclasses.replace(known, execution_horizon=None))
        assert set(ours.cameras) == set(known.cameras) and f"layout {name}" in ours.place


def test_pictures_of_any_size_fit_a_policy_that_was_trained_on_scaled_ones(policy):
    scaled = dataclasses.replace(policy, edges=dataclasses.replace(policy.edges, resize=(16, 16, "stretch")))
    metadata = metadata_of(scaled, RequestReader.of(scaled))
    assert metadata["resize"] == "stretch"
    robots.require_fit(metadata, dataclasses.replace(ARM, **CHANGES["size of observation/wrist"]))


def test_an_optional_camera_may_be_missing(policy):
    optional = dataclasses.replace(policy, recipe=toy_policy.recipe(optional_cameras=("wrist",)))
    metadata = metadata_of(optional, RequestReader.of(optional))
    robots.require_fit(metadata, dataclasses.replace(ARM, **CHANGES["cameras"]))


def test_libero_is_known_as_its_simulator_has_it():
    known = robots.KNOWN["libero"]
    assert known.action_names == libero_sim.ACTION_NAMES and known.state_names == libero_sim.STATE_NAMES
    assert known.control_hz == libero_sim.CONTROL_HZ


TOML = """
name = "arm"
state_dim = 8
action_names = ["x", "y", "gripper"]
execution_horizon = 6
control_hz = 20
normalization = {mode = "quantile"}
[cameras]
"observation/base" = [16, 16]
"observation/wrist" = [32, 32]
"""


def test_a_description_is_the_same_as_toml_and_as_json(tmp_path):
    (tmp_path / "arm.toml").write_text(TOML)
    fields = dataclasses.asdict(ARM) | {"cameras": {key: list(size) for key, size in ARM.cameras.items()}}
    (tmp_path / "arm.json").write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))
    assert robots.load(str(tmp_path / "arm.toml")) == robots.load(str(tmp_path / "arm.json")) == ARM
    assert robots.load("droid") is robots.KNOWN["droid"]


@pytest.mark.parametrize(
    "text, place",
    [
        ("{", "arm.json"),
        ("[]", "arm.json"),
        ("{}", "arm.json"),
        ('{"cameras": {"a": [1, 2]}, "controlhz": 3}', "no field 'controlhz'"),
        ('{"cameras": {}}', "cameras"),
        ('{"cameras": {"a": [1]}}', "cameras"),
        ('{"cameras": {"a": [0, 2]}}', "cameras"),
        ('{"cameras": {"a": []}, "state_dim": 0}', "state_dim"),
        ('{"cameras": {"a": []}, "state_dim": true}', "state_dim"),
        ('{"cameras": {"a": []}, "control_hz": NaN}', "control_hz"),
        ('{"cameras": {"a": []}, "action_names": "xyz"}', "action_names"),
        ('{"cameras": {"a": []}, "action_names": ["x"], "action_dim": 2}', "action_dim and action_names"),
    ],
)
def test_a_description_that_cannot_be_meant_names_its_key(tmp_path, text, place):
    (tmp_path / "arm.json").write_text(text)
    with pytest.raises(errors.ConfigError) as caught:
        robots.load(str(tmp_path / "arm.json"))
    assert place in caught.value.place


def test_an_unknown_robot_is_named_with_what_was_probably_meant():
    with pytest.raises(errors.ConfigError, match="did you mean 'libero'"):
        robots.load("libera")


# --- the command ------------------------------------------------------------------------------------------------------


def test_serving_another_robot_is_refused_before_anything_compiles(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(cli_serve.BatchActor, "__init__", lambda *_, **__: pytest.fail("it went on to compile"))
    with pytest.raises(SystemExit):
        cli.main(["serve", str(checkpoint), "--port", "0", "--robot", "libero"])
    said = capsys.readouterr().err
    assert "does not fit robot libero" in said and "action_dim" in said and "observation/wrist_image" not in said


def test_what_is_accepted_is_served(checkpoint, monkeypatch, tmp_path, capsys):
    (tmp_path / "arm.toml").write_text(TOML.replace("control_hz = 20", "control_hz = 10"))
    command = ["serve", str(checkpoint), "--port", "0", "--robot", str(tmp_path / "arm.toml")]
    with pytest.raises(SystemExit):
        cli.main(command)
    assert "accept 'control_hz'" in capsys.readouterr().err

    class Reached(Exception):
        pass

    def actor(*_, **__):
        raise Reached

    monkeypatch.setattr(cli_serve, "BatchActor", actor)
    with pytest.raises(Reached):
        cli.main([*command, "--accept", "control_hz"])


@pytest.mark.parametrize(
    "options, said",
    [
        (["--accept", "control_hz"], "--robot"),
        (["--robot", "droid", "--accept", "control_rate"], "cannot accept 'control_rate'"),
        (["--guidance-weight", "3"], "--realtime True"),
        (["--realtime", "True", "--guidance-weight", "4.5"], "0 to 4, the policy's flow steps"),
    ],
)
def test_options_that_do_not_fit_are_refused(checkpoint, capsys, options, said):
    with pytest.raises(SystemExit):
        cli.main(["serve", str(checkpoint), "--port", "0", *options])
    assert said in capsys.readouterr().err


# --- guidance ---------------------------------------------------------------------------------------------------------


def test_the_guidance_weight_is_never_lowered_in_silence(policy):
    """The toy policy has 4 flow steps: without a weight it is 4 and not the paper's 5, and the metadata say so; above
    4, which would overshoot, it is refused."""
    assert guidance_of(policy) == GuidanceOptions(4, 4.0)
    assert guidance_of(policy, 2.5) == GuidanceOptions(4, 2.5)
    for weight in (4.01, -1.0, float("nan")):
        with pytest.raises(errors.ConfigError, match="guidance weight"):
            guidance_of(policy, weight)
    reader = RequestReader.of(policy, takes_previous=True)
    assert metadata_of(policy, reader, guidance_of(policy))["guidance_weight"] == 4.0
    assert metadata_of(policy, RequestReader.of(policy))["guidance_weight"] is None
