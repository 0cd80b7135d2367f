"""What the imitated base can reach in the settings of EXPO's small reproduction."""

import jax
import numpy as np

from recipes import expo_reach
from scripts import inspect_expo


def test_goals_beside_the_demonstrations_are_within_reach_of_edits_and_hardly_of_the_choice():
    found = jax.jit(inspect_expo.inspect, static_argnums=0)(expo_reach.sharp(), jax.random.key(0))
    # the goal is 0.04 away per entry: a base that spread much more, or none at all, would be another task
    assert (np.asarray(found["spread"]) < 0.1).all() and (np.abs(np.asarray(found["mean"])) < 0.03).all()
    assert found["hits"] < 0.05
    assert found["within_reach_of_edits"] > 0.9 > found["within_reach_of_choice"] + 0.3


def test_every_setting_builds():
    for setting in inspect_expo.SETTINGS.values():
        found = jax.eval_shape(lambda key, setting=setting: inspect_expo.inspect(setting(), key), jax.random.key(0))
        assert found["mean"].shape == found["spread"].shape == (2,) and found["hits"].shape == ()
