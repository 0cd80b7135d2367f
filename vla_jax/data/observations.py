"""Observations of any frames of a dataset, written into the rows of a batch."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Int, Int64, UInt64

from vla_jax.core.types import Observation
from vla_jax.data import columns
from vla_jax.data.formats.episodes import EpisodeDataset
from vla_jax.data.normalization import Normalizer
from vla_jax.data.picture_sources import open_pictures
from vla_jax.data.pictures.buffers import BufferPool
from vla_jax.data.samples import draws, windows
from vla_jax.data.schema import DatasetConfig

Tokenizer = Callable[[str], tuple[Int[np.ndarray, "l"], Bool[np.ndarray, "l"]]]  # instruction -> ids and mask


class ObservationReader:
    """What a dataset shows at a frame, under one config. Several threads may share it."""

    def __init__(
        self,
        dataset: EpisodeDataset,
        config: DatasetConfig,
        normalizer: Normalizer,
        tokenizer: Tokenizer,
        image_cache_bytes: int,
    ):
        self._dataset, self._config, self._normalizer = dataset, config, normalizer
        self._buffers = BufferPool()
        self._pictures = open_pictures(dataset, config, image_cache_bytes)
        cameras = config.present_cameras(dataset.specs)
        # The absence of these is no damage.
        self._may_lack = {
            camera
            for camera, names in cameras.items()
            if camera in config.optional_cameras or any(dataset.specs[name].optional for name in names)
        }
        texts = {name: dataset.texts(name) for name in config.instruction_names}
        self.instructions = tuple(dict.fromkeys(text for distinct in texts.values() for text in distinct))
        number = {text: i for i, text in enumerate(self.instructions)}
        self._text_rows = {name: np.array([number[text] for text in distinct]) for name, distinct in texts.items()}
        self._is_empty = np.array([not text.strip() for text in self.instructions])
        tokens, masks = zip(*map(tokenizer, self.instructions), strict=True)
        self._prompt, self._prompt_mask = np.stack(tokens).astype(np.int32), np.stack(masks).astype(bool)

    def allocate(self, num_rows: int) -> Observation:
        """Arrays for this many rows, not yet filled."""
        seen = (num_rows,) if self._config.history == 1 else (num_rows, self._config.history)
        return Observation(
            images={
                name: self._buffers.empty((*seen, *pictures.shape), np.uint8)
                for name, pictures in self._pictures.items()
            },
            image_mask={name: np.empty(seen, bool) for name in self._pictures},
            state=np.empty((*seen, self._normalizer.state_dim), np.float32),
            prompt=np.empty((num_rows, self._prompt.shape[-1]), np.int32),
            prompt_mask=np.empty((num_rows, self._prompt.shape[-1]), bool),
        )

    def fill(
        self,
        out: Observation,
        rows: Int64[np.ndarray, "b"],
        frames: Int64[np.ndarray, "b"],
        keys: UInt64[np.ndarray, "b"],
    ) -> Bool[np.ndarray, "b"]:
        """Write the observation at each frame into its row of `out`; rows ascend. False where a picture that should be
        there is damaged."""
        history = self._config.history
        starts = np.asarray(self._dataset.episode_starts)[self._dataset.episode_of(frames)]
        seen, is_real = windows.history_windows(frames, starts, history)
        flat_rows = (rows[:, None] * history + np.arange(history)).ravel()
        is_whole = np.ones(len(frames), bool)
        for camera, pictures in self._pictures.items():
            images = out.images[camera].reshape(-1, *pictures.shape)
            found = pictures.read(seen.ravel(), np.repeat(keys, history), images, flat_rows).reshape(seen.shape)
            out.image_mask[camera].reshape(-1)[flat_rows] = (found & is_real).ravel()
            if camera not in self._may_lack:
                is_whole &= found.all(axis=-1)
        state = self._normalizer.normalize_state(columns.vectors(self._dataset, self._config.state_names, seen))
        out.state[rows] = state if history > 1 else state[:, 0]
        text = self._draw_texts(frames, keys)
        out.prompt[rows], out.prompt_mask[rows] = self._prompt[text], self._prompt_mask[text]
        return is_whole

    def _draw_texts(self, frames: Int64[np.ndarray, "b"], keys: UInt64[np.ndarray, "b"]) -> Int64[np.ndarray, "b"]:
        """One instruction per sample, as its row in `instructions`: any of the non-empty ones, equally often."""
        options = np.stack(
            [rows[np.asarray(self._dataset.text_ids(name)[frames])] for name, rows in self._text_rows.items()], axis=-1
        )
        if options.shape[-1] == 1:
            return options[:, 0]
        is_given = ~self._is_empty[options]
        pick = draws.integers(keys, "instruction", np.maximum(is_given.sum(-1), 1))
        chosen = np.argmax(np.cumsum(is_given, axis=-1) > pick[:, None], axis=-1)  # 0 where all are empty
        return options[np.arange(len(frames)), chosen]
