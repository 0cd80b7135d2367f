import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_jax.core import keys, placement


def _quick(key):
    with placement.side_by_side():
        return keys.for_arrays(key)


SHAPES = [(), (1,), (2,), (7,), (3, 4), (5, 3), (2, 1, 5), (3, 2, 1, 4)]  # each is compiled anew


@given(seed=st.integers(0, 2**31 - 1), shape=st.sampled_from(SHAPES))
def test_a_key_for_arrays_draws_what_jaxs_own_draws(seed, shape):
    key, quick = jax.random.key(seed), _quick(jax.random.key(seed))
    assert jax.random.key_impl(quick) != jax.random.key_impl(key)
    np.testing.assert_array_equal(jax.random.bits(quick, shape), jax.random.bits(key, shape))
    for draw in (jax.random.normal, jax.random.uniform):  # their arithmetic may be fused with the bits
        np.testing.assert_allclose(draw(quick, shape), draw(key, shape), rtol=1e-5, atol=1e-6)
    own, others = (jax.random.split(k, 2) for k in (quick, key))
    np.testing.assert_array_equal(jax.random.key_data(own), jax.random.key_data(others))
    np.testing.assert_array_equal(jax.random.bits(own[1], shape), jax.random.bits(others[1], shape))
    np.testing.assert_array_equal(jax.random.randint(quick, shape, 1, 10), jax.random.randint(key, shape, 1, 10))


def test_it_draws_the_same_under_a_vmap_and_in_other_widths():
    batch = jax.random.split(jax.random.key(0), 3)

    def draw(key):
        return jax.random.bits(key, (5,)), jax.random.bits(key, (4,), "uint8")

    jax.tree.map(np.testing.assert_array_equal, jax.vmap(lambda key: draw(_quick(key)))(batch), jax.vmap(draw)(batch))


def test_it_has_no_loop():
    lowered = jax.jit(lambda key: jax.random.normal(_quick(key), (300, 25))).lower(jax.random.key(0))
    assert "while" not in lowered.as_text() and "while" in _text(lambda key: jax.random.normal(key, (300, 25)))


def _text(function):
    return jax.jit(function).lower(jax.random.key(0)).as_text()


@pytest.mark.parametrize("impl", ["rbg", "threefry2x32"])
def test_other_keys_and_programs_keep_theirs(impl):
    key = jax.random.key(0, impl=impl)
    assert keys.for_arrays(key) is key
    assert (_quick(key) is key) == (impl == "rbg")


def test_streams_and_steps_are_their_own():
    found = [keys.at_step(keys.stream(seed, name), step) for seed in (0, 1) for name in "ab" for step in (0, 1)]
    assert len({tuple(map(int, jnp.ravel(jax.random.key_data(key)))) for key in found}) == len(found)
