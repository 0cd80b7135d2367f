import pytest

from vla_jax.core.errors import ConfigError
from vla_jax.data.schema import DatasetConfig
from vla_jax.training.plain import from_plain, to_plain


def make_config(**changes):
    return DatasetConfig(path="somewhere", **{"action_horizon": 2, "cameras": (("front", "image"),), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_horizon": 0}, "action_horizon"),
        ({"history": 0}, "history"),
        ({"future_offset": 0}, "future_offset"),
        ({"first_frames": 0}, "first_frames"),
        ({"cameras": (("a", "x"), ("a", "y"))}, "once"),
        ({"cameras": (("a", ()),)}, "cameras, a"),
        ({"optional_cameras": ("fron",)}, "did you mean 'front'"),
        ({"state_keys": ()}, "state_keys"),
        ({"action_key": ()}, "action_names"),
        ({"instruction_key": ()}, "instruction_names"),
        ({"action_kind": "relative"}, "'as recorded' or 'delta' or 'absolute'"),
        ({"sample_by": "file"}, "'frame' or 'episode'"),
        ({"subset": "test"}, "'train' or 'validation'"),
        ({"holdout": 1.0}, "holdout"),
        ({"subset": "validation"}, "nothing is held out"),
        ({"resize": (0, 4, "pad")}, "resize"),
        ({"resize": (4, 4, "pad"), "downscale": 2}, "both change the size"),
        ({"episode_filter": ("name", "(")}, "regular expression"),
    ],
)
def test_impossible_values_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_config(**changes)


def test_a_config_with_everything_survives_json():
    from vla_jax.data.samples.goals import GoalConfig
    from vla_jax.data.schema import TransitionConfig

    config = make_config(
        cameras=(("front", ("left", "right")), ("wrist", "wrist")),
        action_key=("a", "b"),
        instruction_key=("x", "y", "z"),
        resize=(4, 5, "pad"),
        optional_cameras=("wrist",),
        action_kind="delta",
        relative_dims=((0, 1), (1, 0)),
        episode_filter=("name", "success"),
        kept_frames="kept.json",
        holdout=0.1,
        subset="validation",
        goals=GoalConfig(),
        transitions=TransitionConfig(),
    )
    assert from_plain(DatasetConfig, to_plain(config)) == config


def test_names_are_listed_once_and_only_where_they_are_needed():
    config = make_config(cameras=(("front", ("left", "right")),), action_key=("a", "b"))
    assert config.camera_names == {"front": ("observation/left", "observation/right")}
    assert config.feature_names({}) == (
        "observation/left",
        "observation/right",
        "observation/state",
        "a",
        "b",
        "language_instruction",
    )
