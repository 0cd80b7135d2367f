"""Pytrees as flat dicts of named leaves, for files and messages."""

from collections.abc import Mapping
from typing import Any

import jax

from vla_jax.core import errors


def flatten(tree: Any) -> dict[str, Any]:
    """Path (`a/b/0`) to leaf; a tree that is one leaf has the path `value`. Raises ConfigError for equal paths."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    leaves = {jax.tree_util.keystr(path, simple=True, separator="/") or "value": leaf for path, leaf in found}
    if len(leaves) != len(found):
        raise errors.ConfigError("two leaves of a tree have the same path", fix='keep "/" out of dict keys')
    return leaves


def unflatten(tree: Any, leaves: Mapping[str, Any]) -> Any:
    """A tree of the structure of `tree` with these leaves, named as `flatten(tree)` names them."""
    return jax.tree.unflatten(jax.tree.structure(tree), [leaves[path] for path in flatten(tree)])


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten` for nested dicts."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree
