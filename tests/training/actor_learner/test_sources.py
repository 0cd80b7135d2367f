"""The deterministic mode, and what both modes share."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.actor_learner.toy import ABSTRACT, HORIZON, METADATA, ROW, LineEnv, ToyLearner
from vla_jax.core import errors
from vla_jax.data import trajectory_sets
from vla_jax.data.replay.host import HostBuffer
from vla_jax.training.actor_learner.actor import Actor
from vla_jax.training.actor_learner.inbox import Inbox
from vla_jax.training.actor_learner.sources import ActorLearnerConfig, InterleavedSource, ResidentDemonstrations
from vla_jax.training.fit import FitConfig, fit

CONFIG = ActorLearnerConfig(shape=(16,), training_starts=12, publish_every=4)


def interleaved(folder=None, demonstrations=None, intervene=None, **overrides):
    own = HostBuffer(ROW, 256) if intervene is not None else None
    inbox = Inbox(HostBuffer(ROW, 512, folder), own)
    actor = Actor(LineEnv(), ToyLearner(), seed=3, intervene=intervene)
    config = dataclasses.replace(CONFIG, **overrides)
    return InterleavedSource(actor, inbox, ROW, ABSTRACT, config, demonstrations, decisions_per_update=1.5)


def train(source, run_dir, steps):
    config = FitConfig(num_train_steps=steps, log_every=5, checkpoint_every=10)
    return fit(ToyLearner(), source, config, run_dir, metadata=METADATA, quiet=True)


def logged(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_resumed_run_is_the_same_to_the_last_bit(tmp_path, on_disk):
    def source(name):
        return interleaved(tmp_path / name / "replay" if on_disk else None)

    whole = train(source("whole"), tmp_path / "whole", 30)
    train(source("parts"), tmp_path / "parts", 10)
    # what comes after a checkpoint and before a kill must not matter: it is rewound
    late = source("parts")
    late.restore(_restored(late, tmp_path / "parts"))
    for step in range(10, 14):
        late.next(step, {"policy": {"bias": jnp.ones(1)}})
    late.close()
    parts = train(source("parts"), tmp_path / "parts", 30)
    assert np.array_equal(whole.state.params["policy"]["bias"], parts.state.params["policy"]["bias"])
    assert logged(tmp_path / "whole") == logged(tmp_path / "parts")
    rows = [row["collect/rows"] for row in logged(tmp_path / "whole")]
    assert rows[-1] > rows[0] > 12


def _restored(source, run_dir):
    from vla_jax.training.checkpoints import Checkpoints

    store = Checkpoints(run_dir)
    state = ToyLearner().init(None, None)
    return store.restore(10, jax.tree.map(jnp.asarray, state), source.state())[1]


def test_decisions_and_versions_follow_the_ratio_and_the_interval():
    source = interleaved()
    rows = []
    for step in range(9):
        batch, metrics = source.next(step, {"policy": {"bias": jnp.full((1,), float(step))}})
        rows.append(metrics["collect/rows"])
    assert batch.rewards.shape == (16, HORIZON)
    assert (batch.extras["source"] == 1).all()
    example = source.example()
    assert jax.tree.map(lambda x: (x.shape, x.dtype), example) == jax.tree.map(lambda x: (x.shape, x.dtype), batch)
    assert metrics["collect/max_staleness"] == 3  # published at steps 0, 4 and 8
    state = source.state()
    assert int(state["version"]) == 8 and float(state["params"]["policy"]["bias"][0]) == 8
    before = int(state["actor"]["decisions"])
    source.next(9, {"policy": {"bias": jnp.zeros(1)}})
    assert int(source.state()["actor"]["decisions"]) - before == 2  # 1.5 * 10 - floor(1.5 * 9)


def test_half_of_a_batch_are_demonstrations():
    states = np.full((9, 2), 7.0, np.float32)
    episode = trajectory_sets.Episode(
        trajectory_sets.state_observations(states), np.zeros((8, 1), np.float32), np.ones(8), terminated=True
    )
    demonstrations = ResidentDemonstrations(trajectory_sets.from_episodes([episode]), HORIZON)
    batch, _ = interleaved(demonstrations=demonstrations).next(0, {"policy": {"bias": jnp.zeros(1)}})
    assert batch.extras["source"].tolist() == [0] * 8 + [1] * 8
    assert (batch.observation.state[:8] == 7).all() and (batch.observation.state[8:] != 7).any()


def test_interventions_are_run_tagged_and_kept_as_demonstrations():
    """The operator takes over from step 2 of every episode on and pushes at full speed."""

    def intervene(observation, actions):
        return np.ones_like(actions) if observation.state[1] >= 2 else None

    source = interleaved(intervene=intervene)
    for step in range(20):
        batch, metrics = source.next(step, {"policy": {"bias": jnp.zeros(1)}})
    own = batch.extras["source"] == 0
    assert own.sum() == 8
    assert batch.extras["intervention"][own].all() and not batch.extras["intervention"][~own].all()
    assert (batch.actions[own] == 1).all()
    moved = batch.next_observation.state[own, 0] - batch.observation.state[own, 0]
    np.testing.assert_allclose(moved, batch.action_mask[own].sum(axis=1), rtol=1e-5)  # it was run, and arrived
    assert 0 < metrics["collect/demonstration_rows"] < metrics["collect/rows"]
    tagged = batch.extras["intervention"] == (batch.observation.state[:, 1] >= 2)
    assert tagged.all()


def test_a_buffer_that_can_never_hold_enough_is_refused():
    def source(capacity):
        return InterleavedSource(
            Actor(LineEnv(), ToyLearner()), Inbox(HostBuffer(ROW, capacity)), ROW, ABSTRACT, CONFIG
        )

    with pytest.raises(errors.ConfigError, match="training_starts"):
        source(12)
    with pytest.raises(errors.TrainingError, match="too few rows"):  # last observations take up rows of their own
        source(13).next(0, {"policy": {"bias": jnp.zeros(1)}})
    with pytest.raises(errors.ConfigError, match="publish_every"):
        ActorLearnerConfig(publish_every=0)
