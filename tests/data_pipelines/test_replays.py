"""Recorded actions run again: as they were, changed, and where nothing is recorded to begin from."""

import json

import numpy as np
import pytest

from data_pipelines import replays, tabletop
from data_pipelines.tabletop import TabletopDataConfig
from tests.data_pipelines.test_tabletop import Line, go_right
from vla_jax.core import errors
from vla_jax.data.formats.features import Episode, demonstration_flags, episode_features
from vla_jax.data.formats.rlds_writer import RldsWriter
from vla_jax.data.lint.replay import ReplayOutcome

CONFIG = TabletopDataConfig(tasks=("place", "push"), episodes_per_task=6, batch_size=4, noise_max=0.4)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A set of the point on a line that the other tests of tabletop sets use."""
    monkeypatch.setattr(TabletopDataConfig, "env", lambda self, task: Line())
    monkeypatch.setattr(tabletop, "expert", lambda env, state: go_right(state))
    return tabletop.generate(tmp_path / "tabletop" / "1.0.0", CONFIG)


def test_recorded_actions_succeed_again_at_the_same_step(folder):
    assert replays.replay_of(folder, num_episodes=12)() == ReplayOutcome(12, 12)


def test_another_seed_begins_elsewhere_and_succeeds_at_other_steps(folder):
    path = folder / "metadata.json"
    stored = json.loads(path.read_text())
    stored["config"]["seed"] = 1
    path.write_text(json.dumps(stored))
    outcome = replays.replay_of(folder, num_episodes=12)()
    assert outcome.total == 12 and outcome.successes < 9


def test_without_libero_a_set_from_there_says_how_to_get_it(monkeypatch, tmp_path):
    def missing(backend):
        raise errors.EnvError("LIBERO is not installed", fix="install it")

    monkeypatch.setattr(replays.libero_sim, "require", missing)
    (tmp_path / "episodes.jsonl").touch()
    outcome = replays.replay_of(tmp_path / "1.0.0")()
    assert outcome == ReplayOutcome(reason="LIBERO is not installed", fix="install it")


def test_a_simulated_set_without_initial_states_says_so_and_a_real_one_says_nothing(tmp_path):
    features = episode_features({}, 2, 2)
    for name in ("rollouts", "bridge"):
        with RldsWriter(tmp_path / name, features, name) as writer:
            steps = {"observation/state": np.zeros((3, 2), np.float32), "action": np.zeros((3, 2), np.float32)}
            writer.write(Episode({**steps, "language_instruction": "go there", **demonstration_flags(3)}))
    assert "no initial simulator states" in replays.replay_of(tmp_path / "rollouts")().reason
    assert replays.replay_of(tmp_path / "bridge") is None
