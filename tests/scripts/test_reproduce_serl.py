"""The recipe of SERL's reproduction: its paper sizes, and arms that differ in what they ask about alone."""

import dataclasses

from recipes import serl_pick_cube


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
