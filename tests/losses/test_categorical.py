from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_jax.core import errors
from vla_jax.losses import categorical

SUPPORT = categorical.Support(-100.0, 0.0, 128)


def decode(probabilities, points):
    return jnp.einsum("...n,n->...", probabilities, points)


@settings(max_examples=30, deadline=None)
@given(st.floats(-97, -3), st.booleans())
def test_interior_values_survive_hl_gauss(value, widened):
    mass = categorical.hl_gauss(jnp.float32(value), SUPPORT, widened=widened)
    assert float(mass.sum()) == pytest.approx(1, abs=1e-5)
    assert float(decode(mass, SUPPORT.centers)) == pytest.approx(value, abs=0.1)  # a thousandth of the range


def test_the_two_widths_are_named():
    spread = lambda **options: float(  # noqa: E731
        decode(categorical.hl_gauss(jnp.float32(-50), SUPPORT, **options), jnp.square(SUPPORT.centers + 50)) ** 0.5
    )
    width, rounding = SUPPORT.bin_width, SUPPORT.bin_width**2 / 12  # the variance inside a bin adds to the Gaussian's
    assert spread() == pytest.approx(((0.75 * width) ** 2 + rounding) ** 0.5, rel=0.01)
    assert spread(widened=True) == pytest.approx(((2**0.5 * 0.75 * width) ** 2 + rounding) ** 0.5, rel=0.01)


def test_mass_at_the_ends_is_cut_and_normalized():
    for value in (-100.0, 0.0, 7.0):
        mass = categorical.hl_gauss(jnp.float32(value), SUPPORT)
        assert float(mass.sum()) == pytest.approx(1, abs=1e-5) and jnp.isfinite(mass).all()
    np.testing.assert_allclose(
        categorical.hl_gauss(jnp.float32(7.0), SUPPORT), categorical.hl_gauss(jnp.float32(0.0), SUPPORT)
    )


def looped_projection(atoms, probabilities, support):
    """C51's algorithm 1, atom by atom."""
    points, found = np.asarray(support.atoms), np.zeros(support.num_bins)
    step = points[1] - points[0]
    for atom, probability in zip(atoms, probabilities, strict=True):
        place = (np.clip(atom, support.low, support.high) - support.low) / step
        low, high = int(np.floor(place)), int(np.ceil(place))
        if low == high:
            found[low] += probability
        else:
            found[low] += probability * (high - place)
            found[high] += probability * (place - low)
    return found


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.5, 0.99]))
def test_c51_is_that_of_its_algorithm(seed, factor):
    support = categorical.Support(-2.0, 3.0, 11)
    rng = np.random.default_rng(seed)
    probabilities, atoms = rng.dirichlet(np.ones(11)), rng.normal() + factor * np.asarray(support.atoms)
    found = categorical.project(jnp.asarray(atoms), jnp.asarray(probabilities), support)
    np.testing.assert_allclose(found, looped_projection(atoms, probabilities, support), atol=1e-5)


def test_rlax_projects_alike():
    with np.load(Path(__file__).parents[1] / "fixtures" / "rlax_losses.npz") as stored:
        found = categorical.project(stored["atoms"], stored["probabilities"], categorical.Support(-2.0, 3.0, 21))
        np.testing.assert_allclose(found, stored["projected"], atol=1e-6)


def test_two_hot_keeps_the_value():
    support = categorical.Support(-2.0, 3.0, 11)
    values = jnp.array([-2.0, -1.9, 0.1, 3.0, 5.0])
    found = categorical.two_hot(values, support)
    np.testing.assert_allclose(decode(found, support.atoms), jnp.clip(values, -2, 3), atol=1e-5)
    assert ((found > 0).sum(-1) <= 2).all()


def test_cross_entropy_is_least_at_its_target():
    target = categorical.hl_gauss(jnp.float32(-31.0), SUPPORT)
    logits = jnp.log(target + 1e-9)
    slope = jax.grad(lambda x: categorical.cross_entropy(x, target))(logits)
    np.testing.assert_allclose(slope, 0, atol=1e-5)
    assert float(categorical.expected(logits, SUPPORT.centers)) == pytest.approx(-31, abs=0.1)


def test_an_empty_support_is_refused():
    with pytest.raises(errors.ConfigError, match="low < high"):
        categorical.Support(1.0, 1.0, 8)
