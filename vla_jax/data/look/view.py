"""A page of episodes for people: pictures, actions and states over time, the words; one file that opens offline."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64, UInt8
from PIL import Image

from vla_jax.core import errors, files, page_style
from vla_jax.data.formats import image_codec
from vla_jax.data.formats.episodes import EpisodeDataset

_PICTURE_HEIGHT, _JPEG_QUALITY = 120, 82
_WIDTH, _HEIGHT, _EDGE = 340, 110, 6  # of a plot, in its own units
_POINTS = 300  # per line
_MOST_DIMS = 32  # an embedding has hundreds and its plots tell nobody anything

_CSS = (
    page_style.CSS
    + """\
.strip { display: flex; gap: 4px; margin: 6px 0 14px; }
.strip figure { margin: 0; }
.strip img, .strip .absent { display: block; height: 120px; border-radius: 3px; background: var(--panel); }
.strip .absent { width: 120px; padding: 44px 12px; color: var(--failed); font-size: 13px; text-align: center; }
.strip figcaption { font-size: 12px; color: var(--muted); font-variant-numeric: tabular-nums; }
h3 { font-size: 14px; font-weight: 550; margin: 12px 0 4px; }
.chart .trend { stroke-width: 1.4; }
"""
)


def write_page(
    dataset: EpisodeDataset,
    path: str | Path,
    episodes: Sequence[int] | None = None,
    *,
    num_pictures: int = 8,
    instruction_name: str = "language_instruction",
) -> Path:
    """Write the page of `episodes` (None: four, spread over the set) and return its path.

    Per camera `num_pictures` frames are shown, evenly spread over the episode; plots show every number of the actions
    and states, up to 32 dims of a feature. Raises ConfigError for an episode that does not exist.
    """
    chosen = np.unique(np.linspace(0, len(dataset) - 1, 4).round().astype(int)) if episodes is None else episodes
    for episode in chosen:
        if not 0 <= episode < len(dataset):
            raise errors.ConfigError(
                f"{dataset.place}: no episode {episode}", expected=f"0 to {len(dataset) - 1}", found=episode
            )
    sections = [_section(dataset, int(episode), num_pictures, instruction_name) for episode in chosen]
    title = html.escape(dataset.place)
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>\n{_CSS}</style></head>\n'
        f"<body><main><header><h1>{title}</h1><p>{len(dataset):,} episodes, {dataset.num_frames:,} frames; "
        f"{len(sections)} of them here. Dotted lines mark the frames of the pictures.</p></header>\n"
        f"{''.join(sections)}</main></body></html>\n"
    )
    path = Path(path)
    files.write_text(path, page)
    return path


def _section(dataset: EpisodeDataset, episode: int, num_pictures: int, instruction_name: str) -> str:
    start, stop = map(int, dataset.episode_starts[episode : episode + 2])
    steps = np.unique(np.linspace(0, stop - start - 1, num_pictures).round().astype(np.int64))
    words = html.escape(_words(dataset, start, episode, instruction_name) or "(no instruction)")
    place = html.escape(dataset.describe_frame(start))
    strips = [_strip(dataset, name, start + steps, steps) for name in dataset.cameras]
    charts = [
        f'<h3>{html.escape(name)}</h3><div class="charts">{_charts(dataset, name, start, stop, steps)}</div>'
        for name, spec in dataset.specs.items()
        if spec.is_step and spec.kind == "tensor" and _is_shown(dataset.columns[name])
    ]
    return (
        f"<section><h2>Episode {episode}: {words}</h2>"
        f'<p class="muted">{stop - start} frames, from {place}</p>{"".join(strips)}{"".join(charts)}</section>\n'
    )


def _words(dataset: EpisodeDataset, start: int, episode: int, name: str) -> str:
    if name not in dataset.specs or dataset.specs[name].kind != "text":
        return ""
    row = start if dataset.specs[name].is_step else episode
    return dataset.texts(name)[int(dataset.text_ids(name)[row])]


def _strip(dataset: EpisodeDataset, name: str, frames: Int64[np.ndarray, "n"], steps: Int64[np.ndarray, "n"]) -> str:
    pictures = np.empty((len(frames), *dataset.image_shape(name)), np.uint8)
    readable = dataset.read_images(frames, name, pictures)
    shown = [
        f"<figure>{_picture(picture, f'{name}, step {step}') if ok else '<div class=absent>damaged</div>'}"
        f"<figcaption>{step}</figcaption></figure>"
        for picture, ok, step in zip(pictures, readable, steps, strict=True)
    ]
    return f'<h3>{html.escape(name)}</h3><div class="strip">{"".join(shown)}</div>'


def _picture(picture: UInt8[np.ndarray, "h w 3"], title: str) -> str:
    image = Image.fromarray(picture)
    size = (max(1, round(image.width * _PICTURE_HEIGHT / image.height)), _PICTURE_HEIGHT)
    if image.height > _PICTURE_HEIGHT:
        image = image.resize(size)
    data = base64.b64encode(image_codec.encode_jpeg(np.asarray(image), _JPEG_QUALITY)).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="{html.escape(title)}">'


def _is_shown(column: np.ndarray) -> bool:
    return column.dtype != bool and int(np.prod(column.shape[1:])) <= _MOST_DIMS


def _charts(dataset: EpisodeDataset, name: str, start: int, stop: int, steps: Int64[np.ndarray, "n"]) -> str:
    values = np.asarray(dataset.columns[name][start:stop], np.float64).reshape(stop - start, -1)
    return "".join(_chart(f"dim {dim}", values[:, dim], steps) for dim in range(values.shape[1]))


def _chart(title: str, values: Float[np.ndarray, "t"], marks: Int64[np.ndarray, "n"]) -> str:
    """A line with its range beside it; numbers that are not finite are gaps."""
    finite = np.isfinite(values)
    if not finite.any():
        caption = f'{title} <span class="muted">no finite value</span>'
        return f'<figure class="chart"><figcaption>{caption}</figcaption></figure>'
    low, high = values[finite].min(), values[finite].max()
    span = high - low if high > low else 1.0
    last = max(len(values) - 1, 1)

    def x_of(step: float) -> float:
        return _EDGE + step / last * (_WIDTH - 2 * _EDGE)

    kept = np.unique(np.linspace(0, len(values) - 1, min(len(values), _POINTS)).round().astype(int))
    path, is_down = "", False
    for step in kept:
        if finite[step]:
            y = _HEIGHT - _EDGE - (values[step] - low) / span * (_HEIGHT - 2 * _EDGE)
            path += f"{'L' if is_down else 'M'}{x_of(step):.1f},{y:.1f}"
        is_down = bool(finite[step])
    lines = "".join(
        f'<line class="grid" stroke-dasharray="2 3" x1="{x_of(s):.1f}" x2="{x_of(s):.1f}" y1="0" y2="{_HEIGHT}"/>'
        for s in marks
    )
    return (
        f'<figure class="chart"><figcaption>{title} <span class="muted">{low:.3g} to {high:.3g}</span></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title}, {low:.3g} to {high:.3g}">'
        f'{lines}<path class="trend" d="{path}"/></svg></figure>'
    )
