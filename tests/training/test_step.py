"""What a step does to a batch before the learner sees it."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.training import toy_learner as toy
from vla_jax.core import placement, runtime
from vla_jax.training import sharding, step

MESH = sharding.make_mesh(sharding.MeshConfig(data=1), jax.devices()[:1])


def add_noise(key, batch):
    return {**batch, "y": batch["y"] + jax.random.normal(key, batch["y"].shape)}


class Watches(toy.ToyLearner):
    """Tells what it is given."""

    def update(self, state, key, batch):
        state, _ = super().update(state, key, batch)
        return state, {"sum": batch["y"].sum()}


def run(augment, batches, *, start=0, scan_updates=1):
    loader = toy.ToyLoader()
    built = step.build(Watches(), loader.example(), MESH, augment=augment, scan_updates=scan_updates)
    carry = built.init(loader.example())
    carry = built.resumed(carry.learner, start, {}, 0)
    sums = []
    for batch in batches:
        carry, _ = built.run(carry, jax.device_put(batch))
        sums.append(float(carry.sums["sum"]))
    return np.diff([0.0, *sums])


def test_the_learner_sees_the_augmented_batch_another_at_every_step():
    batch = toy.ToyLoader().example()
    found = run(add_noise, [batch] * 3)
    assert len(set(found)) == 3
    assert not np.isclose(found, float(batch["y"].sum()), atol=1e-3).any()
    np.testing.assert_allclose(run(None, [batch] * 2), float(batch["y"].sum()), rtol=1e-4)


def test_a_resumed_run_augments_as_an_uninterrupted_one():
    batch = toy.ToyLoader().example()
    np.testing.assert_allclose(run(add_noise, [batch] * 4)[2:], run(add_noise, [batch] * 2, start=2), rtol=1e-4)


def test_scanned_updates_draw_for_themselves():
    batch = toy.ToyLoader().example()
    pair = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), batch)
    np.testing.assert_allclose(
        run(add_noise, [pair], scan_updates=2).sum(), run(add_noise, [batch] * 2).sum(), rtol=1e-4
    )


def test_small_networks_are_traced_side_by_side_where_a_cpu_has_several_cores(monkeypatch):
    found = []

    class Asks(Watches):
        def update(self, state, key, batch):
            found.append(placement.runs_side_by_side())
            return super().update(state, key, batch)

    loader = toy.ToyLoader()
    for num_cores in (1, 2):
        monkeypatch.setattr(runtime, "num_cores", lambda num_cores=num_cores: num_cores)
        built = step.build(Asks(), loader.example(), MESH)
        built.run(built.init(loader.example()), loader.example())
        assert found[-1] is (num_cores == 2)
    assert not placement.runs_side_by_side()
