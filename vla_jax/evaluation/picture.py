"""One picture of a run for a README: the same episode under several policies, and their success rates."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib.figure
import numpy as np
from jaxtyping import UInt8

from vla_jax.evaluation.statistics import Interval

_INK, _MUTED, _BAR = "#1f2933", "#66727f", "#0f7085"


@dataclasses.dataclass(frozen=True, eq=False)
class Strip:
    """One policy's row: frames of an episode in order, and its success rate with the interval."""

    title: str
    frames: UInt8[np.ndarray, "n h w 3"]
    rate: float
    interval: Interval
    episodes: int


def draw(strips: Sequence[Strip], caption: str, path: str | Path) -> Path:
    """Write a PNG with one row per strip, all with the same number of frames; returns its path."""
    path, count = Path(path), len(strips[0].frames)
    figure = matplotlib.figure.Figure(figsize=(1.25 * count + 3.2, 1.4 * len(strips) + 0.45), layout="constrained")
    figure.suptitle(caption, fontsize=10, color=_INK, x=0.01, ha="left")
    grid = figure.add_gridspec(len(strips), count + 2, width_ratios=[1.0] * count + [0.05, 2.2])
    for row, strip in enumerate(strips):
        for column, frame in enumerate(strip.frames):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(frame)
            axes.set_axis_off()
        _rate(figure.add_subplot(grid[row, count + 1]), strip)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.incomplete.png")
    figure.savefig(partial, dpi=110)
    os.replace(partial, path)
    return path


def evenly(frames: UInt8[np.ndarray, "time h w 3"], num_frames: int, count: int) -> UInt8[np.ndarray, "n h w 3"]:
    """`count` of the first `num_frames`, from the first to the last."""
    return frames[np.linspace(0, num_frames - 1, count).round().astype(int)]


def _rate(axes, strip: Strip) -> None:
    low, high = strip.interval
    axes.barh([0], [strip.rate], color=_BAR, height=0.3)
    axes.errorbar([strip.rate], [0], xerr=[[strip.rate - low], [high - strip.rate]], color=_INK, capsize=3, lw=1)
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.6, 0.9)
    axes.text(0, 0.38, f"{strip.title}: {strip.rate:.1%}", fontsize=9, color=_INK, weight="bold")
    note = f"[{100 * low:.1f}, {100 * high:.1f}] of {strip.episodes} episodes"
    axes.text(0, -0.45, note, fontsize=7.5, color=_MUTED)
    axes.set_axis_off()
