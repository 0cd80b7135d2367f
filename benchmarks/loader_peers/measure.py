"""What every side of benchmarks/loader.py measures, in its own process, with the standard library and numpy alone.

    report(measure(make_batches, batch_size, warmup, batches))

CPU time and memory are those of the process and all its descendants. A first batch is timed from before the pipeline
is built; the rate from after `warmup` batches to `batches` later, with whatever was prefetched at either end.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

Batch = dict[str, np.ndarray]  # exterior, wrist: uint8 b h w 3; state: float32 b s; actions: float32 b h a; instruction
_TICKS = os.sysconf("SC_CLK_TCK")
_PERIOD = 0.2  # seconds between looks at memory: a look takes a millisecond of CPU time


def processes() -> list[int]:
    """This process and all its descendants that live."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = _stat(int(name))
            if fields:
                parents.setdefault(int(fields[1]), []).append(int(name))
    found = [os.getpid()]
    for pid in found:
        found += parents.get(pid, [])
    return found


def cpu_seconds() -> float:
    """User and system time of the process tree so far, ended children included."""
    return sum(sum(map(int, fields[11:15])) for fields in map(_stat, processes()) if fields) / _TICKS


def memory_mb() -> tuple[float, float]:
    """Resident and anonymous memory of the process tree; the difference is pages of mapped files, which the kernel may
    take back at any time."""
    resident = anonymous = 0
    for pid in processes():
        try:
            with open(f"/proc/{pid}/status") as file:
                lines = dict(line.split(":", 1) for line in file)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended between two looks
        resident += int(lines.get("VmRSS", "0 kB").split()[0])
        anonymous += int(lines.get("RssAnon", "0 kB").split()[0])
    return resident / 1024, anonymous / 1024


class PeakMemory(threading.Thread):
    """The largest memory seen between start and stop."""

    def __init__(self):
        super().__init__(daemon=True)
        self.resident = self.anonymous = 0.0
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(_PERIOD):
            resident, anonymous = memory_mb()
            self.resident, self.anonymous = max(self.resident, resident), max(self.anonymous, anonymous)

    def stop(self) -> None:
        self._ended.set()
        self.join(timeout=5)


def measure(make_batches: Callable[[], Iterator[Batch]], batch_size: int, warmup: int, batches: int) -> dict:
    """Build the pipeline, take `warmup` batches, then time `batches`."""
    memory = PeakMemory()
    memory.start()
    start = time.perf_counter()
    stream = make_batches()
    first = next(stream)
    first_batch_s = time.perf_counter() - start
    for _ in range(warmup - 1):
        next(stream)
    cpu, wall = cpu_seconds(), time.perf_counter()
    for _ in range(batches):
        batch = next(stream)
    # At least one tick, the clock's resolution: a few small batches may fall between two.
    cpu, wall = max(cpu_seconds() - cpu, 1 / _TICKS), time.perf_counter() - wall
    memory.stop()
    frames = batches * batch_size
    return {
        "frames_per_s": frames / wall,
        "frames_per_cpu_s": frames / cpu,
        "first_batch_s": first_batch_s,
        "peak_rss_mb": memory.resident,
        "peak_anonymous_mb": memory.anonymous,
        "format": {name: [str(value.dtype), list(value.shape)] for name, value in sorted(first.items())},
        "image_means": [round(float(batch[name].mean()), 3) for name in ("exterior", "wrist")],
    }


def report(result: dict) -> None:
    """One line that the parent reads."""
    print("RESULT " + json.dumps(result), flush=True)


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/<pid>/stat after the command's name: state, parent, ... utime is field 11."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
