"""Peer for video: a torch DataLoader over a LeRobot v3.0 dataset, one item per frame, as LeRobot's own dataset works.

Per item: the row and the chunk of the next actions from the table in memory, and for every camera a seek in its mp4 to
the frame's time and decoding from the key frame before it. Kinder than LeRobot in two things: containers stay open in
each worker, and pictures stay uint8 with the channels last instead of becoming float32.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import av
import measure
import numpy as np
import pyarrow.parquet as pq
import torch

EXTERIOR = ("observation.images.exterior_image_1_left", "observation.images.exterior_image_2_left")
WRIST = "observation.images.wrist_image_left"
STATE = ("observation.joint_position", "observation.gripper_position")
ACTIONS = ("action_dict.joint_velocity", "action_dict.gripper_position")


class Videos:
    """Frames of mp4 files by time, with the containers kept open."""

    def __init__(self):
        self._containers = {}

    def frame(self, path: Path, seconds: float) -> np.ndarray:
        if path not in self._containers:
            self._containers[path] = av.open(str(path))
            self._containers[path].streams.video[0].thread_count = 1  # the workers are the parallelism
        container = self._containers[path]
        stream = container.streams.video[0]
        container.seek(int(seconds / stream.time_base), stream=stream)
        half = 0.5 / float(stream.average_rate)
        for picture in container.decode(stream):
            if picture.time >= seconds - half:
                return picture.to_ndarray(format="rgb24")
        raise ValueError(f"{path} ends before {seconds} s")


class Frames(torch.utils.data.Dataset):
    """Items with the names of our batches."""

    def __init__(self, folder: Path, horizon: int):
        self._folder, self._horizon = folder, horizon
        self._info = json.loads((folder / "meta" / "info.json").read_text())
        table = pq.ParquetDataset(sorted((folder / "data").rglob("*.parquet"))).read()
        episodes = pq.ParquetDataset(sorted((folder / "meta" / "episodes").rglob("*.parquet"))).read()
        self._episodes = episodes.to_pylist()
        self._state, self._actions = (
            np.concatenate([self._column(table, name) for name in names], axis=1) for names in (STATE, ACTIONS)
        )
        self._episode, self._step = (
            table[name].to_numpy(zero_copy_only=False) for name in ("episode_index", "frame_index")
        )
        self._first = np.flatnonzero(self._step == 0)
        self._videos = Videos()

    def __len__(self) -> int:
        return len(self._step)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        episode = self._episodes[int(self._episode[index])]
        last = self._first[self._episode[index]] + int(episode["length"]) - 1
        ahead = np.minimum(np.arange(index, index + self._horizon), last)
        exterior = EXTERIOR[int(torch.randint(len(EXTERIOR), ()))]
        return {
            "exterior": self._picture(exterior, episode, int(self._step[index])),
            "wrist": self._picture(WRIST, episode, int(self._step[index])),
            "state": self._state[index],
            "actions": self._actions[ahead],
        }

    def _picture(self, key: str, episode: dict, step: int) -> np.ndarray:
        chunk, file = (int(episode[f"videos/{key}/{name}"]) for name in ("chunk_index", "file_index"))
        path = self._info["video_path"].format(video_key=key, chunk_index=chunk, file_index=file)
        seconds = float(episode[f"videos/{key}/from_timestamp"]) + step / self._info["fps"]
        return self._videos.frame(self._folder / path, seconds)

    def _column(self, table, name: str) -> np.ndarray:
        column = table[name].combine_chunks()
        values = column.flatten() if hasattr(column, "flatten") else column  # vectors of one are stored as numbers
        return values.to_numpy().reshape(len(column), -1).astype(np.float32)


def make_batches(options: argparse.Namespace) -> Iterator[measure.Batch]:
    loader = torch.utils.data.DataLoader(
        Frames(Path(options.data), options.horizon),
        batch_size=options.batch,
        shuffle=True,
        drop_last=True,
        num_workers=options.workers,
        persistent_workers=True,
        timeout=120,
    )
    while True:
        for batch in loader:
            yield {name: value.numpy() for name, value in batch.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--horizon", type=int, default=16)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--warmup", type=int, required=True)
    parser.add_argument("--batches", type=int, required=True)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = measure.measure(lambda: make_batches(options), options.batch, options.warmup, options.batches)
    measure.report({**result, "torch": torch.__version__, "av": av.__version__})
