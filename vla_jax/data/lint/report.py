"""Findings and facts, and how they are printed."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

from rich.console import Group
from rich.markup import escape
from rich.table import Table

Severity = Literal["error", "warning"]
_COLOURS = {"error": "bold red", "warning": "yellow"}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that will cost training time, with the numbers that say so."""

    check: str  # a short name, the same for every set: "black camera"
    severity: Severity  # an error makes training wrong or impossible, a warning makes it worse
    reason: str
    fix: str


@dataclasses.dataclass
class Notes:
    """What a check writes down."""

    findings: list[Finding] = dataclasses.field(default_factory=list)
    facts: dict[str, str] = dataclasses.field(default_factory=dict)

    def error(self, check: str, reason: str, fix: str) -> None:
        self.findings.append(Finding(check, "error", reason, fix))

    def warning(self, check: str, reason: str, fix: str) -> None:
        self.findings.append(Finding(check, "warning", reason, fix))

    def fact(self, name: str, text: str) -> None:
        self.facts[name] = text


@dataclasses.dataclass(frozen=True)
class Report:
    """All findings, errors first, and what was measured on the way."""

    place: str
    findings: tuple[Finding, ...]
    facts: dict[str, str]

    @property
    def has_errors(self) -> bool:
        return any(finding.severity == "error" for finding in self.findings)

    def __rich__(self) -> Group:
        return Group(*_parts(self))


def _parts(report: Report) -> Iterator[str | Table]:
    facts = Table("measured", "", title=escape(report.place), title_justify="left", show_header=False)
    for name, text in report.facts.items():
        facts.add_row(name, escape(text))
    yield facts
    if not report.findings:
        yield "nothing found that should keep you from training"
        return
    findings = Table("", "check", "reason and fix", title="findings", title_justify="left", show_lines=True)
    for finding in report.findings:
        colour = _COLOURS[finding.severity]
        text = f"{escape(finding.reason)}\n[dim]fix[/dim] {escape(finding.fix)}"
        findings.add_row(f"[{colour}]{finding.severity}[/{colour}]", escape(finding.check), text)
    yield findings
    errors = sum(finding.severity == "error" for finding in report.findings)
    yield f"{errors} errors, {len(report.findings) - errors} warnings"
