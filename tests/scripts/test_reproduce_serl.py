"""The recipe of SERL's reproduction: its paper sizes, and arms that differ in what they ask about alone."""

import dataclasses

import numpy as np

from recipes import serl_pick_cube
from vla_jax.core.types import Observation
from vla_jax.envs.mjx.pick_cube import STATE_NAMES
from vla_jax.evaluation import table_specs
from vla_jax.learners.hil_serl import HilSerl


def test_the_papers_recipe_has_the_released_sizes():
    recipe = serl_pick_cube.paper()
    assert recipe.batch_size == 256 and recipe.config.critic.hidden_dims == (256, 256) and recipe.env.arm == "panda"
    assert recipe.rounds * recipe.critic_updates / recipe.num_envs == 4


def test_the_four_arms_have_the_same_networks_and_budget():
    quick = serl_pick_cube.quick()
    for arm in ("sac", "sac_prefilled"):
        recipe = serl_pick_cube.ARMS[arm]()
        assert dataclasses.replace(recipe, demonstrations=quick.demonstrations) == quick
    plain = serl_pick_cube.without_norm()
    assert plain.config.critic.norm == "none"
    assert dataclasses.replace(plain, config=quick.config) == quick


def test_the_grip_has_a_critic_of_its_own_and_the_arm_one_dim_less():
    recipe = serl_pick_cube.hil_serl()
    assert dataclasses.replace(recipe, grasp=None) == serl_pick_cube.quick()
    learner = recipe.learner(4, 10)
    assert isinstance(learner, HilSerl) and learner.arm.action_dim == 3
    assert learner.config.discount == learner.arm.config.discount
    greedy = serl_pick_cube.hil_serl_greedy()
    assert greedy.learner(4, 10).config == dataclasses.replace(learner.config, epsilon=0.0)


def test_every_arm_has_a_row():
    assert set(serl_pick_cube.ARMS) < {row.name for row in table_specs.TABLES["serl"].rows}


def test_with_pictures_the_state_does_not_say_where_the_cube_is():
    recipe = serl_pick_cube.pixels()
    pictures, mask = np.zeros((2, 32, 32, 3), np.uint8), np.ones(2, bool)
    images, masks = dict(front=pictures, wrist=pictures), dict(front=mask, wrist=mask)
    seen = recipe.sees(Observation(images, masks, np.tile(np.arange(10.0), (2, 1)), mask[:, None], mask[:, None]))
    told = {STATE_NAMES[int(entry)] for entry in seen.state[0]}
    assert told == {"x", "y", "z", "vx", "vy", "vz", "gripper"} and set(seen.images) == {"wrist"}
    assert recipe.learner(4, 10).feature_dim == recipe.pixels.feature_dim
    assert recipe.env.image_size == recipe.pixels.image_size[0] and not recipe.config.frozen_trunk
