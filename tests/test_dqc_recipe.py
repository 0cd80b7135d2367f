"""DQC on OGBench by recipe: the sizes fit together, and the script trains, goes on, judges and fills its table."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recipes import dqc_ogbench
from scripts import reproduce_dqc_ogbench as script
from tests.envs.fake_gymnasium import GoalEnv
from vla_jax import cli
from vla_jax.core import errors
from vla_jax.core.types import Observation, Transitions
from vla_jax.data.formats.features import Episode, demonstration_flags, episode_features
from vla_jax.data.formats.rlds_writer import RldsWriter
from vla_jax.envs import ogbench_sim
from vla_jax.envs.ogbench import OgbenchConfig
from vla_jax.evaluation import results, statistics, table_specs, tables
from vla_jax.training import checkpoints, trained
from vla_jax.training.sharding import MeshConfig

RECIPES = {name: dqc_ogbench.quick(name) for name in dqc_ogbench.METHODS} | {
    "million": dqc_ogbench.million(),
    "maze": dqc_ogbench.maze(),
    "paper": dqc_ogbench.paper(),
}


def abstract(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize("name", RECIPES)
def test_an_update_and_an_action_have_the_recipes_shapes(name):
    recipe = RECIPES[name]
    learner, b, h = trained.make_learner(recipe), 2, recipe.learner.backup_horizon
    prompt = abstract(b, 1, dtype=jnp.int32)
    seen = Observation({}, {}, abstract(b, recipe.policy.backbone.state_dim), prompt, abstract(b, 1, dtype=bool))
    steps, goal = abstract(b, h), abstract(b, len(recipe.recorded.goal_dims))
    actions = abstract(b, h, recipe.policy.decoder.action_dim)
    batch = Transitions(seen, actions, steps, steps, abstract(b, h, dtype=bool), seen, {}, goal)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(learner.init, key)
    after, metrics = jax.eval_shape(learner.update, state, key, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state) and metrics["loss"].shape == ()
    chunk, memory = jax.eval_shape(learner.act, learner.actor(state), key, seen, goal)
    assert chunk.shape == (b, recipe.learner.steps_run, actions.shape[-1]) and memory.shape == goal.shape


def test_the_policy_of_dqc_is_that_of_behaviour_cloning_and_shorter_than_its_backup():
    recipe = RECIPES["dqc"]
    assert recipe.policy.decoder.action_horizon == 1 < recipe.learner.backup_horizon
    assert RECIPES["q_chunking"].policy.decoder.action_horizon == RECIPES["q_chunking"].learner.backup_horizon


def test_goals_are_the_positions_of_the_cubes():
    """Of OGBench's states: 19 numbers of the arm, then per cube position, rotation (4) and yaw (2)."""
    assert RECIPES["dqc"].recorded.goal_dims == (19, 20, 21)
    assert RECIPES["paper"].recorded.goal_dims == (19, 20, 21, 28, 29, 30, 37, 38, 39)


def test_a_method_that_a_scene_has_no_levels_for_is_named():
    with pytest.raises(errors.ConfigError, match="no method 'n_step'"):
        dqc_ogbench.maze("n_step")


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The recipe at the size of a test, on a point in a plane in OGBench's place."""
    with RldsWriter(tmp_path / "set", episode_features({}, 3, 2), "point") as writer:
        for i in range(3):
            actions = np.random.default_rng(i).uniform(-1, 1, (12, 2)).astype(np.float32)
            places = np.cumsum(np.concatenate([np.zeros((1, 2)), 0.2 * actions[:-1]]), axis=0)
            states = np.pad(places, ((0, 0), (0, 1)), constant_values=7).astype(np.float32)
            steps = {"observation/state": states, "action": actions, "language_instruction": "go"}
            writer.write(Episode(steps=steps | demonstration_flags(12)))
    built = dqc_ogbench.quick

    def shrunk(method, seed):
        recipe = built(method, seed)
        learner = dataclasses.replace(
            recipe.learner, critic=dataclasses.replace(recipe.learner.critic, hidden_dims=(8,))
        )
        backbone = dataclasses.replace(recipe.policy.backbone, state_dim=3, action_dim=2, hidden_dims=(8,))
        decoder = dataclasses.replace(recipe.policy.decoder, action_dim=2, num_flow_steps=2)
        fit = dataclasses.replace(recipe.fit, log_every=2, checkpoint_every=2, scan_updates=2, mesh=MeshConfig(data=1))
        env = dataclasses.replace(recipe.evaluation.envs[0], episode_length=3)
        return dataclasses.replace(
            recipe,
            learner=learner,
            policy=dataclasses.replace(recipe.policy, backbone=backbone, decoder=decoder),
            fit=fit,
            evaluation=dataclasses.replace(recipe.evaluation, envs=(env,), batch_size=2),
            recorded=dataclasses.replace(recipe.recorded, goal_dims=(1, 0), batch_size=4),
        )

    monkeypatch.setattr(dqc_ogbench, "quick", shrunk)
    monkeypatch.setattr(OgbenchConfig, "_make", property(lambda self: GoalEnv))
    monkeypatch.setattr(ogbench_sim, "require", lambda: None)
    folders = dict(dataset=str(tmp_path / "set"), results=str(tmp_path / "results"), runs=str(tmp_path / "runs"))
    return script.Options(num_train_steps=4, episodes_per_task=1, **folders)


def test_the_script_fills_its_table_and_a_stopped_run_goes_on_to_the_same_parameters(tiny, capsys):
    assert script.run("dqc", 0, tiny)
    entries = results.load_table(tiny.results, script.TABLE)
    assert [(entry.row, entry.cell, entry.episodes) for entry in entries] == [
        ("dqc", "success_rate", 5),
        ("flow_bc", "success_rate", 5),
        ("dqc_of_4", "success_rate", 5),
    ]
    assert entries[0].records["instruction"] == [0, 1, 2, 3, 4]
    tables.to_markdown(table_specs.TABLES[script.TABLE], entries)
    whole, _ = checkpoints.load_actor(f"{tiny.runs}/dqc_seed0")
    stopped = dataclasses.replace(tiny, runs=f"{tiny.runs}/stopped", num_train_steps=2)
    for steps in (2, 4):
        options = dataclasses.replace(stopped, num_train_steps=steps)
        script.experiment.train(script.recipe("dqc", 0, options), f"{stopped.runs}/dqc_seed0", quiet=True)
    resumed, _ = checkpoints.load_actor(f"{stopped.runs}/dqc_seed0")
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    capsys.readouterr()
    cli.main(["eval", f"{tiny.runs}/dqc_seed0", "--results", tiny.results, "--num-episodes", "5"])
    assert "ogbench/cube-single: success rate" in capsys.readouterr().out


def test_runs_are_also_judged_by_fewer_candidates(tmp_path, monkeypatch):
    recipe, judged = dqc_ogbench.million("q_chunking"), {}
    assert "1m" in recipe.recorded.dataset.path
    policy = trained.TrainedPolicy(None, recipe, trained.make_learner(recipe), {}, None, {})
    monkeypatch.setattr(script.experiment, "train", lambda *_: types.SimpleNamespace(interrupted=False))
    monkeypatch.setattr(script.trained, "load", lambda folder: policy)
    monkeypatch.setattr(script, "judge", lambda row, policy: judged.update({row: policy}))
    monkeypatch.setattr(script.results, "append", lambda *_: None)
    assert script.run("q_chunking", 0, script.Options(size="million", runs=str(tmp_path)))
    counts = {row: policy.learner.config.num_candidates for row, policy in judged.items()}
    assert counts == {"q_chunking_1m": 32, "flow_bc_5_1m": 1, "q_chunking_1m_of_4": 4}
    assert all(policy.recipe.learner == policy.learner.config for policy in judged.values())  # what manifests show


def test_the_verdict_compares_rows_of_the_same_size_and_choice(capsys):
    means = {"dqc_1m_of_4": 0.5, "q_chunking_1m_of_4": 0.6, "flow_bc_1m": 0.1, "dqc_1m": 0.2, "flow_bc": 0.0}
    entries = tuple(
        results.Entry(script.TABLE, row, "success_rate", (0,), 1, mean, statistics.Interval(mean, mean), {})
        for row, mean in means.items()
    )
    script.print_verdict(entries)
    lines = [line for line in capsys.readouterr().out.splitlines() if "dqc" in line and " - " in line]
    assert [line.split(" = ")[0] for line in lines] == [
        "FAILS: dqc_1m - flow_bc_1m",
        "FAILS: dqc_1m_of_4 - q_chunking_1m_of_4",
        "holds: dqc_1m_of_4 - flow_bc_1m",
    ]
