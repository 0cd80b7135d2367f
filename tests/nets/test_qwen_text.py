import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_jax.nets import qwen_text
from vla_jax.nets.mixture import next_position
from vla_jax.nets.reading import Part


def part(mask, is_picture=False):
    mask = jnp.asarray(mask, bool)[None]
    return Part(jnp.zeros((*mask.shape, 1)), mask, is_picture)


def test_positions_are_those_of_the_docstring():
    parts = [part([1, 1]), part([1] * 6, is_picture=True), part([1, 1])]
    found = qwen_text.positions(parts, (2, 3))[0].T
    assert found.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]
    assert next_position(qwen_text.positions(parts, (2, 3)), jnp.ones((1, 10), bool)).tolist() == [7]


@settings(max_examples=30)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.lists(st.one_of(st.booleans(), st.lists(st.booleans(), min_size=1, max_size=4)), min_size=1, max_size=4),
)
def test_positions_are_counted_one_token_after_the_other(grid, plan):
    """`plan`: for a picture whether it is there, for words their mask."""
    num = grid[0] * grid[1]
    parts = [part([p] * num, is_picture=True) if isinstance(p, bool) else part(p) for p in plan]
    found = np.asarray(qwen_text.positions(parts, grid)[0])
    mask = np.concatenate([np.asarray(p.mask[0]) for p in parts])
    expected, following = [], 0
    for p in plan:
        if p is True:
            expected += [(following, following + i, following + j) for i in range(grid[0]) for j in range(grid[1])]
            following += max(grid)
        elif p is not False:
            for _ in range(sum(p)):
                expected.append((following,) * 3)
                following += 1
    assert list(map(tuple, found[mask].tolist())) == expected
    assert next_position(jnp.asarray(found)[None], jnp.asarray(mask)[None]).tolist() == [following]
