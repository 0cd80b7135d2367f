"""`vla-jax learn` and `vla-jax act` as a user runs them: two commands, one recipe, over loopback."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from vla_jax import cli, cli_actors, experiment
from vla_jax.core import errors
from vla_jax.data.formats.features import Episode, demonstration_flags, episode_features
from vla_jax.data.formats.rlds_writer import RldsWriter
from vla_jax.data.replay.host import HostBuffer
from vla_jax.data.schema import DatasetConfig, TransitionConfig
from vla_jax.training import trained
from vla_jax.training.actor_learner.sources import RecordedRows
from vla_jax.training.recorded import RecordedConfig

ROOT = Path(__file__).parent.parent
RECIPE = """
import dataclasses

from vla_jax.envs.hosted import HostedEnv
from vla_jax.envs.planar.reach import ReachConfig
from vla_jax.learners.dqc import DQCConfig
from vla_jax.learners.rlpd import RLPDConfig
from vla_jax.nets.critics import CriticConfig
from vla_jax.nets.state_mlp import StateMLPConfig
from vla_jax.policies.gaussian import GaussianConfig
from vla_jax.training.fit import FitConfig
from vla_jax.training.online import ReplayConfig
from vla_jax.training.optimizers import Adam
from vla_jax.training.recipe import DataConfig, EvaluationConfig, PolicyConfig, Recipe, TextConfig
from vla_jax.training.sharding import MeshConfig

ENV = ReachConfig(radius=0.2)

def quick() -> Recipe:
    learner = RLPDConfig(2, num_critics=2, critic=CriticConfig((16,)), actor_dims=(16,))
    replay = ReplayConfig(capacity=2000, rounds=1, critic_updates=2, batch_size=16)
    return Recipe(
        "tiny", PolicyConfig(StateMLPConfig(2, 2, 2, (16,)), GaussianConfig(2, 2)), learner, Adam(),
        FitConfig(40, log_every=20, checkpoint_every=20, mesh=MeshConfig(data=1)),
        EvaluationConfig((ENV,), 2, num_episodes=8, batch_size=8), DataConfig((), 16),
        TextConfig(words=("reach", "a", "goal"), prompt_length=3), replay=replay,
    )

def make(prompts):
    return HostedEnv(ENV.make(prompts))

class Wider(HostedEnv):
    @property
    def spec(self):
        return dataclasses.replace(super().spec, name="wider", action_names=("dx", "dy", "dz"))

def wider(prompts):
    return Wider(ENV.make(prompts))
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(RECIPE)
    return path


def start(*arguments):
    command = [sys.executable, "-c", "from vla_jax.cli import main; main()", *map(str, arguments)]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}  # with one device
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)


def test_a_learner_trains_from_what_an_actor_sends_and_its_run_is_a_policy(recipe, tmp_path):
    run = tmp_path / "run"
    learner = start(
        "learn", recipe, "--run", run, "--port", 0, "--training-starts", 20, "--publish-every", 5, "--patience", 100
    )
    watchdog = threading.Timer(120, learner.kill)  # closes the pipe, so that reading from it ends
    watchdog.start()
    actor = None
    try:
        address = next(line for line in learner.stdout if line.startswith("listening")).split()[1]
        actor = start(
            "act", recipe, "--connect", address, "--actor", "arm-1", "--env", f"{recipe}:make", "--spool",
            tmp_path / "spool", "--decisions", 80, "--timeout", 60,
        )  # fmt: skip
        acted, _ = actor.communicate(timeout=120)
        told, _ = learner.communicate(timeout=120)
    finally:
        watchdog.cancel()
        for process in (learner, actor):
            if process is not None:
                process.kill()
                process.wait(30)
    assert actor.returncode == 0 and "arm-1: 80 decisions" in acted and "0 lost" in acted
    assert learner.returncode == 0 and "40 updates done" in " ".join(told.split())
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["collect/rows"] >= 20 and metrics[-1]["step"] == 40
    assert trained.load(run).recipe.name == "tiny" and (run / "replay").is_dir()


def fails(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(list(map(str, arguments)))
    assert caught.value.code == 2
    return capsys.readouterr().err


ACT = ("--connect", "ws://127.0.0.1:9", "--actor", "arm", "--timeout", 1)


def test_another_robot_is_refused_before_anything_is_sent(capsys, recipe):
    message = fails(capsys, "act", recipe, *ACT, "--env", f"{recipe}:wider")
    assert "recipe tiny" in message and "wider" in message and "no parameters" not in message


def test_an_unknown_environment_function_lists_the_known_ones(capsys, recipe):
    assert "Known: make, quick, wider" in fails(capsys, "act", recipe, *ACT, "--env", f"{recipe}:mak3")


def test_a_learner_that_is_not_there_is_an_error(capsys, recipe):
    assert "no parameters" in fails(capsys, "act", recipe, *ACT)


def test_an_address_that_others_reach_needs_a_key(capsys, recipe, tmp_path, monkeypatch):
    monkeypatch.delenv("VLA_JAX_API_KEY", raising=False)
    assert "API key" in fails(capsys, "learn", recipe, "--run", tmp_path / "run", "--host", "0.0.0.0")


def test_other_learners_than_rlpd_are_refused(recipe):
    built = cli.load_recipe(str(recipe))
    object.__setattr__(built, "learner", "DQC")  # past the checks of a recipe
    with pytest.raises(errors.ConfigError, match="processes of their own"):
        cli_actors.learn(cli_actors.with_recipe(cli_actors.Learn, built)("run"), None)


def test_recorded_rows_are_demonstrations_beside_those_of_actors(recipe, tmp_path):
    with RldsWriter(tmp_path / "1.0.0", episode_features({}, 2, 2), "tiny") as writer:
        for length in (5, 3):
            steps = {
                "observation/state": np.full((length, 2), length, np.float32),
                "action": np.full((length, 2), 0.1 * length, np.float32),
                "language_instruction": "reach a goal",
            }
            writer.write(Episode(steps=steps | demonstration_flags(length)))
    dataset = DatasetConfig(str(tmp_path / "1.0.0"), 2, cameras=(), transitions=TransitionConfig())
    built = dataclasses.replace(cli.load_recipe(str(recipe)), recorded=RecordedConfig(dataset, 0.5))
    edges, learner = trained.make_edges(built, experiment.data_statistics(built)), trained.make_learner(built)
    rows = RecordedRows(cli_actors._recorded(built, learner, edges))
    batch = rows.sample(np.random.default_rng(0), (3, 100))
    row = cli_actors._row(built, learner, edges, cli_actors._simulator(built, edges).spec)
    of_actors = HostBuffer(row, 10).example((3, 100))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), batch) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), of_actors
    )
    assert set(np.unique(batch.observation)) == {3.0, 5.0} and not batch.extras["intervention"].any()
    expected = np.broadcast_to(0.1 * batch.observation[..., None, :], batch.actions.shape)
    np.testing.assert_allclose(batch.actions[batch.action_mask], expected[batch.action_mask], rtol=1e-5)
    with pytest.raises(errors.ConfigError, match="num_rows"):
        rows.sample(np.random.default_rng(0), (3,), 2)
