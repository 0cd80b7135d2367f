"""The whole command, from a checkpoint on disk to answers on a socket; the last test ends the server."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from tests.serving import process, toy_policy
from tests.serving.process import BINARY, TEXT, exchange
from tests.serving.running import ask
from vla_jax import cli
from vla_jax.core import wire
from vla_jax.data.open import open_dataset
from vla_jax.serving.client import ChunkPlayer, ClientConfig, PolicyClient
from vla_jax.serving.keys import RequestReader
from vla_jax.serving.recording import EpisodeRecorder

_LIMITS = ("--requests-per-second", "1e6", "--burst", "1e6", "--max-request-bytes", "20000")


@pytest.fixture(scope="module")
def served(checkpoint):
    options = ("--port", "0", "--batch-sizes", "1", "4", "--realtime", "True", "--latency-budget-ms", "1", *_LIMITS)
    with process.serve(checkpoint, *options) as running:
        yield running


@pytest.fixture(scope="module")
def examples(policy):
    """Requests, and what the policy answers without a server."""
    rng, reader = np.random.default_rng(0), RequestReader.of(policy)
    messages = [toy_policy.observation(rng, seed=i) for i in range(8)]
    return [(message, toy_policy.local_act(policy, reader.read(message), i)) for i, message in enumerate(messages)]


def same(actions, expected):
    return actions.dtype == np.float32 and np.allclose(actions, expected, rtol=1e-4, atol=1e-4)


def test_answers_are_those_of_the_policy(served, examples):
    with PolicyClient(served.address) as client:
        assert client.metadata["policy"] == "toy" and client.metadata["action_names"] == list(toy_policy.NAMES)
        assert client.metadata["action_horizon"] == toy_policy.HORIZON and client.metadata["control_hz"] == 20.0
        for message, expected in examples:
            assert same(client.infer(message)["actions"], expected)
        parts = client.latency.summaries()
        assert parts["device"].quantiles[0] > 0 and parts["network"].quantiles[0] > 0
        assert parts["round trip"].total >= parts["device"].total + parts["network"].total


def test_compressed_pictures_are_answered_nearly_the_same(served, examples):
    smooth = np.tile(np.linspace(0, 255, 16).astype(np.uint8)[:, None, None], (1, 16, 3))
    message = {**examples[0][0], "observation/base": smooth, "observation/wrist": smooth}
    with (
        PolicyClient(served.address) as plain,
        PolicyClient(served.address, config=ClientConfig(jpeg_quality=95)) as jpeg,
    ):
        whole, compressed = (client.infer(message)["actions"] for client in (plain, jpeg))
        assert np.abs(whole - compressed).mean() < 0.2 * np.abs(whole - examples[0][1]).mean()


def test_a_frozen_chunk_is_gone_on_from(served, examples):
    message, plain = examples[0]
    held = np.random.default_rng(1).uniform(-1, 1, (4, 3)).astype(np.float32)
    with PolicyClient(served.address) as client:
        guided = client.infer({**message, "realtime/actions": held, "realtime/frozen": 3})["actions"]
    assert np.abs(guided[:3] - held[:3]).mean() < 0.5 * np.abs(plain[:3] - held[:3]).mean()


def test_a_player_records_what_it_does_and_training_reads_it(served, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng, cameras = np.random.default_rng(2), {"observation/base": (16, 16), "observation/wrist": (16, 16)}
    with (
        PolicyClient(served.address) as client,
        EpisodeRecorder(tmp_path / "trials" / "1.0.0", cameras, 8, 3, metadata=client.metadata) as recorder,
    ):
        player = ChunkPlayer(client, execution_horizon=3, recorder=recorder)
        shown = [toy_policy.observation(rng, seed=1) for _ in range(7)]
        actions = [player.act(observation) for observation in shown]
        player.end_episode(is_success=True)
        assert client.latency.summaries()["total"].count == 3  # steps 0, 3 and 6
    data = open_dataset(tmp_path / "trials" / "1.0.0")
    assert np.diff(data.episode_starts).tolist() == [7]
    np.testing.assert_array_equal(data.columns["action"], actions)
    states = np.array([observation["observation/state"] for observation in shown], np.float32)
    np.testing.assert_array_equal(data.columns["observation/state"], states)
    pictures = np.empty((1, 16, 16, 3), np.uint8)
    assert data.read_images(np.array([6]), "observation/wrist", pictures).all()
    difference = pictures[0].astype(int) - shown[6]["observation/wrist"]  # JPEG keeps means, not noise
    assert abs(difference.mean()) < 4


def good_clients(served, examples, stop, faults, counts):
    """Ask until told to stop; note every answer that is not right."""
    with PolicyClient(served.address) as client:
        while not stop.is_set():
            for message, expected in examples:
                if not same(client.infer(message)["actions"], expected):
                    faults.append(message["seed"])
                counts.append(1)
    if client.num_reconnects:
        faults.append("lost its connection")


GOOD = toy_policy.observation(np.random.default_rng(9), seed=1)
FIELDS = sorted(set(GOOD) - {"seed"})
PACKED = wire.pack(GOOD)
nan_state = np.where(np.arange(8) == 3, np.nan, 1.0)
values = [None, True, "text", b"bytes", {}, [], {"a": 1}, [1, "x"], np.zeros((2, 2)), np.zeros((4, 4, 3)), nan_state]
values += [np.zeros(8, bool), np.full(8, np.inf), np.zeros(7), np.zeros((16, 16, 4), np.uint8), np.zeros(0, np.uint8)]
wrong_values = st.sampled_from(values)
broken_arrays = st.fixed_dictionaries(
    {
        b"__ndarray__": st.sampled_from([True, 1, None]),
        b"data": st.binary(max_size=32) | st.just("text"),
        b"dtype": st.sampled_from(["|O", "<f4", "|u1", "<U4", "|V8", "x", 3, "<c8"]),
        b"shape": st.lists(st.integers(-2, 2**40), max_size=3) | st.none(),
    }
)


def changed(field, value):
    """A good message but for one field, which comes first."""
    return wire.pack({field: value} | {key: GOOD[key] for key in FIELDS if key != field})


# (message, the field that its error must begin with; None where any answer is right)
named = st.tuples(st.sampled_from(FIELDS), wrong_values | broken_arrays).map(lambda each: (changed(*each), each[0]))
missing = st.sampled_from(FIELDS).map(
    lambda field: (wire.pack({key: value for key, value in GOOD.items() if key != field}), field)
)
truncated = st.integers(0, len(PACKED) - 1).map(lambda end: (PACKED[:end], ""))
oversized = st.integers(20_000, 60_000).map(lambda size: (wire.pack({**GOOD, "more": b"\0" * size}), "request"))
mutated = st.tuples(st.integers(0, len(PACKED) - 1), st.integers(0, 255)).map(
    lambda change: (PACKED[: change[0]] + bytes([change[1]]) + PACKED[change[0] + 1 :], None)
)
noise = st.binary(max_size=64).map(lambda data: (data, ""))
hostile = st.one_of(named, missing, truncated, oversized, mutated, noise)


def attack(port, message, field):
    kind, answer, code = exchange(port, message)
    if field == "prompt" and kind == BINARY:
        return None  # a text is a prompt
    if field is None and kind == BINARY:
        return None if np.isfinite(wire.unpack(answer)["actions"]).all() else "not finite"
    if kind != TEXT or code != 1011:
        return f"{field}: opcode {kind}, close code {code}"
    text = answer.decode()
    return None if field is None or text.startswith(f"RequestError: {field}") else f"{field}: {text}"


def test_no_message_disturbs_other_clients(served, examples):
    """Thousands of hostile messages from four clients at a time; two good ones get right answers all the while."""
    stop, faults, counts, sent = threading.Event(), [], [], []
    with ThreadPoolExecutor(6) as pool:
        good = [pool.submit(good_clients, served, examples, stop, faults, counts) for _ in range(2)]

        # No shrinking: a server cannot be asked hundreds of times again in the time that a test has.
        @settings(max_examples=90, database=None, derandomize=True, phases=[Phase.generate])
        @given(st.lists(hostile, min_size=24, max_size=36))
        def storm(messages):
            faults.extend(filter(None, pool.map(lambda each: attack(served.port, *each), messages, timeout=60)))
            sent.extend(messages)

        try:
            storm()
        finally:
            stop.set()
        for client in good:
            client.result(timeout=60)
    assert not faults and len(sent) >= 2500 and len(counts) >= 100, (faults, len(sent), len(counts))
    assert served.process.poll() is None


def test_sigterm_answers_what_it_has_begun_and_exits_with_0(served, examples):
    """The last test of this file: the server is gone after it."""
    answered, ends = [], []

    def client():
        with PolicyClient(served.address) as connection:
            ws = connection._connected()
            try:
                while True:
                    for message, expected in examples:
                        answered.append(same(ask(ws, message)["actions"], expected))
            except ConnectionClosed:
                ends.append(ws.close_code)

    threads = [threading.Thread(target=client, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while len(answered) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    code, printed = served.terminate()
    for thread in threads:
        thread.join(20)
    assert (code, ends) == (0, [1001] * 3), printed
    assert len(answered) >= 20 and all(answered) and printed.strip().endswith("stopped")


def test_what_cannot_be_served_is_said_before_anything_is_loaded(capsys, tmp_path):
    with pytest.raises(SystemExit):
        cli.main(["serve", str(tmp_path), "--host", "0.0.0.0", "--port", "0"])
    assert "can be reached from other machines" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["serve", str(tmp_path), "--port", "0"])
    assert "no checkpoint" in capsys.readouterr().err
