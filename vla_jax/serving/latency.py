"""Where the time between an observation and its actions goes.

    client  |----------------------- round trip -----------------------|
            | network |              total on the server       | network |
    server            | preprocessing | queue | device | the rest |

Device time ends when the actions are back on the host, not when the call returns, so it is what the device took. Only
the client sees the network: `round trip - total`, whatever the clocks of both machines say.
"""

import collections
import dataclasses
import threading
from collections.abc import Callable, Mapping

import numpy as np

PARTS = ("preprocessing", "queue", "device", "total")  # measured by the server, seconds
QUANTILES = (0.5, 0.95, 0.99)


@dataclasses.dataclass(frozen=True)
class Summary:
    """Of one part; seconds. The quantiles are of the last samples only."""

    count: int
    total: float
    quantiles: tuple[float, ...]  # in the order of QUANTILES


class LatencyMeter:
    """Durations by part; quantiles over the last `window` of each. Threads may share it."""

    def __init__(self, window: int = 4096):
        self._lock = threading.Lock()
        self._recent: dict[str, collections.deque[float]] = collections.defaultdict(
            lambda: collections.deque(maxlen=window)
        )
        self._count: collections.Counter[str] = collections.Counter()
        self._total: collections.Counter[str] = collections.Counter()

    def record(self, parts: Mapping[str, float]) -> None:
        """One duration in seconds for every part."""
        with self._lock:
            for part, seconds in parts.items():
                self._recent[part].append(seconds)
                self._count[part] += 1
                self._total[part] += seconds

    def summaries(self) -> dict[str, Summary]:
        """By part, those that were ever recorded."""
        with self._lock:
            recent = {part: np.array(values) for part, values in self._recent.items()}
            counts, totals = dict(self._count), dict(self._total)
        return {
            part: Summary(counts[part], totals[part], tuple(np.quantile(values, QUANTILES).tolist()))
            for part, values in recent.items()
        }

    def to_table(self) -> str:
        """Milliseconds as a Markdown table."""
        names = [f"p{round(100 * quantile)}" for quantile in QUANTILES]
        rows = [f"| part | {' | '.join(names)} | mean | count |", "|---|" + "---|" * (len(names) + 2)]
        for part, each in self.summaries().items():
            cells = [f"{1000 * value:.1f}" for value in (*each.quantiles, each.total / each.count)]
            rows.append(f"| {part} | {' | '.join(cells)} | {each.count} |")
        return "\n".join(rows)


def split(round_trip: float, server_timing: Mapping[str, float]) -> dict[str, float]:
    """One answer's parts in seconds, as the client saw it: the server's own (from `server_timing`, in ms), and
    `network`, what is left of `round_trip`."""
    parts = {part: server_timing[key] / 1000 for part, key in TIMING_KEYS.items() if key in server_timing}
    return {"network": max(0.0, round_trip - parts["total"]), **parts, "round trip": round_trip}


# Under `server_timing` in an answer; infer_ms is what openpi's clients look for.
TIMING_KEYS = {"preprocessing": "preprocess_ms", "queue": "queue_ms", "device": "infer_ms", "total": "total_ms"}


def measure(infer: Callable[[], Mapping], count: int, clock: Callable[[], float], *, warm_up: int = 3) -> LatencyMeter:
    """Ask `count` times, one after the other. `infer` is a call of the client and returns its answer."""
    meter = LatencyMeter(window=count)
    for i in range(warm_up + count):
        start = clock()
        answer = infer()
        seconds = clock() - start
        if i >= warm_up:
            meter.record(split(seconds, answer["server_timing"]))
    return meter
