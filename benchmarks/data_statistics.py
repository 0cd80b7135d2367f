"""Normalization statistics of state and action columns: frames per second, and what DROID's 27M frames would take.

    python benchmarks/data_statistics.py --frames 4000000 --json results/benchmarks/data_statistics.json

Ours streams memory-mapped float32 columns (7 joints and a gripper each way). The peer works the way openpi's script
does: frame by frame out of a dataset of dicts, stacked to batches, histograms of 5000 bins over a range that grows
with the data. It runs on a sample, without pictures, which the real script decodes too; so the ratio is a lower bound.
"""

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np

from vla_jax.data import statistics

DROID_FRAMES = 27_000_000
_DIM, _BATCH = 8, 256


def write_columns(folder: Path, num_frames: int) -> dict[str, np.ndarray]:
    """Joint-like walks with rare spikes, written piece by piece and opened as memory maps."""
    rng, columns = np.random.default_rng(0), {}
    for name in ("state", "action"):
        path = folder / f"{name}.npy"
        column = np.lib.format.open_memmap(path, "w+", np.float32, (num_frames, _DIM))
        for start in range(0, num_frames, 1 << 20):
            rows = column[start : start + (1 << 20)]
            rows[...] = np.cumsum(rng.normal(scale=0.01, size=rows.shape), axis=0)
            rows[:, -1] = rng.random(len(rows)) > 0.5
            rows[rng.integers(0, len(rows), len(rows) // 10_000)] *= 100
        column.flush()
        columns[name] = np.load(path, mmap_mode="r")
    return columns


class GrowingHistograms:
    """The peer's statistics: moments by batch, and one histogram per dim that is spread again when its range grows."""

    num_bins = 5000

    def __init__(self) -> None:
        self.count = 0

    def update(self, batch: np.ndarray) -> None:
        low, high = batch.min(0), batch.max(0)
        if self.count == 0:
            self.mean, self.mean_square, self.low, self.high = batch.mean(0), (batch**2).mean(0), low, high
            self.edges = [np.linspace(a - 1e-10, b + 1e-10, self.num_bins + 1) for a, b in zip(low, high, strict=True)]
            self.histograms = np.zeros((batch.shape[1], self.num_bins))
        elif (low < self.low).any() or (high > self.high).any():
            self.low, self.high = np.minimum(low, self.low), np.maximum(high, self.high)
            for dim, old in enumerate(self.edges):
                self.edges[dim] = np.linspace(self.low[dim], self.high[dim], self.num_bins + 1)
                self.histograms[dim], _ = np.histogram(old[:-1], self.edges[dim], weights=self.histograms[dim])
        self.count += len(batch)
        share = len(batch) / self.count
        self.mean = self.mean + (batch.mean(0) - self.mean) * share
        self.mean_square = self.mean_square + ((batch**2).mean(0) - self.mean_square) * share
        for dim in range(batch.shape[1]):
            self.histograms[dim] += np.histogram(batch[:, dim], self.edges[dim])[0]


def stream(columns: dict[str, np.ndarray]) -> float:
    """Seconds for the statistics of all columns."""
    start = time.perf_counter()
    for column in columns.values():
        statistics.summarize(lambda frames, column=column: column[frames[0] : frames[-1] + 1], len(column)).finish()
    return time.perf_counter() - start


def frame_by_frame(columns: dict[str, np.ndarray], num_frames: int) -> float:
    """Seconds of the peer for the first `num_frames`."""
    start = time.perf_counter()
    histograms = {name: GrowingHistograms() for name in columns}
    for first in range(0, num_frames, _BATCH):
        items = [
            {name: np.asarray(column[i]) for name, column in columns.items()} for i in range(first, first + _BATCH)
        ]
        for name, histogram in histograms.items():
            histogram.update(np.stack([item[name] for item in items]))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=4_000_000)
    parser.add_argument("--sample", type=int, default=25_600, help="frames of the peer; a multiple of 256")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        columns = write_columns(Path(folder), options.frames)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds = [(stream(columns), frame_by_frame(columns, options.sample)) for _ in range(options.rounds)]
    ours_rate, peer_rate = (
        count / float(np.median(spent))
        for count, spent in zip((options.frames, options.sample), zip(*seconds, strict=True), strict=True)
    )
    ours = {
        "frames_per_s": ours_rate,
        "droid_27M_seconds": DROID_FRAMES / ours_rate,
        "extra_memory_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }
    peers = {"frame_by_frame_frames_per_s": peer_rate, "frame_by_frame_droid_27M_seconds": DROID_FRAMES / peer_rate}
    ratios = {"statistics_vs_frame_by_frame": ours_rate / peer_rate}
    for name, value in {**ours, **peers}.items():
        print(f"{name} {value:.1f}")
    for name, value in ratios.items():
        print(f"ratio {name} {value:.2f}")
    if options.json:
        machine = {"cpus": os.cpu_count(), "processor": platform.machine(), "load": os.getloadavg()[0]}
        result = {"ratios": ratios, "ours": ours, "peers": peers, "machine": machine}
        result["versions"] = {"python": platform.python_version(), "numpy": metadata.version("numpy")}
        result["settings"] = {name: value for name, value in vars(options).items() if name != "json"}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
