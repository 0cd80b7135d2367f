import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from vla_jax.data.formats import lerobot_arrow
from vla_jax.data.formats.specs import FeatureSpec

ELEMENTS = {np.float64: st.floats(width=32)}  # which survive being kept in 32 bits
ARRAYS = st.sampled_from([np.float32, np.float64, np.int64, np.int8, np.bool_]).flatmap(
    lambda dtype: nps.arrays(dtype, nps.array_shapes(min_dims=1, max_dims=4, max_side=4), elements=ELEMENTS.get(dtype))
)


@given(ARRAYS)
def test_numbers_survive_the_way_to_arrow_and_back(values):
    column = lerobot_arrow.column(values)
    assert len(column) == len(values)
    np.testing.assert_array_equal(lerobot_arrow.flat_numbers(column, values.shape[1:]), values)


@given(ARRAYS)
def test_features_of_episodes_keep_their_shape_in_the_type(values):
    spec = FeatureSpec("x", "tensor", values.shape[1:], values.dtype.name, False)
    column = pa.array(values.astype(spec.stored_dtype).tolist(), lerobot_arrow.episode_type(spec))
    np.testing.assert_array_equal(
        lerobot_arrow.flat_numbers(column, values.shape[1:]), values.astype(spec.stored_dtype)
    )


def test_chunks_and_slices_are_flattened_as_they_are_seen():
    whole = pa.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    chunked = pa.chunked_array([whole.slice(1), whole.slice(0, 1)])
    assert lerobot_arrow.flat_numbers(chunked, (2,)).tolist() == [[3, 4], [5, 6], [1, 2]]
    fixed = lerobot_arrow.column(np.arange(6.0).reshape(3, 2)).slice(1)
    assert lerobot_arrow.flat_numbers(fixed, (2,)).tolist() == [[2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([[1.0, 2.0], [3.0]]), "lists of 1 to 2"),
        (pa.array([[1.0, 2.0], None]), "row is null"),
        (pa.array([[1.0, None]]), "value is null"),
        (pa.array([[1.0, 2.0, 3.0]]), "3 values"),
        (pa.array(["a"]), "values of object"),
    ],
)
def test_what_is_no_matrix_of_numbers_is_refused(column, message):
    with pytest.raises(ValueError, match=message):
        lerobot_arrow.flat_numbers(column, (2,))


def test_ragged_lists_of_the_right_total_are_refused():
    # 1 + 3 values would reshape to two rows of two.
    with pytest.raises(ValueError, match="lists of 1 to 3"):
        lerobot_arrow.flat_numbers(pa.array([[1.0], [2.0, 3.0, 4.0]]), (2,))
