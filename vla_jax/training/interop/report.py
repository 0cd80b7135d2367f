"""What an import found, exactly: every tensor of theirs and every parameter of ours is in one row."""

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import rich.table

from vla_jax.core import errors
from vla_jax.training.interop.rules import Layout, Rule
from vla_jax.training.interop.sources import TensorInfo

Status = Literal["matched", "missing", "mismatched", "unexpected", "unused", "fresh"]
MEANING: dict[Status, str] = {
    "matched": "read into our parameters",
    "missing": "a parameter of ours that the checkpoint has no tensor for",
    "mismatched": "the tensor is there, with another shape",
    "unexpected": "a tensor of theirs that no rule knows",
    "unused": "a tensor of theirs that our network needs no place for",
    "fresh": "a parameter of ours that this layout never has: it starts anew",
}
_MAX_ERROR_ROWS = 30


@dataclasses.dataclass(frozen=True)
class Row:
    status: Status
    ours: str  # empty where there is no such parameter; several are joined by " + "
    theirs: str  # empty where there is no such tensor; per-layer tensors count as one row
    detail: str  # shapes, or the reason


@dataclasses.dataclass(frozen=True)
class Report:
    """Made from names and shapes alone, before a single number is read."""

    layout: str
    source: str
    rows: tuple[Row, ...]

    def of(self, *statuses: Status) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.status in statuses)

    def counts(self) -> dict[Status, int]:
        return {status: len(self.of(status)) for status in MEANING}

    def require(self, allow: Sequence[str] = ()) -> None:
        """Raise CheckpointError with every row that is missing, mismatched or unexpected.

        `allow` are shell patterns over our paths and their names: a missing or mismatched parameter that one of them
        names starts anew, an unexpected tensor is left out.
        """
        wrong = [row for row in self.of("missing", "mismatched", "unexpected") if not _is_allowed(row, allow)]
        if not wrong:
            return
        lines = [f"  {row.status:<10}  {row.theirs or '-'}  ->  {row.ours or '-'}  {row.detail}" for row in wrong]
        more = [f"  ... and {len(wrong) - _MAX_ERROR_ROWS} more"] if len(wrong) > _MAX_ERROR_ROWS else []
        counts = self.counts()
        raise errors.CheckpointError(
            "\n".join([f"{self.source}: does not fit layout {self.layout}", *lines[:_MAX_ERROR_ROWS], *more]),
            expected="every parameter of the policy from one tensor of the checkpoint",
            found=", ".join(f"{counts[status]} {status}" for status in MEANING if counts[status]),
            fix="take the layout and the recipe that the checkpoint was made for, or allow rows by name patterns",
        )


def make_report(layout: Layout, ours: Mapping[str, Any], theirs: Mapping[str, TensorInfo], source: str) -> Report:
    """Compare names and shapes. `ours` maps paths to arrays or abstract arrays, `theirs` canonical names to shapes."""
    rows, known = [], set()
    for rule in layout.rules:
        known |= set(rule.names)
        absent_ours = [path for path in rule.ours if path not in ours]
        if absent_ours:
            raise errors.ConfigError(
                f"layout {layout.name}: no parameter {absent_ours[0]!r}",
                expected="a layout made for this policy's configuration",
                found=errors.closest(absent_ours[0], ours),
            )
        joined = " + ".join(rule.ours)
        absent = [name for name in rule.names if name not in theirs]
        if absent:
            number = f"{len(absent)} of {len(rule.names)} layers, the first {absent[0]}" if rule.depth else ""
            rows.append(Row("missing", joined, rule.theirs, number))
            continue
        wanted = rule.their_shape(tuple(ours[rule.ours[0]].shape))
        others = sorted({theirs[name].shape for name in rule.names} - {wanted})
        if others and _goes_on(rule, others[0], ours[rule.ours[0]].shape, wanted):
            detail = f"{list(others[0])}, padding along {rule.longer} left out"
            rows.append(Row("matched", joined, rule.theirs, detail))
        elif others:
            rows.append(Row("mismatched", joined, rule.theirs, f"wants {list(wanted)}, found {list(others[0])}"))
        else:
            dtype = " ".join(sorted({str(theirs[name].dtype) for name in rule.names}))
            rows.append(Row("matched", joined, rule.theirs, f"{dtype}{list(wanted)}"))
    filled = {path for rule in layout.rules for path in rule.ours}
    for path in sorted(set(ours) - filled):
        is_fresh = any(fnmatch.fnmatchcase(path, pattern) for pattern in layout.fresh)
        rows.append(Row("fresh" if is_fresh else "missing", path, "", f"{list(ours[path].shape)}"))
    for name in sorted(set(theirs) - known):
        why = layout.why_unused(name)
        shape = f"{theirs[name].dtype}{list(theirs[name].shape)}"
        rows.append(Row("unexpected", "", name, shape) if why is None else Row("unused", "", name, why))
    return Report(layout.name, source, tuple(rows))


def to_table(report: Report, *, everything: bool = False) -> rich.table.Table:
    """Every row that is not matched, or with `everything` those too; the counts stand in the title."""
    counts = ", ".join(f"{number} {status}" for status, number in report.counts().items() if number)
    table = rich.table.Table(title=f"{report.source} as {report.layout}: {counts}", title_justify="left")
    for column in ("status", "theirs", "ours", ""):
        table.add_column(column, overflow="fold")
    for row in report.rows:
        if everything or row.status != "matched":
            table.add_row(row.status, row.theirs or "-", row.ours or "-", row.detail)
    return table


def restarted(report: Report) -> list[str]:
    """Paths of ours that no tensor fills."""
    return [path for row in report.of("missing", "mismatched", "fresh") for path in row.ours.split(" + ")]


def _goes_on(rule: Rule, found: Sequence[int], our_shape: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether a tensor of another shape than `wanted` only has more entries along the rule's longer axis."""
    if not rule.longer or len(found) != len(wanted):
        return False
    axis = rule.longer_axis
    own = dataclasses.replace(rule, padded_to=0).their_shape(tuple(our_shape))
    others = [(a, b) for i, (a, b) in enumerate(zip(found, own, strict=True)) if i != axis]
    return found[axis] >= own[axis] and all(a == b for a, b in others)


def _is_allowed(row: Row, allow: Iterable[str]) -> bool:
    names = [*row.ours.split(" + "), row.theirs]
    return any(fnmatch.fnmatchcase(name, pattern) for name in names if name for pattern in allow)
