"""Batches drawn inside the program that updates are those that the host would pull, and so are the updates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.evaluation.point_env import PointEnv
from tests.training import toy_learner as toy
from vla_jax.core.types import Transitions
from vla_jax.learners.rlpd import RLPD, RLPDConfig
from vla_jax.nets.critics import CriticConfig
from vla_jax.training import logging as logs
from vla_jax.training import sharding
from vla_jax.training.fit import FitConfig, fit
from vla_jax.training.online import ReplayConfig, ReplaySource
from vla_jax.training.recorded import OfflineSource

STEPS = 8
CONFIG = RLPDConfig(critic=CriticConfig((8,)), actor_dims=(8,), num_critics=2, action_horizon=2)
LEARNER = RLPD(2, 2, optax.adam(1e-2), CONFIG)


def recorded():
    rng = np.random.default_rng(0)
    state, after = rng.normal(size=(2, 50, 2)).astype(np.float32)
    actions = rng.uniform(-1, 1, (50, 2, 2)).astype(np.float32)
    ones = np.ones((50, 2), np.float32)
    return Transitions(state, actions, actions.sum(-1), ones, ones > 0, after, {})


def simulated():
    actor = jax.eval_shape(LEARNER.actor, jax.eval_shape(LEARNER.init, jax.random.key(0)))
    config = ReplayConfig(num_envs=8, capacity=64, warmup_decisions=2, critic_updates=2, batch_size=8)
    return ReplaySource(PointEnv(), LEARNER, actor, config, recorded=recorded())


def offline():
    return OfflineSource.of_rows(recorded(), (1, 2, 8), seed=3)


def train(folder, source, scan_updates, *, devices=1, steps=STEPS):
    config = FitConfig(
        steps, log_every=4, checkpoint_every=4, scan_updates=scan_updates, mesh=sharding.MeshConfig(data=devices)
    )
    result = fit(LEARNER, source, config, folder, metadata=toy.METADATA, quiet=True)
    return result.state, source.state(), logs.read(folder)


def assert_close(found, expected, **tolerance):
    def one(a, b):
        if jnp.issubdtype(jnp.asarray(a).dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(a, b, **tolerance)

    jax.tree.map(one, found, expected)


@pytest.mark.parametrize(("source", "devices"), [(offline, 8), (simulated, 1)])
def test_one_program_does_what_the_host_would(tmp_path, source, devices):
    pulled = train(tmp_path / "pulled", source(), 1)
    drawn = train(tmp_path / "drawn", source(), 4, devices=devices)
    # in a simulator small differences of the actor become others of the episodes
    assert_close(drawn, pulled, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("source", [offline, simulated])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, source):
    whole = train(tmp_path / "whole", source(), 4)
    train(tmp_path / "parts", source(), 4, steps=4)
    assert_close(train(tmp_path / "parts", source(), 4), whole, rtol=0)


def test_every_batch_is_made_by_the_actor_of_its_step(tmp_path):
    """With the batches of one dispatch made by the actor before it, as the host makes them, episodes are others."""
    stale = _Pulls(simulated())
    train(tmp_path / "pulled", stale, 4)
    _, fresh, _ = train(tmp_path / "drawn", simulated(), 4)
    assert np.abs(fresh.buffer.rows.actions - stale.state().buffer.rows.actions).max() > 1e-3


class _Pulls:
    """A source without the pure function."""

    def __init__(self, source):
        self.use_mesh, self.example, self.next = source.use_mesh, source.example, source.next
        self.state, self.restore = source.state, source.restore
