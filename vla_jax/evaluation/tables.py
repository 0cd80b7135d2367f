"""Benchmark tables: what a paper reports beside what was run here, cell by cell.

A `TableSpec` says which cells exist; the numbers come from `results/<table>/*.json` (see `results.py`) and only from
there. A cell that nobody ran stays empty, and a row that needs an accelerator says so instead.
"""

import dataclasses
import html
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from vla_jax.core import errors
from vla_jax.evaluation import statistics
from vla_jax.evaluation.results import Entry

NOT_RUN_HERE = "paper scale, not run"


@dataclasses.dataclass(frozen=True)
class PaperCell:
    """A published number; `value` is in the unit of its column."""

    column: str
    value: float
    source: str  # where it stands, for example "arXiv 2406.09246, table 9"


@dataclasses.dataclass(frozen=True)
class Column:
    name: str  # what `Entry.cell` refers to
    title: str
    unit: Literal["rate", "plain"] = "rate"  # rates are in [0, 1] and printed as percent


@dataclasses.dataclass(frozen=True)
class Row:
    name: str  # what `Entry.row` refers to
    title: str
    recipe: str | None = None  # the file in recipes/ that makes it
    paper: tuple[PaperCell, ...] = ()
    is_paper_scale: bool = False  # needs an accelerator: an empty cell says it was not run


@dataclasses.dataclass(frozen=True)
class TableSpec:
    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]  # of a complete table
    episodes: int  # per cell and seed of a complete table
    note: str = ""  # protocol, and what a reader must not conclude

    def __post_init__(self):
        for kind, names in (("row", [row.name for row in self.rows]), ("column", [c.name for c in self.columns])):
            if len(set(names)) < len(names):
                raise errors.ConfigError(f"table {self.name}", expected=f"every {kind} once", found=names)
        known = {column.name for column in self.columns}
        for row in self.rows:
            for cell in row.paper:
                if cell.column not in known:
                    raise errors.ConfigError(
                        f"table {self.name}, row {row.name}: no column {cell.column!r}",
                        fix=errors.closest(cell.column, known),
                    )


@dataclasses.dataclass(frozen=True)
class Measured:
    """One cell over all the runs that filled it."""

    mean: float
    interval: statistics.Interval
    episodes: int
    seeds: tuple[int, ...]


def measure(entries: Sequence[Entry]) -> Measured:
    """Join the runs of one cell. One run keeps its own interval; several are seeds, and their spread counts.

    Raises DataError for the same seed twice, or for several runs without a record of their episodes.
    """
    seeds = tuple(seed for entry in entries for seed in entry.seeds)
    place = f"results of {entries[0].table}/{entries[0].row}/{entries[0].cell}"
    if len(set(seeds)) < len(seeds):
        raise errors.DataError(
            f"{place}: a seed was run twice", found=sorted(seeds), fix="delete the results file of the older run"
        )
    episodes = sum(entry.episodes for entry in entries)
    if len(entries) == 1:
        return Measured(entries[0].mean, entries[0].interval, episodes, seeds)
    values = [np.asarray(_episode_values(place, entry), np.float64) for entry in entries]
    mean = float(np.mean([v.mean() for v in values]))
    return Measured(mean, statistics.bootstrap_seeds(values), episodes, tuple(sorted(seeds)))


def to_markdown(spec: TableSpec, entries: Iterable[Entry]) -> str:
    """The table as Markdown, paper cells beside ours, with sources and the protocol below."""
    header, rows, footer = _texts(spec, entries)
    lines = [f"### {spec.title}", "", _line(header), _line("---" for _ in header), *map(_line, rows), ""]
    return "\n".join([*lines, *footer]).rstrip() + "\n"


def to_html(spec: TableSpec, entries: Iterable[Entry]) -> str:
    """The table as an HTML fragment without styles or scripts."""
    header, rows, footer = _texts(spec, entries)
    head = "".join(f"<th>{html.escape(text)}</th>" for text in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>\n" for row in rows)
    notes = "".join(f"<p>{html.escape(line)}</p>" for line in footer if line)
    return (
        f"<section><h2>{html.escape(spec.title)}</h2>\n<table>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}</tbody></table>\n{notes}</section>\n"
    )


def format_cell(measured: Measured, column: Column) -> str:
    """For example `76.2 % [70.6, 81.0], 256 episodes, 1 seed`."""
    mean, low, high = (_number(v, column) for v in (measured.mean, *measured.interval))
    unit = " %" if column.unit == "rate" else ""
    seeds = f"{len(measured.seeds)} seed{'s' if len(measured.seeds) != 1 else ''}"
    return f"{mean}{unit} [{low}, {high}], {measured.episodes} episodes, {seeds}"


def _texts(spec: TableSpec, entries: Iterable[Entry]) -> tuple[list[str], list[list[str]], list[str]]:
    cells = _by_cell(spec, entries)
    has_paper = any(row.paper for row in spec.rows)
    header = [""] + [
        title
        for column in spec.columns
        for title in ((f"{column.title}, paper", f"{column.title}, here") if has_paper else (column.title,))
    ]
    sources: list[str] = []
    rows = []
    for row in spec.rows:
        texts = [row.title]
        for column in spec.columns:
            if has_paper:
                texts.append(_paper_text(row, column, sources))
            filled = cells.get((row.name, column.name))
            texts.append(format_cell(measure(filled), column) if filled else NOT_RUN_HERE * row.is_paper_scale)
        rows.append(texts)
    footer = [
        f"Brackets are 95 % confidence intervals; an empty cell was not run. A complete table has seeds "
        f"{', '.join(map(str, spec.seeds))} with {spec.episodes} episodes each.",
        *([spec.note] if spec.note else []),
        *(f"[{i}] {source}" for i, source in enumerate(sources, 1)),
    ]
    return header, rows, [line for text in footer for line in (text, "")]


def _by_cell(spec: TableSpec, entries: Iterable[Entry]) -> dict[tuple[str, str], list[Entry]]:
    rows, columns = {row.name for row in spec.rows}, {column.name for column in spec.columns}
    cells: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        for kind, name, known in (("row", entry.row, rows), ("cell", entry.cell, columns)):
            if name not in known:
                raise errors.DataError(
                    f"results of table {spec.name}: no {kind} {name!r}", fix=errors.closest(name, known)
                )
        cells.setdefault((entry.row, entry.cell), []).append(entry)
    return cells


def _paper_text(row: Row, column: Column, sources: list[str]) -> str:
    for cell in row.paper:
        if cell.column == column.name:
            if cell.source not in sources:
                sources.append(cell.source)
            unit = " %" if column.unit == "rate" else ""
            return f"{_number(cell.value, column)}{unit} [{sources.index(cell.source) + 1}]"
    return ""


def _episode_values(place: str, entry: Entry) -> Sequence[float]:
    name = "success" if entry.metric == "success_rate" else entry.metric
    if name not in entry.records:
        raise errors.DataError(
            f"{place}: seeds can only be joined from episodes", expected=f"records[{name!r}]", found=list(entry.records)
        )
    return entry.records[name]


def _number(value: float, column: Column) -> str:
    return f"{100 * value:.1f}" if column.unit == "rate" else f"{value:.3g}"


def _line(texts: Iterable[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"
