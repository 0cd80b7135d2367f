import jax.numpy as jnp
import pytest

from vla_jax.core import errors
from vla_jax.nets.reading import Part, Reading, arrange, average_squares


def part(length, is_picture=False, first=0):
    tokens = first + jnp.arange(length, dtype=jnp.float32)[None, :, None]
    return Part(tokens, jnp.ones((1, length), bool), is_picture)


def test_words_are_a_block_each_and_a_picture_is_one():
    parts = [part(2), part(3, is_picture=True, first=10), part(3, is_picture=True, first=20), part(2, first=30)]
    tokens, mask, block = arrange(parts, Reading(causal=True))
    assert tokens[0, :, 0].tolist() == [0, 1, 10, 11, 12, 20, 21, 22, 30, 31] and mask.all()
    # Neighbouring pictures are two blocks: the first does not see the second.
    assert block.tolist() == [1, 2, 3, 3, 3, 4, 4, 4, 5, 6]
    assert arrange(parts, Reading()).block.tolist() == [0] * 10


def test_squares_of_a_grid_are_averaged_in_the_order_of_rows():
    grid = jnp.arange(16, dtype=jnp.float32).reshape(1, 16, 1)
    # The square 0 1 / 4 5 has mean 2.5; its neighbours are 2 columns (+2) and 2 rows (+8) away.
    assert average_squares(grid, 2)[0, :, 0].tolist() == [2.5, 4.5, 10.5, 12.5]
    assert jnp.array_equal(average_squares(grid[:, :3], 1), grid[:, :3])


def test_squares_that_do_not_fill_the_grid_are_refused():
    with pytest.raises(errors.ConfigError, match="pool"):
        average_squares(jnp.zeros((1, 16, 1)), 3)
    with pytest.raises(errors.ConfigError, match="pool"):
        average_squares(jnp.zeros((1, 15, 1)), 2)
    with pytest.raises(errors.ConfigError, match="pool"):
        Reading(pool=0)
