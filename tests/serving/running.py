"""A policy server in a thread of this process, with a stand-in for policy and device; nothing waits for ever."""

import asyncio
import contextlib
import dataclasses
import queue
import socket
import threading
from typing import Any

import numpy as np
from websockets.sync.client import connect

from vla_jax.core import errors, wire
from vla_jax.core.access import Access, bind
from vla_jax.serving.server import PolicyServer, ServerConfig

TIMEOUT = 20  # seconds: far above what anything here takes
METADATA = {"policy": "double", "execution_horizon": 2}
_FAST = ServerConfig(port=0, requests_per_second=1e6, burst=1e6, drain_timeout=5.0)


class Double:
    """Answers [2x, 2x, ...] to a request with the number x; `free` holds it back."""

    def __init__(self):
        self.free, self.started, self.batches = threading.Event(), threading.Event(), []
        self.free.set()

    def kind(self, request):
        return False

    def run(self, requests):
        self.started.set()
        assert self.free.wait(TIMEOUT)
        self.batches.append(len(requests))
        if any(request["x"] == -13 for request in requests):
            raise RuntimeError("the device failed")
        return [np.full((4, 3), 2 * request["x"], np.float32) for request in requests], 0.001


def read(message):
    if not isinstance(message.get("x"), int | float):
        raise errors.RequestError("x", expected="a number", found=type(message.get("x")).__name__)
    return message


@dataclasses.dataclass
class Running:
    address: str
    server: PolicyServer
    actor: Double
    stop: Any  # call it to begin the drain
    finished: "queue.Queue[bool]"

    @property
    def port(self):
        return int(self.address.rpartition(":")[2])

    def connect(self, **options):
        """A connection that has its greeting."""
        ws = connect(self.address, compression=None, open_timeout=TIMEOUT, close_timeout=2, **options)
        assert wire.unpack(ws.recv(timeout=TIMEOUT)) == METADATA
        return ws

    def raw(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT)


@contextlib.contextmanager
def running(config=None, access=None, batching=None, actor=None, port=0, read=read, metadata=METADATA, **changes):
    """`changes` are fields of the config."""
    actor, access = actor or Double(), access or Access()
    free = getattr(actor, "free", threading.Event())
    serving = PolicyServer(read, actor, metadata, access, dataclasses.replace(config or _FAST, **changes), batching)
    sock, ready, finished = bind("127.0.0.1", port), queue.Queue(), queue.Queue()

    async def main():
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        on_ready = lambda address: ready.put((address, lambda: loop.call_soon_threadsafe(stop.set)))  # noqa: E731
        finished.put(await serving.run(sock, on_ready, stop=stop))

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    address, stop = ready.get(timeout=TIMEOUT)
    try:
        yield Running(address, serving, actor, stop, finished)
    finally:
        free.set()
        with contextlib.suppress(RuntimeError):  # the test has stopped it: its loop is closed
            stop()
        thread.join(TIMEOUT)
        sock.close()
        assert not thread.is_alive()


def ask(ws, message):
    """The answer: a dict, or the text of an error."""
    ws.send(message if isinstance(message, bytes | str) else wire.pack(message))
    answer = ws.recv(timeout=TIMEOUT)
    return answer if isinstance(answer, str) else wire.unpack(answer)
