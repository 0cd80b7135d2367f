"""The pictures of our cameras, straight into the rows of a batch: sized, cached, drawn from several where there are."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int64, UInt8, UInt64

from vla_jax.core import errors
from vla_jax.data.formats.episodes import EpisodeDataset
from vla_jax.data.pictures import image_cache
from vla_jax.data.pictures.frame_images import FrameImages, SmallPictures
from vla_jax.data.pictures.resize import PictureSource, averaged_pictures, resized_pictures
from vla_jax.data.samples import draws
from vla_jax.data.schema import DatasetConfig


class CameraPictures:
    """One of our cameras; `names` are the features behind it, one of which every sample looks at. Without any it is
    absent: black, and False."""

    def __init__(
        self, camera: str, names: Sequence[str], source: PictureSource, keep: bool, absent_shape: tuple[int, int, int]
    ):
        """Raises ConfigError when the features have pictures of different sizes."""
        self._purpose, self._names, self._source = f"camera {camera}", tuple(names), source
        shapes = {name: source.image_shape(name) for name in names}
        if len(set(shapes.values())) > 1:
            raise errors.ConfigError(
                f"camera {camera!r} is drawn from pictures of different sizes",
                expected="one size, which DatasetConfig.resize gives them",
                found=shapes,
            )
        self.shape = next(iter(shapes.values()), absent_shape)
        self._kept = {name: FrameImages(source, name) for name in names} if keep else {}

    def read(
        self,
        frames: Int64[np.ndarray, "n"],
        keys: UInt64[np.ndarray, "n"],
        out: UInt8[np.ndarray, "rows height width 3"],
        rows: Int64[np.ndarray, "n"],
    ) -> Bool[np.ndarray, "n"]:
        """Put the picture of each frame into its row of `out`; False where it is damaged or absent."""
        if not self._names:
            out[rows] = 0
            return np.zeros(len(frames), bool)
        if len(self._names) == 1:
            return self._read(self._names[0], frames, out, rows)
        ok, which = np.empty(len(frames), bool), draws.integers(keys, self._purpose, len(self._names))
        for number, name in enumerate(self._names):
            chosen = np.flatnonzero(which == number)
            if chosen.size:
                ok[chosen] = self._read(name, frames[chosen], out, rows[chosen])
        return ok

    def _read(self, name: str, frames: np.ndarray, out: np.ndarray, rows: np.ndarray) -> Bool[np.ndarray, "n"]:
        if name in self._kept:
            out[rows], ok = self._kept[name].gather(frames)
            return ok
        return self._source.read_images(frames, name, [out[row] for row in rows.tolist()])


def open_pictures(dataset: EpisodeDataset, config: DatasetConfig, keep_bytes: int) -> dict[str, CameraPictures]:
    """The cameras of a config. Decoded pictures are kept in memory where all of them fit into `keep_bytes`.

    Raises DataError when the config's image cache is missing or of other data, ConfigError when an absent camera has no
    other to take its size from.
    """
    cameras = config.present_cameras(dataset.specs)
    names = [name for names in cameras.values() for name in names]
    source = sized_pictures(dataset, config)
    if config.image_cache is not None:
        source = image_cache.ImageCache(config.image_cache, cache_identity(dataset, config))
    shapes = [source.image_shape(name) for name in names]
    if cameras and not shapes and config.resize is None:
        raise errors.ConfigError(
            f"{dataset.place}: no camera is there", expected="resize, which says how large a black picture is"
        )
    absent = shapes[0] if shapes else (*config.resize[:2], 3) if config.resize else (0, 0, 3)
    num_bytes = sum(dataset.num_frames * int(np.prod(shape)) for shape in shapes)
    is_raw = isinstance(source, image_cache.ImageCache) and source.is_raw  # the page cache keeps it already
    keep = num_bytes <= keep_bytes and not is_raw
    return {camera: CameraPictures(camera, names, source, keep, absent) for camera, names in cameras.items()}


def sized_pictures(dataset: EpisodeDataset, config: DatasetConfig) -> PictureSource:
    """The stored pictures in the size that the config asks for: what an image cache is built from."""
    if config.resize is not None:
        return resized_pictures(dataset, config.resize)
    if config.downscale_in_decoder:
        return SmallPictures(dataset, config.downscale)
    return dataset if config.downscale == 1 else averaged_pictures(dataset, config.downscale)


def cache_identity(dataset: EpisodeDataset, config: DatasetConfig) -> str:
    """What an image cache of this config must have been made of."""
    names = sorted({name for names in config.present_cameras(dataset.specs).values() for name in names})
    how = " in the decoder" if config.downscale_in_decoder else ""
    return image_cache.fingerprint(dataset, names, f"resize={config.resize}, downscale={config.downscale}{how}")
