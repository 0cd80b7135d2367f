import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vla_jax.core.errors import ConfigError
from vla_jax.data import action_kinds

# x and y are measured from state dims 2 and 0; the third dim is a gripper.
DIMS = ((0, 2), (1, 0))
STATE = np.array([10.0, 7.0, 20.0], np.float32)
TARGETS = np.array([[21.0, 11.0, 1.0], [23.0, 11.0, 0.0], [26.0, 8.0, 0.0]], np.float32)


def test_chunk_deltas_are_distances_from_the_state_at_the_start():
    # x: 21 - 20, 23 - 20, 26 - 20; y: 11 - 10, 11 - 10, 8 - 10; the gripper stays
    expected = [[1, 1, 1], [3, 1, 0], [6, -2, 0]]
    np.testing.assert_array_equal(action_kinds.to_chunk_delta(TARGETS, STATE, DIMS), expected)


def test_step_deltas_are_distances_from_one_target_to_the_next():
    expected = [[1, 1, 1], [2, 0, 0], [3, -3, 0]]
    np.testing.assert_array_equal(action_kinds.to_step_delta(TARGETS, STATE, DIMS), expected)
    np.testing.assert_array_equal(action_kinds.from_step_delta(np.array(expected, np.float32), STATE, DIMS), TARGETS)


CHUNKS = arrays.arrays(np.float32, (2, 4, 3), elements=st.integers(-1000, 1000).map(float))
STATES = arrays.arrays(np.float32, (2, 3), elements=st.integers(-1000, 1000).map(float))


@given(CHUNKS, STATES, st.sampled_from(["as recorded", "delta", "absolute"]))
def test_the_inverse_is_exact(actions, state, kind):
    """Whole numbers, so that float rounding plays no part."""
    dims = () if kind == "as recorded" else DIMS
    learned = action_kinds.convert(kind, actions, state, dims)
    np.testing.assert_array_equal(action_kinds.invert(kind, learned, state, dims), actions)
    np.testing.assert_array_equal(learned[..., 2], actions[..., 2])


@pytest.mark.parametrize("kind", ["delta", "absolute"])
def test_traced_arrays_give_what_numpy_gives(kind):
    convert = jax.jit(lambda actions, state: action_kinds.convert(kind, actions, state, DIMS))
    invert = jax.jit(lambda actions, state: action_kinds.invert(kind, actions, state, DIMS))
    ours = convert(jnp.asarray(TARGETS)[None], jnp.asarray(STATE)[None])
    np.testing.assert_allclose(ours[0], action_kinds.convert(kind, TARGETS, STATE, DIMS), rtol=1e-6)
    np.testing.assert_allclose(invert(ours, jnp.asarray(STATE)[None])[0], TARGETS, rtol=1e-6)
    assert isinstance(action_kinds.convert(kind, TARGETS, STATE, DIMS), np.ndarray)


@pytest.mark.parametrize(
    ("kind", "dims"),
    [("delta", ()), ("as recorded", DIMS), ("delta", ((3, 0),)), ("delta", ((0, 3),)), ("delta", ((0, 1), (0, 2)))],
)
def test_impossible_dims_are_refused(kind, dims):
    with pytest.raises(ConfigError, match="relative_dims"):
        action_kinds.check(kind, dims, action_dim=3, state_dim=3, place="DatasetConfig")
