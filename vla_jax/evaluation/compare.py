"""Is run b better than run a? Pairs of episodes that started from the same initial state answer it.

vla-jax compare results/demo/base.json results/demo/tuned.json
vla-jax compare results/demo/run.json:imitation results/demo/run.json:fine_tuned
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vla_jax.core import errors
from vla_jax.evaluation import results, statistics
from vla_jax.evaluation.results import Entry


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What one cell of two runs says; `success` and `returns` are b minus a over the shared initial states."""

    cell: str
    row_a: str
    row_b: str
    success: statistics.PairedComparison
    returns: statistics.PairedComparison | None  # None when a run has no record of them
    unpaired: int  # episodes of either run whose initial state the other did not see


def compare(run_a: str | Path, run_b: str | Path, *, confidence: float = 0.95) -> tuple[Comparison, ...]:
    """Compare two results files, cell by cell, over the episodes with equal initial states.

    A file with several rows needs the row after a colon. Raises DataError when nothing can be paired.
    """
    cells_a, cells_b = _cells(run_a), _cells(run_b)
    shared = sorted(set(cells_a) & set(cells_b))
    if not shared:
        raise errors.DataError(f"{run_a} and {run_b} share no cell", found=f"{sorted(cells_a)} and {sorted(cells_b)}")
    return tuple(_compare_cell(cell, cells_a[cell], cells_b[cell], confidence) for cell in shared)


def to_text(comparisons: tuple[Comparison, ...], confidence: float = 0.95, power: float = 0.8) -> str:
    """The comparisons as a few lines for the terminal."""
    lines = []
    for found in comparisons:
        success = found.success
        lines += [
            f"{found.cell}: b = {found.row_b} against a = {found.row_a}",
            f"  pairs        {success.pairs} initial states that both ran"
            + (f" ({found.unpaired} episodes without a partner left out)" if found.unpaired else ""),
            f"  success      a {success.mean_a:.1%}, b {success.mean_b:.1%}",
            f"  difference   {100 * success.difference:+.1f} points, {confidence:.0%} interval "
            f"[{100 * success.interval.low:+.1f}, {100 * success.interval.high:+.1f}]",
            f"  test         {success.test}: p = {success.p_value:.3g}",
            f"  needed       {_needed(success, confidence, power)}",
        ]
        if found.returns is not None:
            returns = found.returns
            low, high = returns.interval
            lines.append(
                f"  returns      {returns.difference:+.3g} [{low:+.3g}, {high:+.3g}], "
                f"{returns.test}: p = {returns.p_value:.3g}"
            )
    return "\n".join(lines) + "\n"


def _needed(found: statistics.PairedComparison, confidence: float, power: float) -> str:
    if found.needed_pairs is None:
        return "no difference was seen, so no number of episodes can be named"
    return (
        f"about {found.needed_pairs} pairs to find a difference of this size with {power:.0%} power "
        f"at the {1 - confidence:.0%} level"
    )


def _cells(run: str | Path) -> dict[str, list[Entry]]:
    path, row = _split(run)
    entries = results.load(path)
    rows = sorted({entry.row for entry in entries})
    if row is None and len(rows) != 1:
        raise errors.ConfigError(f"{path} has {len(rows)} rows", expected="one, named as FILE:ROW", found=rows)
    if row is not None and row not in rows:
        raise errors.ConfigError(f"{path} has no row {row!r}", fix=errors.closest(row, rows))
    cells: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.row == (row or rows[0]):
            cells.setdefault(entry.cell, []).append(entry)
    return cells


def _split(run: str | Path) -> tuple[Path, str | None]:
    path, colon, row = str(run).rpartition(":")
    return (Path(path), row) if colon and path.endswith(".json") else (Path(run), None)


def _compare_cell(cell: str, entries_a: list[Entry], entries_b: list[Entry], confidence: float) -> Comparison:
    # with several training seeds the same initial state is one trial per seed; single runs may be of other seeds
    has_seeds = len(entries_a) > 1 or len(entries_b) > 1
    episodes_a, episodes_b = _by_initial_state(entries_a, has_seeds), _by_initial_state(entries_b, has_seeds)
    shared = sorted(set(episodes_a) & set(episodes_b))
    if not shared:
        raise errors.DataError(
            f"cell {cell}: no initial state was run by both",
            found=f"{len(episodes_a)} and {len(episodes_b)} other ones",
            fix="evaluate both with the same evaluation seed",
        )

    def column(episodes: Mapping[Any, Mapping[str, Any]], name: str) -> np.ndarray:
        return np.array([episodes[state][name] for state in shared])

    has_returns = all("returns" in entry.records for entry in (*entries_a, *entries_b))
    return Comparison(
        cell=cell,
        row_a=entries_a[0].row,
        row_b=entries_b[0].row,
        success=statistics.compare_success(column(episodes_a, "success"), column(episodes_b, "success"), confidence),
        returns=statistics.compare_means(column(episodes_a, "returns"), column(episodes_b, "returns"), confidence)
        if has_returns
        else None,
        unpaired=len(episodes_a) + len(episodes_b) - 2 * len(shared),
    )


def _by_initial_state(entries: list[Entry], has_seeds: bool) -> dict[Any, dict[str, Any]]:
    """Per-episode records by initial state, with the training seeds in front where `has_seeds`."""
    episodes = {}
    for entry in entries:
        place = f"result {entry.table}/{entry.row}/{entry.cell}"
        missing = {"success", "initial_state"} - set(entry.records)
        if missing:
            raise errors.DataError(f"{place} cannot be paired", expected="records of every episode", found=missing)
        for i, state in enumerate(entry.records["initial_state"]):
            record = {name: values[i] for name, values in entry.records.items()}
            if episodes.setdefault((entry.seeds, state) if has_seeds else state, record) is not record:
                raise errors.DataError(f"{place}: an initial state was run twice", found=state)
    return episodes
