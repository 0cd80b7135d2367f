"""Pictures transcoded once to the size that training wants, and read back many times faster than they were stored.

    <folder>/cache.json          what the pictures were made of: fingerprint, cameras, shapes, format
    <folder>/<camera>.raw        "raw": all pictures as they are in memory, frame after frame, read by memory map
    <folder>/<camera>.jpeg       "jpeg": one JPEG after the other, found by <camera>.ends.npy
    <folder>/<camera>.ok.npy     which pictures are real; damaged ones stay black

The folder appears under its name when it is complete. An interrupted build goes on where it stopped: it leaves
`<folder>.incomplete`, with a progress file that is written after the pictures it counts have reached the disk.
"""

import hashlib
import json
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from vla_jax.core import errors, files
from vla_jax.data.formats import image_codec
from vla_jax.data.formats.episodes import EpisodeDataset
from vla_jax.data.pictures.resize import PictureSource

Format = Literal["raw", "jpeg"]
_CHUNK_BYTES = 64 << 20
Progress = Callable[[int, int], None]  # pictures done, pictures in all


def fingerprint(dataset: EpisodeDataset, names: Sequence[str], making: str) -> str:
    """Changes when the set, its episodes, some of its pictures or the way they are made (`making`) change.

    Pictures are compared at three frames per camera: reading them all would cost what the cache saves.
    """
    digest = hashlib.sha256(json.dumps([dataset.place, making, sorted(names)]).encode())
    digest.update(np.asarray(dataset.episode_starts, np.int64).tobytes())
    frames = np.unique(np.array([0, dataset.num_frames // 2, dataset.num_frames - 1], np.int64))
    for name in sorted(names):
        pictures = np.empty((len(frames), *dataset.image_shape(name)), np.uint8)
        dataset.read_images(frames, name, pictures)
        digest.update(pictures.tobytes())
    return digest.hexdigest()


def build(
    source: PictureSource,
    names: Sequence[str],
    folder: str | Path,
    identity: str,
    *,
    format: Format = "jpeg",
    jpeg_quality: int = 95,
    num_threads: int = 2,
    progress: Progress | None = None,
) -> "ImageCache":
    """Read every picture of these cameras and write the cache, or open the one that is there.

    `identity` is the fingerprint of what the pictures come from. Memory stays below twice 64 MB. Raises DataError when
    a complete cache of something else is in the way, ConfigError for an unknown format.
    """
    folder = Path(folder)
    if format not in ("raw", "jpeg"):
        raise errors.ConfigError("image cache format", expected='"raw" or "jpeg"', found=repr(format))
    if folder.exists():
        return ImageCache(folder, identity)
    about = {
        "fingerprint": identity,
        "format": format,
        "jpeg_quality": jpeg_quality if format == "jpeg" else None,
        "num_frames": source.num_frames,
        "shapes": {name: list(source.image_shape(name)) for name in names},
    }
    partial = folder.with_name(folder.name + ".incomplete")
    partial.mkdir(parents=True, exist_ok=True)
    done = _read_progress(partial, about)
    with futures.ThreadPoolExecutor(num_threads, thread_name_prefix="vla_jax-cache") as threads:
        for number, name in enumerate(names):
            stem = partial / _file_name(name)
            start, num_bytes = done.get(name, (0, 0))
            for last, size in _write(source, name, stem, about, start, num_bytes, threads, num_threads):
                done[name] = (last, size)
                _write_json(partial / "progress.json", {"about": about, "done": done})
                if progress is not None:
                    progress(number * source.num_frames + last, len(names) * source.num_frames)
    (partial / "progress.json").unlink(missing_ok=True)
    _write_json(partial / "cache.json", about)
    os.replace(partial, folder)
    return ImageCache(folder, identity)


class ImageCache:
    """The pictures of a complete cache; a `PictureSource`, safe to share between threads."""

    def __init__(self, folder: str | Path, identity: str | None = None):
        """`identity` is the fingerprint the cache must have; None takes any. Raises DataError."""
        self.folder = Path(folder)
        path = self.folder / "cache.json"
        if not path.is_file():
            raise errors.DataError(
                f"{self.folder}: no image cache",
                expected="cache.json in it",
                found="no such file" if self.folder.is_dir() else "no such folder",
                fix="make it with `vla-jax data cache`, or drop image_cache from the DatasetConfig",
            )
        self._about = json.loads(path.read_text())
        if identity is not None and self._about["fingerprint"] != identity:
            raise errors.DataError(
                f"{self.folder}: an image cache of other data or of another size",
                expected=f"fingerprint {identity[:16]}",
                found=self._about["fingerprint"][:16],
                fix="delete the folder and make the cache again",
            )
        self._shapes = {name: tuple(shape) for name, shape in self._about["shapes"].items()}
        self._ok = {name: np.load(self._path(name, "ok.npy"), mmap_mode="r") for name in self._shapes}
        self._ends, self._data = {}, {}
        for name, shape in self._shapes.items():
            if self.is_raw:
                data = np.memmap(self._path(name, "raw"), np.uint8, "r", shape=(self.num_frames, *shape))
                self._data[name] = np.asarray(data)  # a row of a plain array costs a tenth of a memmap's
            else:
                self._ends[name] = np.load(self._path(name, "ends.npy"), mmap_mode="r")
                with self._path(name, "jpeg").open("rb") as file:
                    self._data[name] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @property
    def num_frames(self) -> int:
        return self._about["num_frames"]

    @property
    def is_raw(self) -> bool:
        return self._about["format"] == "raw"

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self._shapes)

    def image_shape(self, name: str) -> tuple[int, int, int]:
        if name not in self._shapes:
            raise errors.DataError(
                f"{self.folder}: camera {name!r} is not in this cache",
                fix=f"{errors.closest(name, self._shapes)}; make the cache again with all cameras",
            )
        return self._shapes[name]

    def read_images(
        self, frames: Int64[np.ndarray, "n"], name: str, out: Sequence[UInt8[np.ndarray, "height width 3"]]
    ) -> Bool[np.ndarray, "n"]:
        data, pictures = self._data[name], zip(frames.tolist(), out, strict=True)
        if self.is_raw:
            for frame, picture in pictures:
                picture[...] = data[frame]
        else:
            ends = self._ends[name]
            for frame, picture in pictures:
                start, stop = int(ends[frame - 1]) if frame else 0, int(ends[frame])
                image_codec.decode(data[start:stop], picture)
        return np.array(self._ok[name][frames])

    def _path(self, name: str, ending: str) -> Path:
        return self.folder / f"{_file_name(name)}.{ending}"


def _write(
    source: PictureSource,
    name: str,
    stem: Path,
    about: dict,
    start: int,
    num_bytes: int,
    threads: futures.ThreadPoolExecutor,
    num_threads: int,
) -> Iterator[tuple[int, int]]:
    """Append the pictures of one camera from frame `start` on; yields the frames and bytes so far after each chunk."""
    shape = source.image_shape(name)
    chunk = max(1, _CHUNK_BYTES // int(np.prod(shape)))
    ok = _array_file(stem.with_name(stem.name + ".ok.npy"), (source.num_frames,), bool)
    is_raw = about["format"] == "raw"
    ends = None if is_raw else _array_file(stem.with_name(stem.name + ".ends.npy"), (source.num_frames,), np.int64)
    with stem.with_name(f"{stem.name}.{about['format']}").open("ab") as file:
        file.truncate(num_bytes)  # what an interrupted build wrote without counting it
        file.seek(num_bytes)
        for first in range(start, source.num_frames, chunk):
            last = min(first + chunk, source.num_frames)
            pictures = np.empty((last - first, *shape), np.uint8)
            pieces = np.array_split(np.arange(first, last), min(num_threads, last - first))
            jobs = [
                threads.submit(source.read_images, piece, name, pictures[piece[0] - first : piece[-1] - first + 1])
                for piece in pieces
            ]
            ok[first:last] = np.concatenate([job.result() for job in jobs])
            if is_raw:
                pictures.tofile(file)
            else:
                encoded = list(threads.map(lambda p: image_codec.encode_jpeg(p, about["jpeg_quality"]), pictures))
                ends[first:last] = num_bytes + np.cumsum([len(data) for data in encoded])
                file.writelines(encoded)
                ends.flush()
            ok.flush()
            file.flush()
            os.fsync(file.fileno())
            num_bytes = file.tell()
            yield last, num_bytes


def _array_file(path: Path, shape: tuple[int, ...], dtype: type) -> np.memmap:
    if path.is_file():
        return np.lib.format.open_memmap(path, "r+")
    return np.lib.format.open_memmap(path, "w+", dtype, shape)


def _read_progress(partial: Path, about: dict) -> dict[str, tuple[int, int]]:
    """By camera, the frames and bytes an interrupted build of the same cache has written."""
    path = partial / "progress.json"
    stored = json.loads(path.read_text()) if path.is_file() else {}
    if stored.get("about") == about:
        return {name: tuple(value) for name, value in stored["done"].items()}
    for old in partial.iterdir():  # of another cache
        old.unlink()
    return {}


def _write_json(path: Path, value: dict) -> None:
    files.write_text(path, json.dumps(value, indent=2))


def _file_name(name: str) -> str:
    return name.replace("/", "__")
