"""What a base can reach is counted in the units that its spread is told in."""

import dataclasses

import jax
import numpy as np

from recipes import expo_reach
from scripts import inspect_expo


def test_a_goal_wider_than_the_base_spreads_is_hit_by_every_sample():
    sharp = expo_reach.sharp()
    env = dataclasses.replace(sharp.env, radius=0.25)
    experiment = dataclasses.replace(sharp, env=env, imitation_updates=3000, num_demonstrations=20)
    found = jax.jit(inspect_expo.inspect, static_argnums=0)(experiment, jax.random.key(0))
    assert (np.asarray(found["spread"]) < 0.2).all()  # the demonstrations show 0.005
    assert found["hits"] > 0.8
    assert found["within_reach_of_choice"] == found["within_reach_of_edits"] == 1


def test_every_setting_builds():
    for setting in inspect_expo.SETTINGS.values():
        found = jax.eval_shape(lambda key, setting=setting: inspect_expo.inspect(setting(), key), jax.random.key(0))
        assert found["mean"].shape == found["spread"].shape == (2,) and found["hits"].shape == ()
