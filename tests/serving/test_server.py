import contextlib
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import connect

from tests.serving.process import UPGRADE
from tests.serving.running import TIMEOUT, ask, running
from vla_jax.core import errors, wire
from vla_jax.core.access import Access, ApiKey, bind, make_access
from vla_jax.serving.batching import BatchingConfig
from vla_jax.serving.server import ServerConfig

KEY = "0123456789abcdef"
FIXTURES = Path(__file__).parent.parent / "fixtures"


def get(address, path, **headers):
    url = address.replace("ws", "http", 1) + path
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as answer:
        return answer.status, answer.read().decode(), answer.headers["Content-Type"]


def closed_with(ws):
    """The close code, once the rest is read."""
    with pytest.raises(ConnectionClosed):
        while True:
            ws.recv(timeout=TIMEOUT)
    return ws.close_code


@pytest.fixture(scope="module")
def shared():
    with running(max_request_bytes=10_000) as running_server:
        yield running_server


# --- the protocol -----------------------------------------------------------------------------------------------------


def test_actions_come_with_their_timing(shared):
    with shared.connect() as ws:
        first, second = ask(ws, {"x": 3.0}), ask(ws, {"x": 4})
    assert first["actions"].tolist() == [[6.0] * 3] * 4 and second["actions"].tolist() == [[8.0] * 3] * 4
    timing = first["server_timing"]
    assert timing.keys() == {"preprocess_ms", "queue_ms", "infer_ms", "total_ms"} and timing["infer_ms"] == 1.0
    parts = timing["preprocess_ms"] + timing["queue_ms"]
    assert 0 <= parts <= timing["total_ms"]
    assert second["server_timing"]["prev_total_ms"] >= timing["total_ms"]


@pytest.mark.parametrize(
    "message, field",
    [
        ({"y": 1}, "RequestError: x"),
        ("text", "RequestError: request"),
        (b"\xc1", "RequestError: request"),
        (b"", "RequestError: request"),
        (wire.pack({"x": 1, "picture": b"\0" * 20_000}), "most of it is 'picture'"),
    ],
)
def test_an_error_is_its_text_and_then_close_1011(shared, message, field):
    with shared.connect() as ws:
        answer = ask(ws, message)
        assert isinstance(answer, str) and field in answer.split("\n")[0]
        assert closed_with(ws) == 1011


def test_far_too_large_a_message_is_cut(shared):
    with shared.connect() as ws:
        with contextlib.suppress(ConnectionClosed):
            ws.send(b"\0" * 50_000)
        assert closed_with(ws) == 1009


def test_our_own_failure_is_told_without_its_inside(shared, caplog):
    with shared.connect() as ws:
        answer = ask(ws, {"x": -13})
        assert answer.startswith("internal error") and "device" not in answer and closed_with(ws) == 1011
    assert "the device failed" in caplog.text  # the log has it
    with shared.connect() as ws:
        assert ask(ws, {"x": 1})["actions"][0, 0] == 2


def test_a_message_in_pieces_is_one_message(shared):
    packed = wire.pack({"x": 5})
    with shared.connect() as ws:
        ws.send([packed[:2], packed[2:]])
        assert wire.unpack(ws.recv(timeout=TIMEOUT))["actions"][0, 0] == 10


def test_health_and_metrics_are_plain_http(shared):
    assert get(shared.address, "/healthz")[:2] == (200, "OK\n")
    with shared.connect() as ws:
        ask(ws, {"x": 1})
        status, text, kind = get(shared.address, "/metrics")
        assert status == 200 and kind.startswith("text/plain; version=0.0.4")
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert float(values["vla_jax_connections"]) == 1
        assert float(values['vla_jax_requests_total{outcome="ok"}']) >= 1
        assert float(values['vla_jax_latency_seconds{part="total",quantile="0.5"}']) > 0


def test_nobody_is_let_in_before_everything_is_ready():
    """The socket is bound early, so that a port that is taken is known before minutes of compiling, and listens late:
    until then a health check is refused, as a balancer wants it."""
    sock = bind("127.0.0.1", 0)
    address = f"ws://127.0.0.1:{sock.getsockname()[1]}"
    with pytest.raises(urllib.error.URLError, match="refused"):
        get(address, "/healthz")
    sock.close()
    with running() as ready:
        assert get(ready.address, "/healthz")[0] == 200


def test_web_pages_are_not_let_in(shared):
    with pytest.raises(InvalidStatus) as caught:
        connect(shared.address, origin="https://example.com", open_timeout=TIMEOUT)
    assert caught.value.response.status_code == 403


def test_garbage_on_the_socket_disturbs_nobody(shared):
    with shared.connect() as good:
        for garbage in (b"\0" * 100, b"GET / HTTP/1.1\r\n\r\n", b"POST / HTTP/1.1\r\n\r\n", os.urandom(500)):
            with shared.raw() as raw:
                raw.sendall(garbage)
        assert ask(good, {"x": 2})["actions"][0, 0] == 4


# --- who may come in --------------------------------------------------------------------------------------------------


def test_an_api_key_guards_everything_but_health():
    with running(access=Access(api_keys=(ApiKey("robot", KEY),))) as guarded:
        for headers in ({}, {"Authorization": "Api-Key wrong"}, {"Authorization": f"Bearer {KEY}"}):
            with pytest.raises(InvalidStatus) as caught:
                connect(guarded.address, additional_headers=headers, open_timeout=TIMEOUT)
            assert caught.value.response.status_code == 401
        with guarded.connect(additional_headers={"Authorization": f"Api-Key {KEY}"}) as ws:
            assert ask(ws, {"x": 1})["actions"][0, 0] == 2
        assert get(guarded.address, "/healthz")[0] == 200
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(guarded.address, "/metrics")
        assert (
            'refused_total{reason="api_key"} 4' in get(guarded.address, "/metrics", Authorization=f"Api-Key {KEY}")[1]
        )


def test_tls_by_a_certificate():
    access = make_access(
        "127.0.0.1", tls_certificate=str(FIXTURES / "localhost.pem"), tls_key=str(FIXTURES / "localhost.key")
    )
    trust = ssl.create_default_context(cafile=FIXTURES / "localhost.pem")
    with running(access=access) as secure:
        assert secure.address.startswith("wss://")
        with secure.connect(ssl=trust, server_hostname="localhost") as ws:
            assert ask(ws, {"x": 1})["actions"][0, 0] == 2
        with pytest.raises(ssl.SSLCertVerificationError):
            connect(secure.address, open_timeout=TIMEOUT)  # nobody else signed it
        with pytest.raises((OSError, WebSocketException)):
            connect(secure.address.replace("wss", "ws"), open_timeout=TIMEOUT)


def test_no_more_clients_than_there_is_room_for():
    with running(max_connections=2) as small, small.connect(), small.connect():
        with pytest.raises(InvalidStatus) as caught:
            small.connect()
        assert caught.value.response.status_code == 503


def test_a_client_over_its_rate_is_cut():
    with running(requests_per_second=0.01, burst=3) as limited, limited.connect() as ws:
        assert [ask(ws, {"x": 1})["actions"][0, 0] for _ in range(3)] == [2, 2, 2]
        assert "rate: too many requests from 127.0.0.1" in ask(ws, {"x": 1})
        with limited.connect() as again:  # coming back does not help
            assert "rate" in ask(again, {"x": 1})
        assert limited.server.metrics.requests("rate_limited") == 2


def test_the_rate_of_a_key_is_its_own_wherever_it_asks_from():
    keys = (ApiKey("arm", KEY), ApiKey("hand", KEY[::-1]))
    arm, hand = ({"Authorization": f"Api-Key {key.secret}"} for key in keys)
    access = Access(api_keys=keys)
    with running(access=access, requests_per_second=0.01, burst=2) as limited:
        with limited.connect(additional_headers=arm) as ws, limited.connect(additional_headers=arm) as again:
            assert ask(ws, {"x": 1})["actions"][0, 0] == ask(again, {"x": 1})["actions"][0, 0] == 2
            assert "rate: too many requests from API key 'arm'" in ask(ws, {"x": 1})
        with limited.connect(additional_headers=hand) as ws:  # from the same address
            assert ask(ws, {"x": 3})["actions"][0, 0] == 6


def test_a_port_that_is_taken_is_named(shared):
    with pytest.raises(errors.ConfigError, match=f"port {shared.port}"):
        taken = bind("127.0.0.1", shared.port)
        taken.listen()


@pytest.mark.parametrize("field", ["max_request_bytes", "idle_timeout", "drain_timeout", "requests_per_second"])
def test_impossible_limits_are_refused(field):
    with pytest.raises(errors.ConfigError, match=field):
        ServerConfig(**{field: 0})


# --- the slow ---------------------------------------------------------------------------------------------------------


def read_until_closed(raw):
    """Seconds until the server hangs up, and what it said."""
    start, said = time.monotonic(), b""
    with contextlib.suppress(ConnectionResetError):
        while piece := raw.recv(4096):
            said += piece
    return time.monotonic() - start, said


def test_the_slow_are_cut_and_the_quick_do_not_notice():
    """Every slow client is cut in the time that is set for its kind of slowness, while a quick one is answered."""
    impatient = dict(handshake_timeout=0.4, receive_timeout=0.4, send_timeout=0.4)
    with running(**impatient) as server_, server_.connect() as quick, contextlib.ExitStack() as stack:
        raws = [stack.enter_context(server_.raw()) for _ in range(4)]
        silent, half_frame, half_message, _no_pong = raws
        silent.sendall(UPGRADE[:20])  # never finishes its handshake
        for raw in raws[1:]:
            raw.sendall(UPGRADE)
        half_frame.sendall(b"\x82\xfe\x10\x00\0\0\0\0" + b"x" * 10)  # 10 bytes of a frame of 4096
        half_message.sendall(b"\x02\x84\0\0\0\0\x81\xa1x\x01")  # a first fragment, no last one
        assert ask(quick, {"x": 2})["actions"][0, 0] == 4
        for raw in raws:
            seconds, said = read_until_closed(raw)
            assert seconds < 10
            if raw is half_message:
                assert b"too slow: half a request" in said
        assert ask(quick, {"x": 3})["actions"][0, 0] == 6


def test_a_client_that_asks_nothing_is_sent_home():
    with running(idle_timeout=0.2) as server_, server_.connect() as ws:
        assert "too slow: no request" in ws.recv(timeout=TIMEOUT)
        assert server_.server.metrics.requests("too_slow") == 1


# --- leaving ----------------------------------------------------------------------------------------------------------


def test_a_drain_finishes_what_has_begun_and_lets_nobody_in():
    with running() as server_, server_.connect() as idle, server_.connect() as busy:
        server_.actor.free.clear()
        busy.send(wire.pack({"x": 21}))
        assert server_.actor.started.wait(TIMEOUT)
        server_.stop()
        assert closed_with(idle) == 1001
        with pytest.raises((OSError, InvalidStatus)):
            connect(server_.address, open_timeout=TIMEOUT)
        server_.actor.free.set()
        assert wire.unpack(busy.recv(timeout=TIMEOUT))["actions"][0, 0] == 42
        assert closed_with(busy) == 1001
        assert server_.finished.get(timeout=TIMEOUT) is True


def test_a_drain_ends_although_a_request_does_not():
    with running(drain_timeout=0.3) as server_, server_.connect() as busy:
        server_.actor.free.clear()
        busy.send(wire.pack({"x": 1}))
        assert server_.actor.started.wait(TIMEOUT)
        server_.stop()
        assert server_.finished.get(timeout=TIMEOUT) is False


SLOW_SERVER = """
import time
from tests.serving.running import Double, read
from vla_jax.serving import server
from vla_jax.core.access import Access, bind

class Slow(Double):
    def run(self, requests):
        print("started", flush=True)
        time.sleep(1.0)
        return super().run(requests)

serving = server.PolicyServer(read, Slow(), {}, Access(), server.ServerConfig(port=0))
finished = server.serve_until_signal(serving, bind("127.0.0.1", 0), lambda address: print(address, flush=True))
raise SystemExit(0 if finished else 1)
"""


def test_sigterm_drains_a_request_in_flight():
    root = Path(__file__).parent.parent.parent
    process = subprocess.Popen([sys.executable, "-c", SLOW_SERVER], stdout=subprocess.PIPE, text=True, cwd=root)
    watch = threading.Timer(60, process.kill)
    watch.start()
    try:
        with connect(process.stdout.readline().strip(), compression=None, open_timeout=TIMEOUT) as ws:
            ws.recv(timeout=TIMEOUT)
            ws.send(wire.pack({"x": 21}))
            assert process.stdout.readline() == "started\n"
            process.send_signal(signal.SIGTERM)
            assert wire.unpack(ws.recv(timeout=TIMEOUT))["actions"][0, 0] == 42
            assert closed_with(ws) == 1001
        assert process.wait(TIMEOUT) == 0
    finally:
        watch.cancel()
        process.kill()
        process.wait(TIMEOUT)
        process.stdout.close()


# --- together ---------------------------------------------------------------------------------------------------------


def test_clients_share_batches_and_get_their_own_answers():
    def client(number, found):
        with server_.connect() as ws:
            for x in range(100 * number, 100 * number + 20):
                assert ask(ws, {"x": x})["actions"][0, 0] == 2 * x
            found[number] = True

    found = {}
    with running(batching=BatchingConfig(4, 0.002, 64)) as server_:
        threads = [threading.Thread(target=client, args=(number, found), daemon=True) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)
    assert found == dict.fromkeys(range(8), True)
    assert sum(server_.actor.batches) == 160 and max(server_.actor.batches) == 4
