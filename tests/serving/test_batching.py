import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from vla_jax.core import errors
from vla_jax.serving.batching import Batcher, BatchingConfig, time_to_wait

CONFIG = BatchingConfig(max_batch=4, latency_budget=0.02, max_waiting=6)
PATIENT = BatchingConfig(max_batch=4, latency_budget=30.0)


@pytest.mark.parametrize(
    "waiting, expected, oldest, seconds",
    [
        (4, 9, 0.0, 0.0),  # full
        (2, 2, 0.0, 0.0),  # all are here
        (1, 0, 0.0, 0.0),
        (1, 3, 0.005, 0.015),
        (3, 9, 0.05, 0.0),  # has waited long enough
    ],
)
def test_when_a_batch_leaves(waiting, expected, oldest, seconds):
    assert time_to_wait(waiting, expected, oldest, CONFIG) == pytest.approx(seconds)


class Device:
    """Doubles numbers; remembers the batches; may be held."""

    def __init__(self):
        self.batches, self.free = [], threading.Event()
        self.free.set()

    def run(self, items):
        assert self.free.wait(20)
        self.batches.append(list(items))
        if "broken" in items:
            raise RuntimeError("the device failed")
        return [errors.RequestError("actions") if item == "nan" else item * 2 for item in items], 0.5


def run(scenario, config=CONFIG, **options):
    """`scenario(batcher, device)` beside a working batcher, at most 20 s."""

    async def main():
        device = Device()
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(device.run, executor, config, **options)
            worker = asyncio.create_task(batcher.serve())
            try:
                async with asyncio.timeout(20):
                    return await scenario(batcher, device)
            finally:
                device.free.set()
                worker.cancel()

    return asyncio.run(main())


def test_requests_that_come_together_go_together():
    async def scenario(batcher, device):
        answers = await asyncio.gather(*[batcher.submit(i) for i in range(4)])
        assert [answer.result for answer in answers] == [0, 2, 4, 6]
        assert {(answer.batch_size, answer.device_seconds) for answer in answers} == {(4, 0.5)}
        assert device.batches == [[0, 1, 2, 3]]

    run(scenario, PATIENT)


def test_one_client_alone_does_not_wait():
    async def scenario(batcher, device):
        return (await batcher.submit(1)).result

    assert run(scenario, PATIENT, expected=lambda: 1) == 2


def test_a_batch_that_does_not_fill_leaves_after_its_budget():
    async def scenario(batcher, device):
        answers = await asyncio.gather(batcher.submit(1), batcher.submit(2))
        assert device.batches == [[1, 2]] and all(answer.queue_seconds >= 0.019 for answer in answers)

    run(scenario)


def test_requests_gather_while_the_device_is_busy_and_none_is_lost():
    async def scenario(batcher, device):
        device.free.clear()
        tasks = [asyncio.create_task(batcher.submit(i)) for i in range(4)]
        await asyncio.sleep(0.05)
        tasks += [asyncio.create_task(batcher.submit(i)) for i in range(4, 10)]
        await asyncio.sleep(0.05)
        assert batcher.depth == 6
        device.free.set()
        assert [answer.result for answer in await asyncio.gather(*tasks)] == [2 * i for i in range(10)]
        assert device.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]

    run(scenario)


def test_only_requests_of_one_kind_share_a_batch():
    async def scenario(batcher, device):
        answers = await asyncio.gather(*[batcher.submit(i) for i in (1, 2, 3, 4)])
        assert [answer.result for answer in answers] == [2, 4, 6, 8] and device.batches == [[1, 3], [2, 4]]

    run(scenario, kind=lambda item: item % 2)


def test_a_row_that_fails_takes_nobody_with_it():
    async def scenario(batcher, device):
        items = ["a", "broken", "nan", "b"]
        return await asyncio.gather(*[batcher.submit(item) for item in items], return_exceptions=True)

    first, broken, nan, last = run(scenario, PATIENT)
    assert (first.result, last.result) == ("aa", "bb")
    assert isinstance(broken, RuntimeError) and isinstance(nan, errors.RequestError)


def test_a_full_queue_refuses_at_once():
    async def scenario(batcher, device):
        device.free.clear()
        tasks = [asyncio.create_task(batcher.submit(i)) for i in range(4)]
        await asyncio.sleep(0.05)
        tasks += [asyncio.create_task(batcher.submit(i)) for i in range(6)]
        await asyncio.sleep(0)
        with pytest.raises(errors.RequestError, match="busy"):
            await batcher.submit(11)
        device.free.set()
        await asyncio.gather(*tasks)

    run(scenario)


def test_a_client_that_left_is_not_computed():
    async def scenario(batcher, device):
        device.free.clear()
        tasks = [asyncio.create_task(batcher.submit(i)) for i in range(4)]
        await asyncio.sleep(0.05)
        gone, stays = asyncio.create_task(batcher.submit(8)), asyncio.create_task(batcher.submit(9))
        await asyncio.sleep(0.01)
        gone.cancel()
        device.free.set()
        assert (await stays).result == 18
        await asyncio.gather(*tasks)
        assert device.batches[-1] == [9]

    run(scenario)


@pytest.mark.parametrize("fields", [dict(max_batch=0), dict(latency_budget=-1.0), dict(max_waiting=0)])
def test_impossible_settings_are_refused(fields):
    with pytest.raises(errors.ConfigError, match="BatchingConfig"):
        BatchingConfig(**fields)
