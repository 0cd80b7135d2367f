"""SIGTERM and SIGINT as a question the loop asks, so that a run stops between two updates and saves."""

import signal
import threading
from types import FrameType
from typing import Any, Self

import jax
import numpy as np

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupts:
    """While entered, the first signal is remembered and the second acts as it did before.

    Outside the main thread Python delivers no signals; then nothing is installed.
    """

    def __init__(self):
        self._asked = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._reset()

    def agreed(self, *, now: bool) -> bool:
        """Whether to stop. Several processes compare only where `now` is true, at the same step in all of them."""
        if jax.process_count() == 1:
            return self._asked
        if not now:
            return False
        from jax.experimental import multihost_utils  # its import starts nothing in single-process runs

        return bool(np.any(multihost_utils.process_allgather(np.asarray(self._asked))))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        self._reset()

    def _reset(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
