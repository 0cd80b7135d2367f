"""States and actions of any frames, from the columns of a dataset, in physical units."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int64

from vla_jax.data import action_kinds
from vla_jax.data.formats.episodes import EpisodeDataset
from vla_jax.data.samples import windows
from vla_jax.data.schema import DatasetConfig


def vectors(dataset: EpisodeDataset, names: Sequence[str], frames: Int64[np.ndarray, "*n"]) -> np.ndarray:
    """Rows of columns as float32 vectors `*n d`, joined in the order of `names`; a scalar is a vector of one."""
    parts = []
    for name in names:
        rows = np.asarray(dataset.columns[name][frames], np.float32)
        parts.append(rows[..., None] if rows.ndim == frames.ndim else rows)
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def action_chunks(
    dataset: EpisodeDataset, config: DatasetConfig, frames: Int64[np.ndarray, "b"], stops: Int64[np.ndarray, "b"]
) -> tuple[Float32[np.ndarray, "b h a"], Bool[np.ndarray, "b h"]]:
    """The chunk from every frame on, in the kind that the config asks for, held still at `stops`, and which steps are
    before that."""
    ahead, is_real = windows.action_windows(frames, stops, config.action_horizon)
    actions = vectors(dataset, config.action_names, ahead)
    actions = windows.hold_still(actions, is_real, config.displacement_dims)
    if config.action_kind != "as recorded":
        state = vectors(dataset, config.state_names, frames)
        actions = action_kinds.convert(config.action_kind, actions, state, config.relative_dims)
    return actions, is_real
