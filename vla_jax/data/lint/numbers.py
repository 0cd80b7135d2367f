"""Single columns: NaN, dims that never change, outliers, and the widths that are declared."""

import numpy as np
from jaxtyping import Float64

from vla_jax.data.formats.episodes import EpisodeDataset
from vla_jax.data.lint.report import Notes
from vla_jax.data.lint.sample import Sample
from vla_jax.data.lint.settings import LintConfig

_SMALLEST_STD = 1e-5
_OUTLIER = 10.0  # times the distance between the 1st and the 99th percentile, beyond them


def check(dataset: EpisodeDataset, sample: Sample, config: LintConfig, notes: Notes) -> Sample:
    """The sample without the episodes that hold NaN, which the other checks cannot look at."""
    fields = {"state": sample.states, "action": sample.actions}
    declared = {"state": config.declared.state_dim, "action": config.declared.action_dim}
    for name, values in fields.items():
        notes.fact(f"{name} dims", str(values.shape[1]))
        if declared[name] is not None and values.shape[1] != declared[name]:
            notes.error(
                "declared dims",
                f"{name}: {declared[name]} dims are declared, {values.shape[1]} were found",
                "correct the embodiment's row, or the keys that are joined",
            )
    finite = np.isfinite(sample.states).all(1) & np.isfinite(sample.actions).all(1)
    for name, values in fields.items():
        _check_finite(dataset, name, values, sample, notes)
    clean = sample.keep(finite)
    if len(clean.frames):
        _check_spread(dataset, "state", clean.states, clean, notes)
        _check_spread(dataset, "action", clean.actions, clean, notes)
    return clean


def _check_finite(
    dataset: EpisodeDataset, name: str, values: Float64[np.ndarray, "n d"], sample: Sample, notes: Notes
) -> None:
    bad = ~np.isfinite(values)
    if not bad.any():
        return
    rows, dims = np.flatnonzero(bad.any(1)), np.flatnonzero(bad.any(0))
    notes.error(
        "not finite",
        f"{name}: NaN or infinity in {len(rows):,} frames, dims {dims.tolist()}; the first is "
        f"{dataset.describe_frame(int(sample.frames[rows[0]]))}",
        "drop these episodes, or repair the recording",
    )


def _check_spread(
    dataset: EpisodeDataset, name: str, values: Float64[np.ndarray, "n d"], sample: Sample, notes: Notes
) -> None:
    q01, q99 = np.quantile(values, (0.01, 0.99), axis=0)
    constant = values.std(0) < _SMALLEST_STD
    for dim in np.flatnonzero(constant):
        notes.warning(
            "constant dim",
            f"{name} dim {dim} is {values[0, dim]:.4g} everywhere (standard deviation {values[:, dim].std():.1e})",
            "leave it out, or list it under raw_state_dims or raw_action_dims so that it is not stretched",
        )
    # A dim that is nearly always at one value has no width to measure outliers by: its own extremes are its signal.
    measured = (q99 - q01 > 0) & ~constant
    beyond = np.maximum(values.max(0) - q99, q01 - values.min(0)) / np.where(measured, q99 - q01, np.inf)
    for dim in np.flatnonzero(beyond > _OUTLIER):
        row = int(np.abs(values[:, dim] - (q01[dim] + q99[dim]) / 2).argmax())
        notes.warning(
            "outlier",
            f"{name} dim {dim} reaches {values[row, dim]:.4g}, {beyond[dim]:.0f} times the distance between its 1st "
            f"and 99th percentiles ({q01[dim]:.4g}, {q99[dim]:.4g}) away from them, at "
            f"{dataset.describe_frame(int(sample.frames[row]))}",
            "look at that episode; normalize by quantiles and not by z-score, and clip or drop it",
        )
