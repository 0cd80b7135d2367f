import pytest

from vla_jax.core import errors
from vla_jax.core.registry import Registry


def test_an_error_has_place_expected_found_and_fix():
    error = errors.DataError("episode 3: no key 'image'", expected="uint8 [64, 64, 3]", found=["front"], fix="rename")
    assert str(error).splitlines() == [
        "episode 3: no key 'image'",
        "  expected  uint8 [64, 64, 3]",
        "  found     ['front']",
        "  fix       rename",
    ]


def test_an_unknown_name_is_answered_with_the_closest_one():
    registry = Registry("suite", {"tabletop": 1, "panda": 2})
    assert registry["panda"] == 2
    with pytest.raises(errors.ConfigError, match="did you mean 'tabletop'"):
        registry["tabeltop"]


def test_a_duplicate_name_raises():
    registry = Registry("suite", {"tabletop": 1})
    with pytest.raises(errors.ConfigError, match="registered twice"):
        registry.add("tabletop", 2)
