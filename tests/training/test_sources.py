"""Reading ahead changes when batches are made, never which."""

import numpy as np
import pytest

from tests.training import toy_learner as toy
from vla_jax.training import sharding
from vla_jax.training.sources import DatasetSource


def _next(source, steps):
    return [np.asarray(source.next(step, None)[0]["x"]) for step in range(steps)]


def test_batches_come_in_the_loaders_order_on_the_mesh():
    source = DatasetSource(toy.ToyLoader())
    mesh = sharding.make_mesh(sharding.MeshConfig())
    source.use_mesh(mesh)
    batch, _ = source.next(0, None)
    assert batch["x"].sharding.is_equivalent_to(sharding.batch_sharding(mesh), 2)
    np.testing.assert_array_equal(batch["x"], toy.ToyLoader()._batch(0)["x"])
    np.testing.assert_array_equal(_next(source, 1)[0], toy.ToyLoader()._batch(1)["x"])
    source.close()


def test_the_state_is_that_of_the_last_batch_given_not_of_the_last_one_read():
    source = DatasetSource(toy.ToyLoader(), prefetch=3)
    assert source.state() == {"position": 0}
    _next(source, 2)
    assert source.state() == {"position": 2}
    saved, expected = source.state(), _next(source, 3)
    source.restore(saved)
    np.testing.assert_array_equal(_next(source, 3), expected)
    source.close()


def test_closing_drops_no_batch():
    source = DatasetSource(toy.ToyLoader())
    _next(source, 2)
    source.close()
    np.testing.assert_array_equal(_next(source, 1)[0], toy.ToyLoader()._batch(2)["x"])
    source.close()


def test_what_a_loader_says_of_a_batch_comes_with_that_batch():
    class Says(toy.ToyLoader):
        def metrics(self):
            return {"data/faults": float(self.position)}

    source = DatasetSource(Says(), prefetch=3)  # reads ahead, so that the loader is further on than what is given
    assert [source.next(step, None)[1] for step in range(3)] == [{"data/faults": n} for n in (1.0, 2.0, 3.0)]
    source.close()
    assert DatasetSource(toy.ToyLoader()).next(0, None)[1] == {}


def test_a_loaders_error_reaches_the_one_who_asks():
    class Ends(toy.ToyLoader):
        def __next__(self):
            if self.position == 2:
                raise ValueError("no more")
            return super().__next__()

    source = DatasetSource(Ends())
    _next(source, 2)
    with pytest.raises(ValueError, match="no more"):
        source.next(2, None)
    source.close()
