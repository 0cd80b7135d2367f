"""The control frequency: measured from timestamps, else declared, else unknown."""

import numpy as np

from vla_jax.data.formats.episodes import EpisodeDataset
from vla_jax.data.lint.report import Notes
from vla_jax.data.lint.sample import Sample
from vla_jax.data.lint.settings import LintConfig

_DIFFERENT = 0.1  # relative
_UNEVEN = 0.5  # a step is odd when it is longer or shorter than the median by this share
_ODD_SHARE = 0.05
_PLAUSIBLE_HZ = (0.5, 2000.0)


def check(dataset: EpisodeDataset, sample: Sample, config: LintConfig, notes: Notes) -> None:
    """Looks for a scalar of every step whose name ends in "timestamp", in seconds."""
    declared = config.declared.control_hz
    name = _timestamp(dataset)
    rows = sample.steps(1)
    if name is None or len(rows) == 0:
        notes.fact("control frequency", "unknown" if declared is None else f"{declared:g} Hz, as declared")
        return
    stamps = np.asarray(dataset.columns[name][sample.frames], np.float64).reshape(-1)
    steps = stamps[rows + 1] - stamps[rows]
    median = float(np.median(steps))
    backward = int((steps <= 0).sum())
    if backward or median <= 0:
        notes.error(
            "timestamps",
            f'"{name}" does not grow at {backward:,} of {len(steps):,} steps; the first is '
            f"{dataset.describe_frame(int(sample.frames[rows[(steps <= 0).argmax()]]))}",
            "sort the frames of those episodes, or correct the clock",
        )
        return
    hz = 1 / median
    notes.fact("control frequency", f'{hz:.3g} Hz, from "{name}"')
    if not _PLAUSIBLE_HZ[0] <= hz <= _PLAUSIBLE_HZ[1]:
        notes.warning(
            "timestamp unit",
            f'"{name}" advances by {median:.4g} per step, which would be {hz:.3g} Hz',
            "store seconds",
        )
    elif declared is not None and abs(hz / declared - 1) > _DIFFERENT:
        notes.error(
            "control frequency",
            f"{declared:g} Hz are declared, the timestamps say {hz:.3g} Hz",
            "correct the declaration, or resample; a policy run at another frequency moves too fast or too slowly",
        )
    odd = float((np.abs(steps / median - 1) > _UNEVEN).mean())
    if odd > _ODD_SHARE:
        notes.warning(
            "uneven steps",
            f"{odd:.0%} of the steps are more than {_UNEVEN:.0%} longer or shorter than the median of {median:.4g} s",
            "resample to one frequency: frames are missing or late",
        )


def _timestamp(dataset: EpisodeDataset) -> str | None:
    names = [
        name
        for name, spec in dataset.specs.items()
        if spec.is_step and spec.kind == "tensor" and name.endswith("timestamp") and int(np.prod(spec.shape)) == 1
    ]
    return names[0] if names else None
