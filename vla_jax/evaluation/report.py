"""One page for one run: success with intervals, curves, films and the manifest in a single file that opens offline."""

import dataclasses
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from vla_jax.core import errors, files
from vla_jax.evaluation import charts, statistics
from vla_jax.evaluation.charts import Curve
from vla_jax.evaluation.report_style import CSS
from vla_jax.evaluation.rollouts import Episodes, Recording
from vla_jax.evaluation.video import Clip, clips


@dataclasses.dataclass(frozen=True)
class Film:
    """One episode as it will be shown."""

    clip: Clip
    caption: str
    success: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """One step of a run: a training, an evaluation, or both. What it did not have stays None or empty."""

    name: str
    description: str = ""
    success: Bool[np.ndarray, "n"] | None = None  # per evaluated episode
    returns: Float[np.ndarray, "n"] | None = None
    instruction: Int[np.ndarray, "n"] | None = None  # index into Report.instructions
    initial_key: Int[np.ndarray, "n 2"] | None = None  # equal between stages: they are compared pair by pair
    seconds: float | None = None  # wall clock
    steps_per_second: float | None = None
    step_name: str = "updates"  # what is counted per second
    curves: tuple[Curve, ...] = ()
    films: tuple[Film, ...] = ()

    def with_episodes(self, episodes: Episodes) -> "Stage":
        """The same stage with the outcome of an evaluation."""
        return dataclasses.replace(
            self,
            success=np.asarray(episodes.success),
            returns=np.asarray(episodes.returns),
            instruction=np.asarray(episodes.instruction),
            initial_key=np.asarray(episodes.initial_key),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    title: str
    summary: str  # a paragraph of plain text
    stages: tuple[Stage, ...]  # in the order in which they ran
    instructions: tuple[str, ...] = ()
    comparisons: tuple[tuple[str, str], ...] = ()  # pairs of stage names (a, b) with the same initial states
    manifest: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise errors.ConfigError("report", expected="every stage once", found=names)
        for name in (name for pair in self.comparisons for name in pair):
            if name not in names:
                raise errors.ConfigError(f"report: no stage {name!r} to compare", fix=errors.closest(name, names))


def films(recording: Recording, instructions: Sequence[str], frames_per_second: float) -> tuple[Film, ...]:
    """The clips of a recording with the instruction that the policy was told as caption."""
    episodes = recording.episodes
    return tuple(
        Film(clip, instructions[int(shown)], bool(success))
        for clip, shown, success in zip(
            clips(recording, frames_per_second), episodes.shown_instruction, episodes.success, strict=True
        )
    )


def write_report(run_dir: Path, report: Report) -> Path:
    """Write `run_dir/report.html`, replacing an older one only when the new one is complete, and return its path."""
    path = Path(run_dir) / "report.html"
    files.write_text(path, to_html(report))
    return path


def to_html(report: Report) -> str:
    """The whole page; it refers to nothing outside itself."""
    parts = [
        f"<header><h1>{html.escape(report.title)}</h1>{_paragraph(report.summary)}</header>",
        _summary_table(report.stages),
        *[_comparison(report, a, b) for a, b in report.comparisons],
        _per_instruction(report),
        *[_films(stage) for stage in report.stages if stage.films],
        *[_curves(stage) for stage in report.stages if stage.curves],
        _manifest(report.manifest) if report.manifest else "",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(report.title)}</title>\n<style>\n{CSS}</style></head>\n"
        f"<body><main>\n{chr(10).join(part for part in parts if part)}\n</main></body></html>\n"
    )


def _summary_table(stages: Sequence[Stage]) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(stage.name)}{_small(stage.description)}</th>"
        f"<td>{_rate_cell(stage.success)}</td>"
        f"<td class='number'>{'' if stage.success is None else stage.success.size}</td>"
        f"<td class='number'>{_mean_return(stage)}</td>"
        f"<td class='number'>{'' if stage.seconds is None else _duration(stage.seconds)}</td>"
        f"<td class='number'>{_speed(stage)}</td></tr>\n"
        for stage in stages
    )
    head = "".join(
        f"<th{css}>{text}</th>"
        for text, css in (
            ("Stage", ""),
            ("Success rate, 95 % interval", ""),
            ("Episodes", " class='number'"),
            ("Mean return", " class='number'"),
            ("Time", " class='number'"),
            ("Speed", " class='number'"),
        )
    )
    return f"<section><table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></section>"


def _comparison(report: Report, name_a: str, name_b: str) -> str:
    by_name = {stage.name: stage for stage in report.stages}
    a, b = by_name[name_a], by_name[name_b]
    if a.initial_key is None or b.initial_key is None or not np.array_equal(a.initial_key, b.initial_key):
        raise errors.DataError(
            f"report: {name_a} and {name_b} cannot be compared",
            expected="episodes from the same initial states, in the same order",
            fix="evaluate both stages with the same key and number of episodes",
        )
    found = statistics.compare_success(a.success, b.success)
    low, high = (f"{100 * end:+.1f}" for end in found.interval)
    p_value = "p &lt; 0.0001" if found.p_value < 1e-4 else f"p = {found.p_value:.2g}"
    return (
        f"<p class='finding'><b>{html.escape(name_b)}</b> against <b>{html.escape(name_a)}</b>, from the same "
        f"{found.pairs} initial states: <b>{100 * found.difference:+.1f} points</b> [{low}, {high}], "
        f"{found.test} test {p_value}.</p>"
    )


def _per_instruction(report: Report) -> str:
    stages = [stage for stage in report.stages if stage.success is not None and stage.instruction is not None]
    if not stages or not report.instructions:
        return ""
    head = "".join(f"<th>{html.escape(stage.name)}</th>" for stage in stages)
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(instruction)}</th>"
        + "".join(f"<td>{_rate_cell(s.success[s.instruction == i], with_count=True)}</td>" for s in stages)
        + "</tr>\n"
        for i, instruction in enumerate(report.instructions)
    )
    return (
        f"<section><h2>By instruction</h2><table><thead><tr><th>Instruction</th>{head}</tr></thead>"
        f"<tbody>\n{rows}</tbody></table></section>"
    )


def _films(stage: Stage) -> str:
    shown = "".join(
        f"<figure class='film {'solved' if film.success else 'failed'}'>{_player(film)}"
        f"<figcaption><span class='outcome'>{'solved' if film.success else 'failed'}</span> "
        f"{html.escape(film.caption)}</figcaption></figure>\n"
        for film in stage.films
    )
    return f"<section><h2>Episodes: {html.escape(stage.name)}</h2><div class='films'>\n{shown}</div></section>"


def _player(film: Film) -> str:
    clip, label = film.clip, html.escape(film.caption, quote=True)
    size = f'width="{clip.width}" height="{clip.height}"'
    if clip.media_type.startswith("video/"):
        return (
            f'<video {size} aria-label="{label}" autoplay loop muted playsinline controls>'
            f'<source src="{clip.data_uri}" type="{clip.media_type}"></video>'
        )
    return f'<img {size} alt="{label}" src="{clip.data_uri}">'


def _curves(stage: Stage) -> str:
    drawn = "\n".join(charts.line_chart(curve) for curve in stage.curves)
    return f"<section><h2>Training: {html.escape(stage.name)}</h2><div class='charts'>\n{drawn}</div></section>"


def _manifest(manifest: Mapping[str, Any]) -> str:
    text = html.escape(json.dumps(manifest, indent=2, default=str), quote=False)
    return f"<section><details><summary>Manifest: what a rerun needs</summary><pre>{text}</pre></details></section>"


def _rate_cell(success: Bool[np.ndarray, "n"] | None, with_count: bool = False) -> str:
    if success is None or success.size == 0:
        return ""
    interval = statistics.wilson(int(success.sum()), success.size)
    rate = float(success.mean())
    count = f", {int(success.sum())} of {success.size}" if with_count else ""
    return (
        f"<span class='value'>{100 * rate:.1f} %</span> "
        f"<span class='muted'>[{100 * interval.low:.1f}, {100 * interval.high:.1f}]{count}</span>"
        f"{charts.rate_bar(rate, interval)}"
    )


def _mean_return(stage: Stage) -> str:
    return "" if stage.returns is None or stage.returns.size == 0 else f"{float(stage.returns.mean()):.3g}"


def _speed(stage: Stage) -> str:
    if stage.steps_per_second is None:
        return ""
    return f"{charts.short_number(stage.steps_per_second)} {html.escape(stage.step_name)}/s"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>" if text else ""


def _small(text: str) -> str:
    return f"<span class='description'>{html.escape(text)}</span>" if text else ""
