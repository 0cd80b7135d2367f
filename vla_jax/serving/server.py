"""The policy server: openpi's websocket protocol in front of a trained policy.

    client                             server
      | -- GET / upgrade, API key -------> |
      | <-- metadata, binary ------------- |   msgpack map, see wire.py
      | -- observation, binary ----------> |   read in a thread -> batcher -> device
      | <-- actions, server_timing ------- |   binary; or on an error its text, then close 1011
      | ...                                |
    GET /healthz -> 200 OK     GET /metrics -> Prometheus text

Nothing is compiled once it listens. SIGTERM and SIGINT drain it: it stops listening, finishes the requests that have
arrived, closes everybody with 1001 and ends.
"""

import asyncio
import contextlib
import dataclasses
import http
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from vla_jax.core import errors, wire
from vla_jax.core.access import Access, RateLimit
from vla_jax.serving.acting import Chunk
from vla_jax.serving.batching import Answer, Batcher, BatchingConfig
from vla_jax.serving.keys import Request
from vla_jax.serving.latency import TIMING_KEYS
from vla_jax.serving.metrics import CONTENT_TYPE, Metrics

_log = logging.getLogger(__name__)
_connection_log = logging.getLogger(f"{__name__}.connections")  # scanners and lost clients: counted, no tracebacks
_connection_log.setLevel(logging.CRITICAL)
_INTERNAL, _GOING_AWAY = 1011, 1001  # close codes of RFC 6455
_HARD_LIMIT = 4  # times max_request_bytes: up to there the client is told which field is too large, beyond it is cut


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """Limits on what clients may cost. Times in seconds."""

    port: int = 8000  # 0: any free one
    max_request_bytes: int = 16 << 20
    max_connections: int = 64
    requests_per_second: float = 200.0  # of one API key, or of one address where there are no keys
    burst: float = 200.0  # of its requests at once
    handshake_timeout: float = 5.0
    receive_timeout: float = 10.0  # for a request whose first part has come, and for a client to prove it is there
    send_timeout: float = 10.0
    idle_timeout: float = 600.0  # between two requests
    drain_timeout: float = 20.0  # for what has begun when the server is told to stop

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) <= 0 and field.name != "port":
                raise errors.ConfigError(
                    f"ServerConfig.{field.name}", expected="above 0", found=getattr(self, field.name)
                )


class Actor(Protocol):
    """What the server asks of `BatchActor`."""

    def kind(self, request: Request) -> Any: ...

    def run(self, requests: Sequence[Request]) -> tuple[Sequence[Chunk | errors.VlaError], float]: ...


class PolicyServer:
    """One policy, many clients.

    `read` makes a request of a message (`RequestReader.read`); `metadata` is what clients are told on connecting.
    """

    def __init__(
        self,
        read: Callable[[Mapping[str, wire.Value]], Request],
        actor: Actor,
        metadata: Mapping[str, Any],
        access: Access,
        config: ServerConfig | None = None,
        batching: BatchingConfig | None = None,
    ):
        self.config, self.metrics = config or ServerConfig(), Metrics()
        self._read, self._actor, self._access = read, actor, access
        self._greeting = wire.pack(dict(metadata))
        self._batching = batching or BatchingConfig()
        self._limits = wire.Limits(max_bytes=self.config.max_request_bytes)
        self._rate = RateLimit(self.config.requests_per_second, self.config.burst)
        self._connections: set[ServerConnection] = set()
        self._busy: set[ServerConnection] = set()
        self._is_draining = False
        self._readers = ThreadPoolExecutor(2, "read")
        self._device = ThreadPoolExecutor(1, "device")

    async def run(self, sock: socket.socket, on_ready: Callable[[str], None], *, stop: asyncio.Event) -> bool:
        """Serve on a bound socket until `stop` is set, then drain. Returns whether all that had begun was finished."""
        self._batcher = Batcher(
            self._run,
            self._device,
            self._batching,
            kind=self._actor.kind,
            expected=lambda: len(self._connections),
        )
        self.metrics.gauge("connections", "Clients that are connected.", lambda: len(self._connections))
        self.metrics.gauge("queue_depth", "Requests that wait for the device.", lambda: self._batcher.depth)
        config = self.config
        async with contextlib.AsyncExitStack() as stack:
            server = await serve(
                self._talk,
                sock=sock,
                ssl=self._access.tls,
                process_request=self._let_in,
                origins=[None],  # browsers name one: no web page may talk to a robot's server
                compression=None,
                open_timeout=config.handshake_timeout,
                ping_interval=config.receive_timeout,
                ping_timeout=config.receive_timeout,
                close_timeout=config.send_timeout,
                max_size=_HARD_LIMIT * config.max_request_bytes,
                max_queue=2,
                server_header=None,
                logger=_connection_log,
            )
            stack.callback(server.close)
            worker = asyncio.create_task(self._batcher.serve())
            stack.callback(worker.cancel)
            scheme = "wss" if self._access.tls else "ws"
            on_ready(f"{scheme}://{self._access.host}:{sock.getsockname()[1]}")
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait([stopped, worker], return_when=asyncio.FIRST_COMPLETED)
            if worker.done():
                worker.result()  # raises what ended it
            return await self._drain(server)

    async def _drain(self, server: Server) -> bool:
        self._is_draining = True
        server.close(close_connections=False)
        idle = [self._leave(ws) for ws in self._connections - self._busy]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.drain_timeout):
                await asyncio.gather(*idle)
                while self._connections:
                    await asyncio.sleep(0.01)
        return not self._connections

    async def _leave(self, ws: ServerConnection) -> None:
        await ws.close(_GOING_AWAY, "the server stops")

    # --- coming in ----------------------------------------------------------------------------------------------------

    def _let_in(self, ws: ServerConnection, request: HttpRequest) -> Response | None:
        """The answer to plain HTTP, a refusal, or None: go on to the websocket."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return ws.respond(http.HTTPStatus.OK, "OK\n")
        if not self._access.is_allowed(_only(request.headers, "Authorization")):
            self.metrics.count_refused("api_key")
            return ws.respond(http.HTTPStatus.UNAUTHORIZED, "Authorization: Api-Key KEY is missing or wrong\n")
        if path == "/metrics":
            body = self.metrics.to_text().encode()
            headers = Headers({"Content-Type": CONTENT_TYPE, "Content-Length": str(len(body)), "Connection": "close"})
            return Response(http.HTTPStatus.OK.value, http.HTTPStatus.OK.phrase, headers, body)
        if len(self._connections) >= self.config.max_connections:
            self.metrics.count_refused("full")
            return ws.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "too many clients\n")
        return None

    # --- talking ------------------------------------------------------------------------------------------------------

    async def _talk(self, ws: ServerConnection) -> None:
        """One client from its first to its last message."""
        self._connections.add(ws)
        try:
            await self._send(ws, self._greeting)
            previous_total, client = None, self._client(ws)
            while not self._is_draining:
                message = await self._receive(ws)
                self._busy.add(ws)
                previous_total = await self._answer(ws, message, client, previous_total)
                self._busy.discard(ws)
            await self._leave(ws)
        except ConnectionClosed:
            return  # the client went, or was cut by a limit of the protocol
        except _TooSlow as slow:
            self.metrics.count_request("too_slow")
            await self._refuse(ws, str(slow))
        except errors.VlaError as error:
            self.metrics.count_request(_outcome(error))
            await self._refuse(ws, f"{type(error).__name__}: {error}")
        except Exception:
            self.metrics.count_request("internal_error")
            _log.exception("a request failed, and not by the client's fault")
            await self._refuse(ws, "internal error: see the server's log")
        finally:
            self._connections.discard(ws)
            self._busy.discard(ws)

    async def _answer(
        self, ws: ServerConnection, message: str | bytes, client: str, previous_total: float | None
    ) -> float:
        """One request. Returns the milliseconds it took, which openpi's clients get with the next answer."""
        start = time.perf_counter()
        if not self._rate.take(client):
            raise _RateLimited(
                f"rate: too many requests from {client}",
                expected=f"at most {self.config.requests_per_second:g} per second",
            )
        if isinstance(message, str):
            raise errors.RequestError("request", expected="a binary message, msgpack", found="a text message")
        loop = asyncio.get_running_loop()
        request = await loop.run_in_executor(self._readers, self._parse, message)
        preprocessing = time.perf_counter() - start
        answer = await self._batcher.submit(request)
        if isinstance(answer.result, errors.VlaError):
            raise answer.result
        parts = {"preprocessing": preprocessing, **_parts(answer), "total": time.perf_counter() - start}
        timing = {TIMING_KEYS[part]: 1000 * seconds for part, seconds in parts.items()}
        if previous_total is not None:
            timing["prev_total_ms"] = previous_total
        await self._send(ws, wire.pack({"actions": answer.result, "server_timing": timing}))
        self.metrics.count_request("ok")
        self.metrics.latency.record(parts)
        return 1000 * (time.perf_counter() - start)

    def _run(self, requests: Sequence[Request]) -> tuple[Sequence[Chunk | errors.VlaError], float]:
        self.metrics.count_batch(len(requests))
        return self._actor.run(requests)

    def _parse(self, message: bytes) -> Request:
        return self._read(wire.unpack(message, self._limits))

    def _client(self, ws: ServerConnection) -> str:
        """Whose requests count together: the holder of an API key, wherever it asks from, else an address."""
        holder = self._access.holder(_only(ws.request.headers, "Authorization"))
        if holder is not None:
            return f"API key {holder!r}"
        return str(ws.remote_address[0]) if ws.remote_address else "unknown"

    async def _receive(self, ws: ServerConnection) -> str | bytes:
        """One whole message. A client that sends it piece by piece gets `receive_timeout` from its first piece on."""
        pieces = ws.recv_streaming()
        whole = await _within(self.config.idle_timeout, anext(pieces), "no request")
        rest = await _within(self.config.receive_timeout, _all(pieces), "half a request")
        return whole if not rest else whole + ("" if isinstance(whole, str) else b"").join(rest)

    async def _send(self, ws: ServerConnection, message: str | bytes) -> None:
        await _within(self.config.send_timeout, ws.send(message), "an answer not taken")

    async def _refuse(self, ws: ServerConnection, reason: str) -> None:
        """An error as openpi's clients expect it: its text, then close 1011."""
        with contextlib.suppress(ConnectionClosed, _TooSlow):
            await self._send(ws, reason)
            await ws.close(_INTERNAL, reason.partition("\n")[0].encode()[:100].decode(errors="ignore"))


class _TooSlow(Exception):
    pass


class _RateLimited(errors.RequestError):
    pass


async def _within(seconds: float, awaitable: Awaitable[Any], what: str) -> Any:
    try:
        async with asyncio.timeout(seconds):
            return await awaitable
    except TimeoutError:
        raise _TooSlow(f"too slow: {what} for {seconds:g} s") from None


async def _all(pieces: AsyncIterator[str | bytes]) -> list[str | bytes]:
    return [piece async for piece in pieces]


def _parts(answer: Answer[Chunk]) -> dict[str, float]:
    return {"queue": answer.queue_seconds, "device": answer.device_seconds}


def _outcome(error: errors.VlaError) -> str:
    if isinstance(error, _RateLimited):
        return "rate_limited"
    return "busy" if error.place.startswith("busy") else "bad_request"


def _only(headers: Headers, name: str) -> str | None:
    """The header, if it is there once."""
    values = headers.get_all(name)
    return values[0] if len(values) == 1 else None


def serve_until_signal(server: PolicyServer, sock: socket.socket, on_ready: Callable[[str], None]) -> bool:
    """Run until SIGTERM or SIGINT, then drain. Returns whether all that had begun was finished."""

    async def main() -> bool:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        return await server.run(sock, on_ready, stop=stop)

    return asyncio.run(main())
