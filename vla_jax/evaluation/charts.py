"""Line charts and interval bars as inline SVG: no fonts, scripts or files of their own, colours from the page's CSS."""

import dataclasses
import html
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from vla_jax.core import errors
from vla_jax.evaluation.statistics import Interval

_WIDTH, _HEIGHT = 340, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 36
_POINTS = 400  # per line; a chart is 278 pixels wide


@dataclasses.dataclass(frozen=True)
class Curve:
    """One quantity over training."""

    title: str
    steps: Sequence[float]
    values: Sequence[float]
    step_name: str = "updates"

    def __post_init__(self):
        if len(self.steps) != len(self.values):
            raise errors.DataError(
                f"curve {self.title!r}", expected=f"{len(self.steps)} values, one per step", found=len(self.values)
            )


def read_curves(path: Path, names: Sequence[str] | None = None) -> tuple[Curve, ...]:
    """Curves of a `metrics.jsonl`: one JSON object per line, `step` and scalars by name.

    Without `names` every scalar that has at least two points becomes a curve, sorted by name. Raises DataError when the
    file, a line or a name is missing or broken.
    """
    if not path.is_file():
        raise errors.DataError(f"no metrics file {path}", fix="pass the run folder of a finished or running training")
    steps: dict[str, list[float]] = {}
    values: dict[str, list[float]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        row = _parsed(path, number, line)
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                steps.setdefault(name, []).append(row["step"])
                values.setdefault(name, []).append(value)
    wanted = sorted(name for name in values if len(values[name]) > 1) if names is None else names
    for name in wanted:
        if name not in values:
            raise errors.DataError(f"{path}: no metric {name!r}", fix=errors.closest(name, values))
    return tuple(Curve(name, tuple(steps[name]), tuple(values[name])) for name in wanted)


def line_chart(curve: Curve) -> str:
    """One curve with its running mean in front, so that noise does not hide the trend. Non-finite points are gaps."""
    steps, values = np.asarray(curve.steps, np.float64), np.asarray(curve.values, np.float64)
    finite = np.isfinite(values)
    title = html.escape(curve.title)
    if not finite.any():
        return f'<figure class="chart"><figcaption>{title}</figcaption><p class="muted">no finite value</p></figure>'
    x_ticks, y_ticks = nice_ticks(steps.min(), steps.max()), nice_ticks(values[finite].min(), values[finite].max())
    x_range, y_range = (steps.min(), max(steps.max(), steps.min() + 1e-9)), (y_ticks[0], y_ticks[-1])

    def x_of(step: float) -> float:
        return _LEFT + (step - x_range[0]) / (x_range[1] - x_range[0]) * (_WIDTH - _LEFT - _RIGHT)

    def y_of(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - y_range[0]) / (y_range[1] - y_range[0]) * (_HEIGHT - _TOP - _BOTTOM)

    def path_of(line: Float[np.ndarray, "n"]) -> str:
        kept = np.unique(np.linspace(0, len(line) - 1, min(len(line), _POINTS)).round().astype(int))
        points = [(x_of(steps[i]), y_of(line[i])) for i in kept if np.isfinite(line[i])]
        return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)

    parts = [
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y_of(t):.1f}" y2="{y_of(t):.1f}"/>'
        f'<text x="{_LEFT - 6}" y="{y_of(t) + 3.5:.1f}" text-anchor="end">{short_number(t)}</text>'
        for t in y_ticks
    ]
    parts += [
        f'<text x="{x_of(t):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{short_number(t)}</text>'
        for t in x_ticks
        if x_range[0] <= t <= x_range[1]
    ]
    smooth = running_mean(values, len(values) // 30)  # a short curve stays as it is
    parts.append(f'<path class="raw" d="{path_of(values)}"/><path class="trend" d="{path_of(smooth)}"/>')
    last = short_number(float(values[finite][-1]))
    return (
        f'<figure class="chart"><figcaption>{title} <span class="muted">last {last}</span></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title}, last value {last}">{"".join(parts)}'
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 5}" text-anchor="end">{html.escape(curve.step_name)}</text>'
        f"</svg></figure>"
    )


def rate_bar(rate: float, interval: Interval) -> str:
    """A rate in [0, 1] as a dot on a track, with its interval as a bar."""
    low, high = 100 * interval.low, 100 * interval.high
    return (
        f'<svg class="rate" viewBox="-2 0 104 12" preserveAspectRatio="none" role="img" '
        f'aria-label="{100 * rate:.1f} percent, interval {low:.1f} to {high:.1f}">'
        f'<line class="grid" x1="0" x2="100" y1="6" y2="6"/>'
        f'<rect class="interval" x="{low:.1f}" y="3" width="{max(high - low, 0.5):.1f}" height="6" rx="1.5"/>'
        f'<rect class="dot" x="{100 * rate - 0.7:.1f}" y="1" width="1.4" height="10" rx="0.7"/></svg>'
    )


def nice_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten that enclose [low, high], `about` intervals of them."""
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-6):
        margin = abs(low) / 2 or 0.5
        low, high = low - margin, high + margin
    power = 10.0 ** math.floor(math.log10((high - low) / about))
    width = next(w * power for w in (1, 2, 5, 10) if (high - low) / (w * power) <= about)
    first, last = math.floor(low / width + 1e-9), math.ceil(high / width - 1e-9)
    return [i * width for i in range(first, last + 1)]


def running_mean(values: Float[np.ndarray, "n"], radius: int) -> Float[np.ndarray, "n"]:
    """Mean over the finite values at most `radius` places away; non-finite where there are none."""
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    first = np.maximum(np.arange(len(values)) - radius, 0)
    last = np.minimum(np.arange(len(values)) + radius + 1, len(values))
    counted = counts[last] - counts[first]
    means = (sums[last] - sums[first]) / np.maximum(counted, 1)
    return np.where(counted > 0, means, np.nan)


def short_number(value: float) -> str:
    """Few characters: 12000 is 12k, 0.00031 is 3.1e-4."""
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.3g}"
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size <= abs(value) < 1000 * size:
            return f"{value / size:.3g}{suffix}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def _parsed(path: Path, number: int, line: str) -> dict:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise errors.DataError(f"{path}, line {number}: not JSON", found=line[:80]) from error
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise errors.DataError(f"{path}, line {number}", expected='{"step": int, ...}', found=line[:80])
    return row
