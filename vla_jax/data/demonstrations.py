"""A dataset on disk as batches of Demonstrations: any frames in, one typed batch out."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int, Int64

from vla_jax.core import errors
from vla_jax.core.types import Demonstrations, Observation
from vla_jax.data import schema, windows
from vla_jax.data.formats import features
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.data.frame_images import FrameImages
from vla_jax.data.normalization import FieldStatistics, Normalizer, Statistics
from vla_jax.data.schema import DatasetConfig

Tokenizer = Callable[[str], tuple[Int[np.ndarray, "l"], Bool[np.ndarray, "l"]]]  # instruction -> ids and mask


class DemonstrationDataset:
    """One dataset under one config; `batch` is pure, so threads may share it."""

    def __init__(
        self,
        config: DatasetConfig,
        normalizer: Normalizer,
        tokenizer: Tokenizer,
        *,
        image_cache_bytes: int = 2 << 30,
        cache_folder: str | Path | None = None,
    ):
        """Decoded frames are kept in memory if all of them fit into `image_cache_bytes`. Raises DataError when the
        dataset lacks what the config asks for or does not fit the statistics."""
        self.config, self._normalizer = config, normalizer
        self._dataset = open_dataset(config, cache_folder)
        self._check_dims()
        cameras = {camera: config.camera_name(camera) for camera, _ in config.cameras}
        total = sum(FrameImages.num_bytes(self._dataset, name, config.downscale) for name in cameras.values())
        self._images = {
            camera: FrameImages(self._dataset, name, keep=total <= image_cache_bytes, downscale=config.downscale)
            for camera, name in cameras.items()
        }
        self.instructions = self._dataset.texts(config.instruction_key)
        tokens, masks = zip(*map(tokenizer, self.instructions), strict=True)
        self._prompt = np.stack(tokens).astype(np.int32)
        self._prompt_mask = np.stack(masks).astype(bool)

    @property
    def num_frames(self) -> int:
        return self._dataset.num_frames

    @property
    def num_episodes(self) -> int:
        return len(self._dataset)

    def batch(self, frames: Int64[np.ndarray, "b"]) -> Demonstrations:
        """The observation at every frame and the actions from there on, normalized, with numpy leaves."""
        starts = self._dataset.episode_starts
        episodes = self._dataset.episode_of(frames)
        actions, action_mask = self._actions(frames, np.asarray(starts[episodes + 1]))
        return Demonstrations(
            observation=self._observation(frames, np.asarray(starts[episodes])),
            actions=actions,
            action_mask=action_mask,
            weight=np.ones(len(frames), np.float32),
        )

    def _observation(self, frames: Int64[np.ndarray, "b"], starts: Int64[np.ndarray, "b"]) -> Observation:
        seen, is_real = windows.history_windows(frames, starts, self.config.history)
        if self.config.history == 1:
            seen, is_real = seen[:, 0], is_real[:, 0]
        text = np.asarray(self._dataset.text_ids(self.config.instruction_key)[frames])
        return Observation(
            images={camera: images.gather(seen)[0] for camera, images in self._images.items()},
            image_mask={camera: is_real.copy() for camera in self._images},
            state=self._normalizer.normalize_state(_state(self._dataset, self.config, seen)),
            prompt=self._prompt[text],
            prompt_mask=self._prompt_mask[text],
        )

    def _actions(
        self, frames: Int64[np.ndarray, "b"], stops: Int64[np.ndarray, "b"]
    ) -> tuple[Float32[np.ndarray, "b h a"], Bool[np.ndarray, "b h a"]]:
        ahead, is_real = windows.action_windows(frames, stops, self.config.action_horizon)
        actions = _vectors(self._dataset, self.config.action_key, ahead)
        actions = self._normalizer.normalize_actions(
            windows.hold_still(actions, is_real, self.config.displacement_dims)
        )
        robot_action_dim = actions.shape[-1]
        action_dim = self.config.action_dim or robot_action_dim
        padded = np.zeros((*actions.shape[:-1], action_dim), np.float32)
        padded[..., :robot_action_dim] = actions
        mask = is_real[..., None] & (np.arange(action_dim) < robot_action_dim)
        return padded, mask

    def _check_dims(self) -> None:
        frames = np.zeros(1, np.int64)
        state_dim = _state(self._dataset, self.config, frames).shape[-1]
        action_dim = _vectors(self._dataset, self.config.action_key, frames).shape[-1]
        expected = (self._normalizer.state_dim, self._normalizer.robot_action_dim)
        if (state_dim, action_dim) != expected:
            raise errors.DataError(
                f"{self._dataset.place}: the statistics are of other data",
                expected=f"{expected[0]} state dims and {expected[1]} action dims, as in the statistics",
                found=f"{state_dim} and {action_dim}",
                fix="compute the statistics from this dataset with `vla-jax data stats`",
            )
        if self.config.action_dim is not None and self.config.action_dim < action_dim:
            raise errors.ConfigError(
                "DatasetConfig.action_dim", expected=f"at least the robot's {action_dim}", found=self.config.action_dim
            )
        if any(not 0 <= dim < action_dim for dim in self.config.displacement_dims):
            raise errors.ConfigError(
                "DatasetConfig.displacement_dims",
                expected=f"dims below {action_dim}",
                found=self.config.displacement_dims,
            )


def open_dataset(config: DatasetConfig, cache_folder: str | Path | None = None) -> RldsDataset:
    """The dataset of a config, indexed for what the config reads. Raises DataError when it lacks some of it."""
    folder = Path(config.path)
    schema.check(config, features.load_specs(folder), str(folder))
    return RldsDataset(folder, config.split, names=config.feature_names, cache_folder=cache_folder)


def compute_statistics(
    configs: DatasetConfig | Sequence[DatasetConfig], cache_folder: str | Path | None = None
) -> Statistics:
    """Exact statistics over all frames of the datasets together, from the columns alone: no image is touched."""
    configs = [configs] if isinstance(configs, DatasetConfig) else list(configs)
    states, actions = [], []
    for config in configs:
        dataset = open_dataset(config, cache_folder)
        frames = np.arange(dataset.num_frames)
        states.append(_state(dataset, config, frames))
        actions.append(_vectors(dataset, config.action_key, frames))
    return Statistics(FieldStatistics.of(np.concatenate(states)), FieldStatistics.of(np.concatenate(actions)))


def _state(dataset: RldsDataset, config: DatasetConfig, frames: Int64[np.ndarray, "..."]) -> np.ndarray:
    return np.concatenate([_vectors(dataset, name, frames) for name in config.state_names], axis=-1)


def _vectors(dataset: RldsDataset, name: str, frames: Int64[np.ndarray, "..."]) -> np.ndarray:
    """Rows of a column as float32 vectors; a scalar feature is a vector of one."""
    rows = np.asarray(dataset.columns[name][frames], np.float32)
    return rows[..., None] if rows.ndim == frames.ndim else rows
