"""A dataset on disk as batches of Demonstrations: any frames in, one typed batch out."""

import abc
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt64

from vla_jax.core import errors
from vla_jax.core.types import Demonstrations
from vla_jax.data import action_kinds, columns, schema, statistics
from vla_jax.data import open as formats
from vla_jax.data.formats.episodes import EpisodeDataset
from vla_jax.data.formats.faults import FaultPolicy
from vla_jax.data.normalization import Normalizer, Statistics
from vla_jax.data.observations import ObservationReader, Tokenizer
from vla_jax.data.samples import draws, goals, windows
from vla_jax.data.samples import selection as sampling
from vla_jax.data.samples.selection import FrameSelection
from vla_jax.data.schema import DatasetConfig
from vla_jax.data.statistics import CHUNK_FRAMES, Summary

DEFAULT_IMAGE_CACHE_BYTES = 2 << 30


class FrameDataset(abc.ABC):
    """One dataset under one config as batches by frame number; everything is pure, so threads may share it."""

    def __init__(
        self,
        config: DatasetConfig,
        normalizer: Normalizer,
        tokenizer: Tokenizer,
        *,
        image_cache_bytes: int = DEFAULT_IMAGE_CACHE_BYTES,
        cache_folder: str | Path | None = None,
        faults: FaultPolicy | None = None,
    ):
        """Decoded frames are kept in memory if all of them fit into `image_cache_bytes`. Raises DataError when the
        dataset lacks what the config asks for or does not fit the statistics."""
        self.config, self._normalizer = config, normalizer
        self.dataset = open_dataset(config, cache_folder, faults)
        self._check_dims()
        self.selection = select(self.dataset, config)
        self._observations = ObservationReader(self.dataset, config, normalizer, tokenizer, image_cache_bytes)

    @property
    def instructions(self) -> tuple[str, ...]:
        """The distinct ones."""
        return self._observations.instructions

    @property
    def num_samples(self) -> int:
        """Of one epoch."""
        return self.selection.num_samples

    @property
    def num_frames(self) -> int:
        """That may be sampled."""
        return self.selection.num_frames

    @property
    def num_episodes(self) -> int:
        """With frames that may be sampled."""
        return self.selection.num_episodes

    def batch(self, frames: Int64[np.ndarray, "b"], keys: UInt64[np.ndarray, "b"] | None = None) -> Any:
        """The samples that start at these frames, normalized, with numpy leaves.

        `keys` decide what is drawn per sample (see draws.py); without them the frame numbers do.
        """
        out = self.allocate(len(frames))
        keys = draws.sample_keys(0, frames) if keys is None else keys
        self.fill(out, np.arange(len(frames)), np.asarray(frames, np.int64), keys)
        return out

    @abc.abstractmethod
    def allocate(self, num_rows: int) -> Any:
        """A batch of this many rows, not yet filled."""

    @abc.abstractmethod
    def fill(
        self, out: Any, rows: Int64[np.ndarray, "b"], frames: Int64[np.ndarray, "b"], keys: UInt64[np.ndarray, "b"]
    ) -> None:
        """Write the samples that start at `frames` into these rows of `out`, which ascend."""

    @property
    def action_dim(self) -> int:
        """The width of a batch's actions."""
        return self.config.action_dim or self._normalizer.robot_action_dim

    def _put_actions(
        self, out: Float32[np.ndarray, "n h a"], rows: Int64[np.ndarray, "b"], actions: Float32[np.ndarray, "b h r"]
    ) -> None:
        """Normalize the robot's actions and write them, padded with zeros to the width of `out`."""
        dims = self._normalizer.robot_action_dim
        out[rows, :, :dims] = self._normalizer.normalize_actions(actions)
        out[rows, :, dims:] = 0

    def _check_dims(self) -> None:
        config, frames = self.config, np.zeros(1, np.int64)
        state_dim = columns.vectors(self.dataset, config.state_names, frames).shape[-1]
        action_dim = columns.vectors(self.dataset, config.action_names, frames).shape[-1]
        expected = (self._normalizer.state_dim, self._normalizer.robot_action_dim)
        if (state_dim, action_dim) != expected:
            raise errors.DataError(
                f"{self.dataset.place}: the statistics are of other data",
                expected=f"{expected[0]} state dims and {expected[1]} action dims, as in the statistics",
                found=f"{state_dim} and {action_dim}",
                fix="compute the statistics from this dataset with `vla-jax data stats`",
            )
        if config.action_dim is not None and config.action_dim < action_dim:
            raise errors.ConfigError(
                "DatasetConfig.action_dim", expected=f"at least the robot's {action_dim}", found=config.action_dim
            )
        _check_action_config(config, state_dim, action_dim)


class DemonstrationDataset(FrameDataset):
    """Batches for imitation: the observation at every frame and the actions from there on."""

    def allocate(self, num_rows: int) -> Demonstrations:
        chunk = (num_rows, self.config.action_horizon, self.action_dim)
        other = self._observations.allocate
        return Demonstrations(
            observation=self._observations.allocate(num_rows),
            actions=np.empty(chunk, np.float32),
            action_mask=np.empty(chunk, bool),
            weight=np.empty(num_rows, np.float32),
            future=None if self.config.future_offset is None else other(num_rows),
            goal=None if self.config.goals is None else other(num_rows),
        )

    def fill(
        self,
        out: Demonstrations,
        rows: Int64[np.ndarray, "b"],
        frames: Int64[np.ndarray, "b"],
        keys: UInt64[np.ndarray, "b"],
    ) -> None:
        """A sample with a damaged picture gets weight 0, the others 1."""
        stops = np.asarray(self.dataset.episode_starts)[self.dataset.episode_of(frames) + 1]
        is_whole = self._observations.fill(out.observation, rows, frames, keys)
        actions, is_real = columns.action_chunks(self.dataset, self.config, frames, stops)
        self._put_actions(out.actions, rows, actions)
        is_used = np.arange(self.action_dim) < self._normalizer.robot_action_dim
        out.action_mask[rows] = is_real[..., None] & is_used
        if out.future is not None:
            ahead, is_there = windows.future_frame(frames, stops, self.config.future_offset)
            is_whole &= self._observations.fill(out.future, rows, ahead, keys)
            _mask_images(out.future.image_mask, rows, is_there)
        if out.goal is not None:
            chosen = goals.draw_goals(frames, stops, keys, self.config.goals)
            is_whole &= self._observations.fill(out.goal, rows, chosen, keys)
        out.weight[rows] = is_whole


def open_dataset(
    config: DatasetConfig, cache_folder: str | Path | None = None, faults: FaultPolicy | None = None
) -> EpisodeDataset:
    """The dataset of a config, indexed for what the config reads. Raises DataError when it lacks some of it."""
    specs = formats.load_specs(config.path)
    schema.check(config, specs, config.path)
    return formats.open_dataset(
        config.path,
        config.split,
        names=config.feature_names(specs),
        cache_folder=cache_folder,
        faults=faults or FaultPolicy(),
    )


def select(dataset: EpisodeDataset, config: DatasetConfig) -> FrameSelection:
    """The frames that a config samples. Raises DataError when there are none."""
    skip_last = None
    if config.transitions is not None:
        skip_last = np.ones(len(dataset), bool)
        if config.transitions.last_step == "acts" and config.goals is None:
            skip_last = ~is_terminal(dataset, config.transitions)
    return sampling.select(
        dataset,
        episode_filter=config.episode_filter,
        holdout=config.holdout,
        subset=config.subset,
        kept_frames_path=config.kept_frames,
        first_frames=config.first_frames,
        skip_last=skip_last,
        sample_by=config.sample_by,
    )


def is_terminal(dataset: EpisodeDataset, config: schema.TransitionConfig) -> Bool[np.ndarray, "episodes"]:
    """Whether the last step of every episode ends the task."""
    last = np.asarray(dataset.episode_starts[1:]) - 1
    return columns.vectors(dataset, (config.terminal_key,), last)[:, 0] > 0.5


def compute_statistics(
    configs: DatasetConfig | Sequence[DatasetConfig],
    cache_folder: str | Path | None = None,
    faults: FaultPolicy | None = None,
) -> Statistics:
    """Statistics over the frames that the configs sample, all datasets together, from the columns alone: no image is
    touched. See statistics.py for how exact they are.

    Actions count once per frame as they are recorded; of another `action_kind`, every step of every chunk counts.
    What was computed for the same numbers before is kept in `cache_folder`, by default under `$XDG_CACHE_HOME`.
    """
    configs = [configs] if isinstance(configs, DatasetConfig) else list(configs)
    datasets = [open_dataset(config, cache_folder, faults) for config in configs]
    parts = {"sets": [_identity(*each) for each in zip(datasets, configs, strict=True)]}
    folder = None if cache_folder is None else Path(cache_folder) / "statistics"
    return statistics.cached(parts, lambda: _compute(datasets, configs), folder)


def _identity(dataset: EpisodeDataset, config: DatasetConfig) -> dict[str, Any]:
    """Everything that the statistics of a config depend on."""
    selection = select(dataset, config)
    frames = hashlib.sha256(np.concatenate([selection.starts, selection.stops]).tobytes()).hexdigest()
    names = (config.state_names, config.action_names)
    kind = (config.action_kind, config.action_horizon, config.relative_dims, config.displacement_dims)
    columns_read = statistics.fingerprint(dataset, tuple(dict.fromkeys(names[0] + names[1])))
    return {"columns": columns_read, "names": names, "frames": frames, "actions": kind}


def _compute(datasets: Sequence[EpisodeDataset], configs: Sequence[DatasetConfig]) -> Statistics:
    totals: list[Summary] | None = None
    for dataset, config in zip(datasets, configs, strict=True):
        summaries = _summaries(dataset, config)
        if totals is None:
            totals = summaries
        else:
            for total, summary in zip(totals, summaries, strict=True):
                total.merge(summary)
    return Statistics(*(total.finish() for total in totals))


def _summaries(dataset: EpisodeDataset, config: DatasetConfig) -> list[Summary]:
    selection = select(dataset, config)
    first = np.zeros(1, np.int64)
    dims = [columns.vectors(dataset, names, first).shape[-1] for names in (config.state_names, config.action_names)]
    _check_action_config(config, *dims)
    state, actions = Summary(dims[0]), Summary(dims[1])
    is_recorded = config.action_kind == "as recorded"
    chunk = CHUNK_FRAMES if is_recorded else max(1, CHUNK_FRAMES // config.action_horizon)
    for start in range(0, selection.num_frames, chunk):
        frames = selection.frame(np.arange(start, min(start + chunk, selection.num_frames)))
        state.add(columns.vectors(dataset, config.state_names, frames), f"{dataset.place}, state")
        if is_recorded:
            rows = columns.vectors(dataset, config.action_names, frames)
        else:
            stops = np.asarray(dataset.episode_starts)[dataset.episode_of(frames) + 1]
            chunks, is_real = columns.action_chunks(dataset, config, frames, stops)
            rows = chunks[is_real]
        actions.add(rows, f"{dataset.place}, actions")
    return [state, actions]


def _check_action_config(config: DatasetConfig, state_dim: int, action_dim: int) -> None:
    if any(not 0 <= dim < action_dim for dim in config.displacement_dims):
        raise errors.ConfigError(
            "DatasetConfig.displacement_dims", expected=f"dims below {action_dim}", found=config.displacement_dims
        )
    action_kinds.check(config.action_kind, config.relative_dims, action_dim, state_dim, "DatasetConfig")


def _mask_images(image_mask: dict[str, np.ndarray], rows: np.ndarray, is_there: Bool[np.ndarray, "b"]) -> None:
    for mask in image_mask.values():
        mask[rows] &= is_there.reshape(-1, *(1,) * (mask.ndim - 1))
