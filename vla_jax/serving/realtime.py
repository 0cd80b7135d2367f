"""Acting while the next chunk is being made: no pause between chunks, and no jump where they meet.

    tick           0 1 2 3 4 5 6 7 8 9       one per control step
    chunk asked    a a a a a a a a           at tick 0: its action i is for tick i
    next one             f f s s s n n n     asked at tick 3, arrived at tick 5: its first two are over before they come
    run            a a a a a s s ...

An action belongs to one tick and is worthless after it. Three ways to join chunks:

    switch    the newest chunk that covers the tick; where two disagree, the robot jumps
    ensemble  the mean of all chunks that cover it (ACT, arXiv 2304.13705), the oldest weighing most
    inpaint   as switch, but the next chunk is sampled so that it begins with what will have been run by then
              (real-time chunking, arXiv 2506.07339); the server does that, see `--realtime`

All time comes from a clock, so that delays can be simulated and staleness measured exactly.
"""

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Float

from vla_jax.core import errors
from vla_jax.serving.keys import FROZEN, PREVIOUS

Chunk = Float[np.ndarray, "h a"]
Message = Mapping[str, Any]
Infer = Callable[[Message], Chunk]  # for example lambda message: client.infer(message)["actions"]
Strategy = Literal["switch", "ensemble", "inpaint"]


@dataclasses.dataclass(frozen=True)
class RealTimeConfig:
    control_hz: float
    execution_horizon: int  # ticks after which the next chunk is asked for, at the earliest
    strategy: Strategy = "inpaint"
    ensemble_decay: float = 0.01  # weight of a chunk is exp(-this * its rank), the oldest first; ACT's m
    first_delay: int = 2  # ticks a chunk is taken to need before one was measured
    delay_window: int = 10  # the longest of so many delays is what the next chunk is taken to need

    def __post_init__(self):
        if self.control_hz <= 0 or min(self.execution_horizon, self.first_delay, self.delay_window) < 1:
            raise errors.ConfigError(
                "RealTimeConfig",
                expected="control_hz above 0; execution_horizon, first_delay and delay_window of 1 or more",
                found=self,
            )
        if self.strategy not in ("switch", "ensemble", "inpaint"):
            raise errors.ConfigError(
                "RealTimeConfig.strategy", expected="switch, ensemble or inpaint", found=repr(self.strategy)
            )


class ActionQueue:
    """Chunks by the tick of their first action. What is past its tick is dropped."""

    def __init__(self):
        self._chunks: list[tuple[int, Chunk]] = []  # in the order they came

    def push(self, first_tick: int, actions: Chunk) -> None:
        """A chunk whose action `i` is for tick `first_tick + i`."""
        self._chunks.append((first_tick, actions))

    def drop_before(self, tick: int) -> None:
        """Forget chunks that end before `tick`."""
        self._chunks = [(first, actions) for first, actions in self._chunks if first + len(actions) > tick]

    def remaining(self, tick: int) -> Chunk | None:
        """The newest chunk's actions from `tick` on."""
        covering = self._covering(tick)
        return covering[-1][1][tick - covering[-1][0] :] if covering else None

    def newest(self, tick: int) -> Float[np.ndarray, "a"] | None:
        """The newest chunk's action for `tick`."""
        left = self.remaining(tick)
        return None if left is None else left[0]

    def ensembled(self, tick: int, decay: float) -> Float[np.ndarray, "a"] | None:
        """The mean of all chunks' actions for `tick`, weighted `exp(-decay * rank)` from the oldest on."""
        covering = self._covering(tick)
        if not covering:
            return None
        weights = np.exp(-decay * np.arange(len(covering)))
        rows = np.stack([actions[tick - first] for first, actions in covering])
        return (weights[:, None] * rows).sum(0) / weights.sum()

    def first_tick(self, tick: int) -> int | None:
        """When the newest chunk that covers `tick` was asked for."""
        covering = self._covering(tick)
        return covering[-1][0] if covering else None

    def _covering(self, tick: int) -> list[tuple[int, Chunk]]:
        return [(first, actions) for first, actions in self._chunks if first <= tick < first + len(actions)]


class Predictor(Protocol):
    """Makes one chunk at a time, beside whoever asks."""

    @property
    def is_busy(self) -> bool: ...

    def start(self, message: Message) -> None: ...

    def poll(self) -> Chunk | None:
        """The chunk, once; None while it is not there. Raises what making it raised."""
        ...


class ThreadPredictor:
    """Calls `infer` in a thread; use it as a context manager. `infer` must end by itself, as a client's does."""

    def __init__(self, infer: Infer):
        self._infer, self._pool = infer, ThreadPoolExecutor(1, "predict")
        self._future: Future[Chunk] | None = None

    def __enter__(self) -> "ThreadPredictor":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def is_busy(self) -> bool:
        return self._future is not None

    def start(self, message: Message) -> None:
        self._future = self._pool.submit(self._infer, message)

    def poll(self) -> Chunk | None:
        if self._future is None or not self._future.done():
            return None
        future, self._future = self._future, None
        return future.result()


class SimulatedClock:
    """Seconds that pass when told to."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class SimulatedPredictor:
    """`infer` at once, its chunk handed out `latency(request number)` seconds later on a simulated clock."""

    def __init__(self, infer: Infer, latency: Callable[[int], float], clock: SimulatedClock):
        self._infer, self._latency, self._clock = infer, latency, clock
        self._due: tuple[float, Chunk] | None = None
        self.num_requests = 0

    @property
    def is_busy(self) -> bool:
        return self._due is not None

    def start(self, message: Message) -> None:
        self._due = (self._clock() + self._latency(self.num_requests), self._infer(message))
        self.num_requests += 1

    def poll(self) -> Chunk | None:
        if self._due is None or self._clock() < self._due[0]:
            return None
        chunk, self._due = self._due[1], None
        return chunk


@dataclasses.dataclass(frozen=True)
class Step:
    """What to do at one tick."""

    action: Float[np.ndarray, "a"] | None  # None: no chunk covers this tick; the robot should hold still
    tick: int
    staleness: int | None  # ticks since the observation behind it


class RealTimePlayer:
    """One action per control step, without waiting for the policy.

    Call `act` once per tick with what the robot sees just now; ticks that the caller misses are skipped. The first
    chunk takes its time too: until it is there, and whenever chunks come too late, `Step.action` is None.
    """

    def __init__(self, predictor: Predictor, config: RealTimeConfig, clock: Callable[[], float] = time.monotonic):
        self._predictor, self._config, self._clock = predictor, config, clock
        self._queue = ActionQueue()
        self._start = clock()
        self._asked: int | None = None  # tick of the last request
        self._is_obsolete = False  # what is being made belongs to the episode before
        self._delays: collections.deque[int] = collections.deque(maxlen=config.delay_window)

    @property
    def expected_delay(self) -> int:
        """Ticks that the next chunk is taken to need: the longest of the last ones, as in the paper's algorithm 1."""
        return max(self._delays, default=self._config.first_delay)

    def act(self, observation: Message) -> Step:
        """Take a chunk that has arrived, ask for the next one where it is time, and say what to do now."""
        # Half a tick of tolerance, so that a loop that wakes up a little early is not told the last tick again.
        tick = math.floor((self._clock() - self._start) * self._config.control_hz + 0.5)
        arrived = self._predictor.poll()
        if arrived is not None and self._is_obsolete:
            arrived, self._is_obsolete = None, False
        if arrived is not None:
            self._delays.append(tick - self._asked)
            self._queue.push(self._asked, arrived)
        self._queue.drop_before(tick)
        if self._is_time_to_ask(tick):
            self._predictor.start(self._message(observation, tick))
            self._asked = tick
        first = self._queue.first_tick(tick)
        return Step(self._action(tick), tick, None if first is None else tick - first)

    def reset(self) -> None:
        """A new episode: forget all chunks, also the one that is being made."""
        self._queue, self._start = ActionQueue(), self._clock()
        self._asked, self._is_obsolete = None, self._predictor.is_busy

    def _is_time_to_ask(self, tick: int) -> bool:
        if self._predictor.is_busy:
            return False
        is_due = self._asked is None or tick - self._asked >= self._config.execution_horizon
        return is_due or self._queue.remaining(tick) is None

    def _message(self, observation: Message, tick: int) -> Message:
        left = self._queue.remaining(tick)
        if self._config.strategy != "inpaint" or left is None:
            return observation
        return {**observation, PREVIOUS: left, FROZEN: min(self.expected_delay, len(left))}

    def _action(self, tick: int) -> Float[np.ndarray, "a"] | None:
        if self._config.strategy == "ensemble":
            return self._queue.ensembled(tick, self._config.ensemble_decay)
        return self._queue.newest(tick)
