"""Numeric reports: how far two parameter trees, or two sets of outputs, are apart."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import rich.table

from vla_jax.core import errors
from vla_jax.training.checkpoints import flatten


class Difference(NamedTuple):
    """Of one tensor or output."""

    name: str
    shape: tuple[int, ...]
    absolute: float  # the largest distance of two numbers
    relative: float  # that, over the largest magnitude of the reference

    @classmethod
    def worst(cls, differences: Iterable["Difference"]) -> "Difference":
        return max(differences, key=lambda each: each.relative)


def compare(ours: Mapping[str, Any], reference: Mapping[str, Any]) -> list[Difference]:
    """One `Difference` per leaf of two trees with the same paths.

    Raises CheckpointError where paths or shapes differ.
    """
    ours, reference = flatten(ours), flatten(reference)
    if set(ours) != set(reference):
        raise errors.CheckpointError(
            "trees to compare have other leaves",
            expected=f"only in the reference: {sorted(set(reference) - set(ours))[:5]}",
            found=f"only in ours: {sorted(set(ours) - set(reference))[:5]}",
        )
    return [difference(path, ours[path], reference[path]) for path in sorted(reference)]


def difference(name: str, ours: Any, reference: Any) -> Difference:
    """Between two arrays of one shape, in float64; nan anywhere gives nan."""
    ours, reference = np.asarray(ours), np.asarray(reference)
    if ours.shape != reference.shape:
        raise errors.CheckpointError(f"{name}: shapes differ", expected=list(reference.shape), found=list(ours.shape))
    if not reference.size:
        return Difference(name, reference.shape, 0.0, 0.0)
    ours, reference = ours.astype(np.float64), reference.astype(np.float64)
    absolute, scale = float(np.abs(ours - reference).max()), float(np.abs(reference).max())
    return Difference(name, reference.shape, absolute, absolute / scale if scale else (np.inf if absolute else 0.0))


def to_table(differences: Iterable[Difference], *, title: str, most: int = 20) -> rich.table.Table:
    """The worst ones first."""
    rows = sorted(differences, key=lambda each: -each.relative)
    table = rich.table.Table(title=f"{title}: {len(rows)} compared, worst first", title_justify="left")
    for column, justify in (("name", "left"), ("shape", "left"), ("largest relative", "right"), ("absolute", "right")):
        table.add_column(column, justify=justify, overflow="fold")
    for row in rows[:most]:
        table.add_row(row.name, str(list(row.shape)), f"{row.relative:.2e}", f"{row.absolute:.2e}")
    return table
