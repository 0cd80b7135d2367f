import threading
import time

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.samplers.test_guided import two_chunks
from vla_jax.core import errors
from vla_jax.samplers.guided import GuidanceOptions, guided_euler, prefix_weights
from vla_jax.serving.realtime import (
    ActionQueue,
    RealTimeConfig,
    RealTimePlayer,
    SimulatedClock,
    SimulatedPredictor,
    ThreadPredictor,
)

HZ = 10.0


def tells_the_tick(horizon, messages=None):
    """A policy whose action for a tick is the tick itself, so that an action run at another tick shows."""

    def infer(message):
        if messages is not None:
            messages.append(message)
        return np.arange(message["tick"], message["tick"] + horizon, dtype=np.float32)[:, None]

    return infer


def play(infer, latency, config, num_ticks, period=1 / HZ):
    """The steps of a robot whose loop wakes up every `period` seconds."""
    clock = SimulatedClock()
    predictor = SimulatedPredictor(infer, latency, clock)
    player = RealTimePlayer(predictor, config, clock)
    steps = []
    for _ in range(num_ticks):
        tick = int(np.floor(clock() * HZ + 0.5))
        steps.append(player.act({"tick": tick}))
        clock.seconds += period
    return steps, player, predictor


strategies = st.sampled_from(["switch", "ensemble", "inpaint"])


@given(
    st.lists(st.floats(0, 1.5), min_size=1, max_size=20), st.integers(1, 8), st.integers(1, 6), strategies,
    st.floats(0.05, 0.3),
)  # fmt: skip
def test_every_action_is_run_at_its_own_tick_whatever_the_delays(
    latencies, horizon, execution_horizon, strategy, period
):
    config = RealTimeConfig(HZ, execution_horizon, strategy)
    steps, _, _ = play(tells_the_tick(horizon), lambda i: latencies[i % len(latencies)], config, 60, period)
    for step in steps:
        assert (step.action is None) == (step.staleness is None)
        if step.action is not None:
            assert step.action[0] == pytest.approx(step.tick) and 0 <= step.staleness < horizon


@pytest.mark.parametrize("delay, horizon, execution_horizon", [(2, 8, 4), (3, 6, 2), (3, 5, 2), (4, 8, 4), (4, 7, 4)])
def test_there_is_always_an_action_exactly_if_chunks_are_long_enough(delay, horizon, execution_horizon):
    """The next chunk is asked for `max(execution_horizon, delay)` ticks after the last and comes `delay` later; up to
    that tick the old one has to last."""
    steps, player, _ = play(
        tells_the_tick(horizon), lambda i: delay / HZ - 0.01, RealTimeConfig(HZ, execution_horizon, "switch"), 80
    )
    assert [step.action is None for step in steps[:delay]] == [True] * delay  # the first one takes its time
    is_long_enough = horizon >= max(execution_horizon, delay) + delay
    assert all(step.action is not None for step in steps[delay:]) == is_long_enough
    assert player.expected_delay == delay


def test_staleness_is_the_delay_and_then_grows_until_the_next_chunk():
    # delay 2, asked every 4 ticks: chunks are used from age 2 to age 5
    steps, _, predictor = play(tells_the_tick(8), lambda i: 0.19, RealTimeConfig(HZ, 4, "switch"), 22)
    assert [step.staleness for step in steps[2:]] == [2, 3, 4, 5] * 5
    assert predictor.num_requests == 6


def test_the_next_chunk_is_told_what_will_have_been_run():
    messages = []
    play(tells_the_tick(8, messages), lambda i: 0.19, RealTimeConfig(HZ, 4, "inpaint", first_delay=1), 10)
    first, second, third = messages
    assert first.keys() == {"tick"}
    assert second["tick"] == 4 and second["realtime/frozen"] == 2  # the delay that was measured
    np.testing.assert_array_equal(second["realtime/actions"][:, 0], [4, 5, 6, 7])
    np.testing.assert_array_equal(third["realtime/actions"][:, 0], [8, 9, 10, 11])


def test_the_longest_recent_delay_is_expected_and_an_old_one_forgotten():
    delays = [0.29, 0.09, 0.09, 0.09]
    config = RealTimeConfig(HZ, 4, "inpaint", delay_window=2)
    assert play(tells_the_tick(8), lambda i: delays[min(i, 3)], config, 7)[1].expected_delay == 3
    assert play(tells_the_tick(8), lambda i: delays[min(i, 3)], config, 30)[1].expected_delay == 1


def test_missed_ticks_are_skipped():
    steps, _, _ = play(tells_the_tick(8), lambda i: 0.0, RealTimeConfig(HZ, 2, "switch"), 10, period=0.3)
    assert [step.tick for step in steps] == list(range(0, 30, 3))
    assert [float(step.action[0]) for step in steps[1:]] == [step.tick for step in steps[1:]]


def test_chunks_are_ensembled_with_falling_weights():
    queue = ActionQueue()
    queue.push(0, np.array([[0.0], [1.0], [2.0]]))
    queue.push(1, np.array([[11.0], [12.0]]))
    # weights 1 and e^-0.5 of the older and the newer chunk
    expected = (1.0 + np.exp(-0.5) * 11) / (1 + np.exp(-0.5))
    np.testing.assert_allclose(queue.ensembled(1, 0.5), [expected])
    assert queue.ensembled(0, 0.5)[0] == 0 and queue.ensembled(3, 0.5) is None
    assert queue.newest(1)[0] == 11 and queue.remaining(2)[:, 0].tolist() == [12]
    queue.drop_before(3)
    assert queue.newest(2) is None


def test_a_new_episode_forgets_the_chunk_that_is_being_made():
    clock = SimulatedClock()
    predictor = SimulatedPredictor(lambda message: np.full((8, 1), message["episode"]), lambda i: 0.15, clock)
    player = RealTimePlayer(predictor, RealTimeConfig(HZ, 4, "switch"), clock)
    player.act({"episode": 1.0})
    player.reset()
    seen = []
    for _ in range(10):
        clock.seconds += 1 / HZ
        seen.append(player.act({"episode": 2.0}).action)
    assert seen[0] is None and {float(action[0]) for action in seen if action is not None} == {2.0}


@jax.jit
def sample(key, previous, weights):
    noise = jax.random.normal(key, (1, len(previous)))
    return guided_euler(key, two_chunks, noise, previous[None], weights[None], GuidanceOptions(20, 5.0))[0][0]


@pytest.mark.parametrize("strategy, jumps", [("switch", True), ("inpaint", False)])
def test_inpainting_keeps_to_the_chunk_that_was_begun(strategy, jumps):
    """The data are two ways, all +1 or all -1. Every new sample of the field may take either; a robot that switches
    between chunks turns around in the middle, one that inpaints goes on as it began."""
    horizon, keys = 8, iter(jax.random.split(jax.random.key(0), 100))

    def infer(message):
        left = message.get("realtime/actions", np.zeros((0, 1)))[:, 0]
        previous = np.pad(left, (0, horizon - len(left))).astype(np.float32)
        weights = prefix_weights(horizon, message.get("realtime/frozen", 0), len(left))
        return np.asarray(sample(next(keys), previous, weights))[:, None]

    steps, _, predictor = play(infer, lambda i: 0.19, RealTimeConfig(HZ, 3, strategy), 120)
    ways = np.sign([float(step.action[0]) for step in steps if step.action is not None])
    assert predictor.num_requests > 35 and len(ways) == 118
    assert (np.abs(np.diff(ways)).sum() > 0) == jumps


def test_a_thread_predicts_beside_the_loop_and_its_errors_are_raised():
    go = threading.Event()

    def infer(message):
        assert go.wait(20)
        if message["x"] < 0:
            raise errors.RequestError("x")
        return np.full((2, 1), message["x"])

    def result(predictor):
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if (chunk := predictor.poll()) is not None:
                return chunk
            time.sleep(0.002)
        raise AssertionError("nothing came")

    with ThreadPredictor(infer) as predictor:
        predictor.start({"x": 3.0})
        assert predictor.is_busy and predictor.poll() is None
        go.set()
        assert result(predictor)[0, 0] == 3 and not predictor.is_busy and predictor.poll() is None
        predictor.start({"x": -1.0})
        with pytest.raises(errors.RequestError, match="x"):
            result(predictor)
        assert not predictor.is_busy


@pytest.mark.parametrize(
    "fields", [dict(control_hz=0.0), dict(execution_horizon=0), dict(strategy="jump"), dict(delay_window=0)]
)
def test_impossible_settings_are_refused(fields):
    with pytest.raises(errors.ConfigError, match="RealTimeConfig"):
        RealTimeConfig(**{"control_hz": HZ, "execution_horizon": 2, **fields})
