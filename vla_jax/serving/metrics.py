"""What a server has done, as Prometheus reads it (text exposition format 0.0.4)."""

import collections
import threading
from collections.abc import Callable

from vla_jax.serving.latency import QUANTILES, LatencyMeter

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OUTCOMES = ("ok", "bad_request", "busy", "rate_limited", "too_slow", "internal_error")
_PREFIX = "vla_jax_"


class Metrics:
    """Counters, gauges and latencies of one server. Threads may share it."""

    def __init__(self):
        self.latency = LatencyMeter()
        self._lock = threading.Lock()
        self._requests: collections.Counter[str] = collections.Counter(dict.fromkeys(OUTCOMES, 0))
        self._refused: collections.Counter[str] = collections.Counter()
        self._batches = self._rows = 0
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}

    def count_request(self, outcome: str) -> None:
        """`outcome` is one of OUTCOMES."""
        with self._lock:
            self._requests[outcome] += 1

    def count_refused(self, reason: str) -> None:
        """A connection that was not let in."""
        with self._lock:
            self._refused[reason] += 1

    def count_batch(self, rows: int) -> None:
        with self._lock:
            self._batches += 1
            self._rows += rows

    def gauge(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        """A value that is read whenever someone looks."""
        self._gauges[name] = (meaning, read)

    def requests(self, outcome: str) -> int:
        return self._requests[outcome]

    def to_text(self) -> str:
        """All of it."""
        with self._lock:
            requests, refused = dict(self._requests), dict(self._refused)
            counts = {"batches_total": ("Calls of the device.", self._batches)}
            counts["batch_rows_total"] = ("Requests in these calls.", self._rows)
        lines = _family("requests_total", "counter", "Requests by what became of them.")
        lines += [_line("requests_total", {"outcome": outcome}, count) for outcome, count in requests.items()]
        lines += _family("connections_refused_total", "counter", "Connections that were not let in.")
        lines += [_line("connections_refused_total", {"reason": reason}, count) for reason, count in refused.items()]
        for name, (meaning, count) in counts.items():
            lines += [*_family(name, "counter", meaning), _line(name, {}, count)]
        for name, (meaning, read) in self._gauges.items():
            lines += [*_family(name, "gauge", meaning), _line(name, {}, read())]
        lines += _family("latency_seconds", "summary", "Time of a request by part; quantiles of the last 4096.")
        for part, each in self.latency.summaries().items():
            for quantile, seconds in zip(QUANTILES, each.quantiles, strict=True):
                lines.append(_line("latency_seconds", {"part": part, "quantile": f"{quantile:g}"}, seconds))
            lines.append(_line("latency_seconds_sum", {"part": part}, each.total))
            lines.append(_line("latency_seconds_count", {"part": part}, each.count))
        return "\n".join(lines) + "\n"


def _family(name: str, kind: str, meaning: str) -> list[str]:
    return [f"# HELP {_PREFIX}{name} {meaning}", f"# TYPE {_PREFIX}{name} {kind}"]


def _line(name: str, labels: dict[str, str], value: float) -> str:
    inside = ",".join(f'{label}="{text}"' for label, text in labels.items())
    return f"{_PREFIX}{name}{'{' + inside + '}' if inside else ''} {value!r}"
