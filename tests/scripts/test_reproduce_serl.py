"""The recipes of SERL's reproduction: the paper's sizes, arms that differ in what they ask about alone, and a run."""

import dataclasses

import numpy as np

from data_pipelines import scripted
from data_pipelines.scripted import ReachData
from recipes import serl_pick_cube
from scripts import reproduce_serl
from vla_jax.data.normalization import NormalizationConfig
from vla_jax.data.schema import DatasetConfig, TransitionConfig
from vla_jax.envs.mjx.pick_cube import STATE_NAMES
from vla_jax.envs.planar.reach import ReachConfig
from vla_jax.evaluation import table_specs, tables
from vla_jax.learners.hil_serl import HilSerl
from vla_jax.nets.state_mlp import StateMLPConfig
from vla_jax.policies.gaussian import GaussianConfig
from vla_jax.training import trained
from vla_jax.training.recipe import DataConfig, EvaluationConfig, PolicyConfig
from vla_jax.training.recorded import RecordedConfig


def test_the_papers_recipe_has_the_released_sizes():
    recipe = serl_pick_cube.paper()
    replay, (env,) = recipe.replay, recipe.evaluation.envs
    assert replay.batch_size == 256 and recipe.learner.critic.hidden_dims == (256, 256) and env.arm == "panda"
    assert replay.rounds * replay.critic_updates / replay.num_envs == 4
    assert recipe.fit.num_train_steps * replay.num_envs == 1_000_000


def renamed(recipe):
    return dataclasses.replace(recipe, name="")


def test_the_four_arms_have_the_same_networks_and_budget():
    quick = serl_pick_cube.quick()
    assert quick.fit.num_train_steps * quick.replay.num_envs == 6400
    for arm in ("sac", "sac_prefilled"):
        recipe = dataclasses.replace(serl_pick_cube.ARMS[arm](), recorded=quick.recorded)
        assert renamed(recipe) == renamed(quick)
    plain = serl_pick_cube.without_norm()
    assert plain.learner.critic.norm == "none"
    assert renamed(dataclasses.replace(plain, learner=quick.learner)) == renamed(quick)


def test_the_grip_has_a_critic_of_its_own_and_the_arm_one_dim_less():
    recipe = serl_pick_cube.hil_serl()
    assert renamed(dataclasses.replace(recipe, learner=recipe.learner.arm)) == renamed(serl_pick_cube.quick())
    learner = trained.make_learner(recipe)
    assert isinstance(learner, HilSerl) and learner.arm.action_dim == 3
    assert learner.config.discount == learner.arm.config.discount
    greedy = trained.make_learner(serl_pick_cube.hil_serl_greedy())
    assert greedy.config == dataclasses.replace(learner.config, epsilon=0.0)


def test_every_arm_has_a_row_and_demonstrations_of_its_own_scene():
    assert set(serl_pick_cube.ARMS) < {row.name for row in table_specs.TABLES["serl"].rows}
    sets = {}
    for build in serl_pick_cube.ARMS.values():
        recipe = build(3)
        sets.setdefault(recipe.data.datasets[0].path, set()).update(recipe.evaluation.envs)
        assert recipe.fit.seed == recipe.replay.seed == recipe.data.seed == 3
    assert len(sets) == 4 and all(len(envs) == 1 and "seed3" in path for path, envs in sets.items())


def test_the_other_place_is_seen_in_the_same_frame():
    for arm in reproduce_serl.SHIFTED:
        recipe = serl_pick_cube.ARMS[arm]()
        ((here,), (there,)) = recipe.evaluation.envs, serl_pick_cube.shifted(recipe).envs
        assert here.frame == there.frame and here.start[0] + 0.125 == there.start[0]


def test_with_pictures_the_state_does_not_say_where_the_cube_is():
    recipe = serl_pick_cube.pixels()
    told = np.delete(STATE_NAMES, recipe.data.normalization.hidden_state_dims)
    assert set(told) == {"x", "y", "z", "vx", "vy", "vz", "gripper"}
    assert recipe.policy.backbone.cameras == ("wrist",) and not recipe.learner.frozen_trunk
    assert recipe.evaluation.envs[0].image_size == recipe.policy.backbone.image_size[0]


def test_an_arm_runs_whole_and_fills_its_cells(tmp_path, monkeypatch):
    """On a point in the plane, whose simulator compiles in no time."""
    place, made = str(tmp_path / "1.0.0"), reproduce_serl.in_folder(serl_pick_cube.absolute_frame(), str(tmp_path))
    assert made.data.datasets[0].path == made.recorded.dataset.path and str(tmp_path) in made.recorded.dataset.path
    dataset = DatasetConfig(place, 1, cameras=())
    recipe = dataclasses.replace(
        made,
        policy=PolicyConfig(StateMLPConfig(2, 1, 2), GaussianConfig(1, 2)),
        fit=dataclasses.replace(made.fit, num_train_steps=4, log_every=2, eval_every=2, checkpoint_every=2),
        evaluation=EvaluationConfig((ReachConfig(),), 1, num_episodes=4, batch_size=4),
        data=DataConfig((dataset,), batch_size=1, normalization=NormalizationConfig("none")),
        replay=dataclasses.replace(made.replay, rounds=1, critic_updates=2, batch_size=8),
        recorded=RecordedConfig(dataclasses.replace(dataset, transitions=TransitionConfig())),
    )
    monkeypatch.setattr(serl_pick_cube, "generate", lambda _: scripted.generate(place, ReachData(num_episodes=4)))
    monkeypatch.setattr(serl_pick_cube, "shifted", lambda recipe: recipe.evaluation)
    entries = {entry.cell: entry for entry in reproduce_serl.run("absolute_frame", recipe, tmp_path / "run")}
    assert set(entries) == {"success_rate", "curve_area", "shifted_success_rate"}
    assert entries["curve_area"].episodes == 2 and entries["success_rate"].episodes == 4
    cost = entries["success_rate"].manifest["cost"]
    assert cost["env_steps"] == 32 and cost["critic_updates"] == 8 and cost["train_seconds"] > 0
    tables.to_markdown(table_specs.TABLES["serl"], list(entries.values()))
