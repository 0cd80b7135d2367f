import jax
import jax.numpy as jnp
import pytest

from vla_jax.core import errors
from vla_jax.data.replay import device as replay


def rows(*values):
    return {"x": jnp.array(values, jnp.float32), "image": jnp.zeros((len(values), 2, 2), jnp.uint8)}


def empty(capacity):
    return replay.init(capacity, jax.tree.map(lambda leaf: leaf[0], rows(0)))


def test_only_valid_rows_are_kept_in_order():
    buffer = replay.insert(empty(4), rows(1, 2, 3), jnp.array([True, False, True]))
    assert buffer.size == 2
    assert buffer.rows["x"][:2].tolist() == [1, 3]


def test_the_oldest_rows_are_overwritten():
    buffer = empty(4)
    for start in (0, 3, 6):
        buffer = jax.jit(replay.insert)(buffer, rows(start, start + 1, start + 2), jnp.ones(3, bool))
    assert sorted(buffer.rows["x"].tolist()) == [5, 6, 7, 8]
    assert buffer.size == 4 and buffer.num_inserted == 9


def test_samples_are_uniform_over_what_is_there():
    buffer = replay.insert(empty(100), rows(0, 1, 2, 3), jnp.ones(4, bool))
    values = replay.sample(buffer, jax.random.key(0), (2, 2000))["x"]
    assert values.shape == (2, 2000)
    assert jnp.allclose(jnp.bincount(values.ravel().astype(int), length=4) / 4000, 0.25, atol=0.03)


def test_an_insertion_larger_than_the_buffer_is_refused():
    with pytest.raises(errors.ConfigError, match="smaller than one insertion"):
        replay.insert(empty(2), rows(1, 2, 3), jnp.ones(3, bool))
