"""Requests of several clients in one call of the device: whoever waits goes together, nobody waits long.

    submit --> waiting [r r g r] --take--> batch of one kind --run in a thread--> every client its own result
                        ^ the oldest waits at most `latency_budget` for company while the device is idle

A batch leaves as soon as it is full, the oldest request has waited its budget, or every client that is there has asked.
While the device is busy requests gather anyway, so under load batches fill up without any waiting.
"""

import asyncio
import dataclasses
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from typing import Any, Generic, TypeVar

from vla_jax.core import errors

Item = TypeVar("Item")
Result = TypeVar("Result")
Run = Callable[[Sequence[Item]], tuple[Sequence[Result | errors.VlaError], float]]  # results, device seconds


@dataclasses.dataclass(frozen=True)
class BatchingConfig:
    max_batch: int = 8
    latency_budget: float = 0.005  # seconds that a request may wait for company
    max_waiting: int = 64  # requests; more are refused at once, since their answers would come too late

    def __post_init__(self):
        if self.max_batch < 1 or self.latency_budget < 0 or self.max_waiting < 1:
            raise errors.ConfigError(
                "BatchingConfig",
                expected="max_batch and max_waiting of 1 or more, latency_budget of 0 or more",
                found=self,
            )


@dataclasses.dataclass(frozen=True)
class Answer(Generic[Result]):
    """A result and what it took."""

    result: Result
    queue_seconds: float  # from submit until its batch left
    device_seconds: float  # of the whole batch
    batch_size: int  # requests in it


def time_to_wait(waiting: int, expected: int, oldest: float, config: BatchingConfig) -> float:
    """Seconds until a batch should leave: 0 when it is full, when all `expected` clients are in it, or when the oldest
    request has waited its budget."""
    if waiting >= min(config.max_batch, max(expected, 1)):
        return 0.0
    return max(0.0, config.latency_budget - oldest)


@dataclasses.dataclass(eq=False)
class _Waiting:
    item: Any
    kind: Hashable
    since: float
    future: asyncio.Future


class Batcher(Generic[Item, Result]):
    """One queue in front of one device. `run` is called in `executor` with up to `max_batch` items of one kind."""

    def __init__(
        self,
        run: Run,
        executor: Executor,
        config: BatchingConfig,
        *,
        kind: Callable[[Item], Hashable] = lambda item: None,
        expected: Callable[[], int] = lambda: 1 << 30,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """`expected` counts the clients that may ask just now: with all of them waiting, nobody else can come."""
        self._run, self._executor, self._config = run, executor, config
        self._kind, self._expected, self._clock = kind, expected, clock
        self._waiting: list[_Waiting] = []
        self._arrival = asyncio.Event()

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    async def submit(self, item: Item) -> Answer[Result]:
        """The result of one item. Raises RequestError when the queue is full, and what `run` gave for this item."""
        if len(self._waiting) >= self._config.max_waiting:
            raise errors.RequestError(
                "busy: the server has no room for another request",
                expected=f"at most {self._config.max_waiting} waiting",
                fix="ask less often, or serve with larger batch sizes",
            )
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(item, self._kind(item), self._clock(), future))
        self._arrival.set()
        return await future

    async def serve(self) -> None:
        """Run batches until cancelled."""
        while True:
            self._arrival.clear()
            self._waiting = [each for each in self._waiting if not each.future.done()]  # clients that left meanwhile
            if not self._waiting:
                await self._arrival.wait()
                continue
            first = self._waiting[0]
            batch = [each for each in self._waiting if each.kind == first.kind][: self._config.max_batch]
            wait = time_to_wait(len(batch), self._expected(), self._clock() - first.since, self._config)
            if wait > 0:
                await _set_within(self._arrival, wait)
                continue
            self._waiting = [each for each in self._waiting if each not in batch]
            await self._answer(batch)

    async def _answer(self, batch: list[_Waiting]) -> None:
        left = self._clock()
        for each, outcome in zip(batch, await self._outcomes([each.item for each in batch]), strict=True):
            if each.future.done():
                continue
            result, seconds = outcome
            if isinstance(result, Exception):
                each.future.set_exception(result)
            else:
                each.future.set_result(Answer(result, left - each.since, seconds, len(batch)))

    async def _outcomes(self, items: list[Any]) -> list[tuple[Any, float]]:
        """A result or an exception for every item. Where a whole batch fails, every item is run alone, so that the one
        at fault takes nobody with it."""
        loop = asyncio.get_running_loop()
        try:
            results, seconds = await loop.run_in_executor(self._executor, self._run, items)
        except Exception as error:  # handed to whoever waits for it
            if len(items) == 1:
                return [(error, 0.0)]
            return [(await self._outcomes([item]))[0] for item in items]
        return [(result, seconds) for result in results]


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return  # nobody came: the batch leaves as it is
