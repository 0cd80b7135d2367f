import numpy as np
import pytest

from vla_jax.core import errors, trees


def test_a_tree_is_its_named_leaves():
    tree = {"a": {"b": 1, "c": (2, 3)}, "d": 4}
    leaves = trees.flatten(tree)
    assert leaves == {"a/b": 1, "a/c/0": 2, "a/c/1": 3, "d": 4}
    assert trees.unflatten(tree, {path: 10 * leaf for path, leaf in leaves.items()}) == {
        "a": {"b": 10, "c": (20, 30)},
        "d": 40,
    }
    assert trees.nest({"a/b": 1, "d": 4}) == {"a": {"b": 1}, "d": 4}


def test_one_leaf_alone_has_a_name_too():
    assert list(trees.flatten(np.zeros(2))) == ["value"]


def test_equal_paths_are_refused():
    with pytest.raises(errors.ConfigError, match="same path"):
        trees.flatten({"a/b": 1, "a": {"b": 2}})
