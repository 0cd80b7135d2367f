"""Our side of benchmarks/loader.py, and the bound that decoding sets, each run in a process of its own.

python benchmarks/loader_peers/ours.py SIDE --data FOLDER ...

loader    RLDS records in place, every picture decoded when it is asked for, always with the exact transform
cached    the same from a raw image cache, built before
video     a LeRobot dataset
bound     no loader at all: the JPEGs of one batch after the other, from memory into one array, on as many threads
"""

import argparse
import dataclasses
import itertools
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import measure
import numpy as np
import simplejpeg

from data_pipelines import droid
from vla_jax.data.demonstrations import compute_statistics, open_dataset
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.data.loader import Loader
from vla_jax.data.normalization import Normalizer
from vla_jax.data.picture_sources import cache_identity, sized_pictures
from vla_jax.data.pictures import image_cache

_TOKENS = 48
_CAMERAS = tuple(f"observation/{name}" for name in (*droid.EXTERIOR_CAMERAS, droid.WRIST_CAMERA))


def tokenize(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Bytes as token ids."""
    data = text.encode()[:_TOKENS]
    return np.frombuffer(data.ljust(_TOKENS, b"\0"), np.uint8).astype(np.int32), np.arange(_TOKENS) < len(data)


def cached_config(folder: str, horizon: int):
    """The config that reads the image cache beside the data, which is built where it is absent."""
    config = droid.dataset_config(folder, horizon)
    cache = Path(folder).parent / "image_cache"
    dataset = open_dataset(config)
    image_cache.build(sized_pictures(dataset, config), _CAMERAS, cache, cache_identity(dataset, config), format="raw")
    return dataclasses.replace(config, image_cache=str(cache))


def loader_batches(options: argparse.Namespace) -> Iterator[measure.Batch]:
    config = droid.dataset_config(options.data, options.horizon, only_successes=options.side != "video")
    if options.side == "cached":
        config = cached_config(options.data, options.horizon)
    loader = Loader(
        config,
        batch_size=options.batch,
        seed=0,
        tokenizer=tokenize,
        normalizer=Normalizer.create(compute_statistics(config)),
        num_threads=options.threads,
        image_cache_bytes=0,  # nothing decoded stays in memory: the set stands for one that is too large for that
    )
    for batch in loader:
        images = batch.observation.images
        yield {
            "exterior": images["exterior"],
            "wrist": images["wrist"],
            "state": batch.observation.state,
            "actions": batch.actions,
            "instruction": batch.observation.prompt,
        }


def bound_batches(options: argparse.Namespace) -> Iterator[measure.Batch]:
    dataset = RldsDataset(options.data, names=_CAMERAS)
    frames = np.random.default_rng(0).integers(0, dataset.num_frames, 512)
    jpegs = [[dataset.image_bytes(int(frame), name) for name in (_CAMERAS[0], _CAMERAS[2])] for frame in frames]
    out = np.empty((2, options.batch, *droid.IMAGE_SIZE, 3), np.uint8)
    turns = itertools.cycle(range(len(frames)))
    is_fast = options.dct == "fast"

    def decode(row: int, frame: int) -> None:
        for camera in range(2):
            simplejpeg.decode_jpeg(jpegs[frame][camera], "RGB", fastdct=is_fast, buffer=out[camera, row])

    def decode_rows(rows: range, chosen: list[int]) -> None:
        for row in rows:
            decode(row, chosen[row])

    with futures.ThreadPoolExecutor(options.threads) as threads:
        while True:
            chosen = list(itertools.islice(turns, options.batch))
            pieces = [range(i, options.batch, options.threads) for i in range(options.threads)]
            list(threads.map(decode_rows, pieces, [chosen] * len(pieces), timeout=60))
            yield {"exterior": out[0], "wrist": out[1]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=("loader", "cached", "video", "bound"))
    parser.add_argument("--data", required=True)
    parser.add_argument("--dct", choices=("fast", "exact"), default="exact", help="of the bound")
    parser.add_argument("--horizon", type=int, default=16)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--warmup", type=int, required=True)
    parser.add_argument("--batches", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    make = bound_batches if options.side == "bound" else loader_batches
    measure.report(measure.measure(lambda: make(options), options.batch, options.warmup, options.batches))
