import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_jax.core.errors import ConfigError
from vla_jax.data.samples.mixture import mixture_weights


def test_without_weights_sizes_decide():
    assert mixture_weights([100, 300]) == (0.25, 0.75)


def test_a_temperature_of_two_takes_square_roots():
    # sqrt(100) : sqrt(900) = 10 : 30; the likely bug, squaring, would give 1 : 81.
    assert mixture_weights([100, 900], temperature=2.0) == pytest.approx((0.25, 0.75))


def test_a_high_temperature_makes_sets_equal():
    assert mixture_weights([1, 10**6], temperature=1e9) == pytest.approx((0.5, 0.5))


def test_given_weights_replace_the_sizes():
    assert mixture_weights([100, 300], [1.0, 1.0]) == (0.5, 0.5)


def test_robots_get_equal_mass_which_their_sets_share():
    # franka has sets of 100 and 300, widow of 50, and the nameless one stands alone: thirds.
    found = mixture_weights([100, 300, 50, 7], embodiments=("franka", "franka", "widow", None))
    assert found == pytest.approx((1 / 12, 3 / 12, 1 / 3, 1 / 3))


@given(
    st.lists(st.tuples(st.integers(1, 10**8), st.sampled_from(["a", "b", None])), min_size=1, max_size=6),
    st.floats(0.2, 1e3),
)
def test_weights_are_fractions(sets, temperature):
    sizes, robots = zip(*sets, strict=True)
    found = mixture_weights(sizes, temperature=temperature, embodiments=robots)
    assert sum(found) == pytest.approx(1) and min(found) >= 0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"weights": (1.0,)}, "2 positive numbers"),
        ({"weights": (1.0, -1.0)}, "2 positive numbers"),
        ({"temperature": 0.0}, "above 0"),
    ],
)
def test_impossible_mixtures_are_refused(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        mixture_weights([1, 2], **kwargs)
