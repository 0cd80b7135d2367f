"""The learner's end: a thread that takes rows of many actors and gives out parameters, while `fit` trains.

Rows are acknowledged when they are in the buffer, never before. Each actor gets only the newest version; one that is
slow skips versions and holds up nobody. See messages.py for the protocol.
"""

import asyncio
import contextlib
import dataclasses
import http
import logging
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from vla_jax.core import errors
from vla_jax.core.access import Access, bind
from vla_jax.core.types import Params, Transitions
from vla_jax.training.actor_learner import messages
from vla_jax.training.actor_learner.inbox import Inbox

_log = logging.getLogger(__name__)
_connection_log = logging.getLogger(f"{__name__}.connections")  # scanners and lost actors: no tracebacks
_connection_log.setLevel(logging.CRITICAL)
_INTERNAL, _REPLACED = 1011, 1001


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """Times in seconds."""

    port: int = 8100  # 0: any free one
    handshake_timeout: float = 10.0
    send_timeout: float = 60.0  # for one version of the parameters
    ping_interval: float = 10.0  # an actor that does not answer for as long again is gone
    max_message_bytes: int = 256 << 20  # of rows

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) <= 0 and field.name != "port":
                raise errors.ConfigError(
                    f"ServerConfig.{field.name}", expected="above 0", found=getattr(self, field.name)
                )


class LearnerServer:
    """Start it, publish, close it; actors come and go as they like."""

    def __init__(
        self, inbox: Inbox, row: Transitions, access: Access | None = None, config: ServerConfig | None = None
    ):
        """For rows like `row`. Raises ConfigError when the port cannot be had."""
        self.inbox, self.config = inbox, config or ServerConfig()
        self._row, self._access = row, access or Access()
        self._socket: socket.socket = bind(self._access.host, self.config.port)
        scheme = "wss" if self._access.tls else "ws"
        self.address = f"{scheme}://{self._access.host}:{self._socket.getsockname()[1]}"
        self._params: bytes | None = None
        self._version = -1
        self._actors: dict[str, ServerConnection] = {}
        self._is_new: dict[ServerConnection, asyncio.Event] = {}
        self._store = ThreadPoolExecutor(1, "rows")
        self._ready = threading.Event()
        self._failure: Exception | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._main, name="actors", daemon=True)

    def start(self) -> Self:
        self._thread.start()
        if not self._ready.wait(30):
            raise errors.TrainingError(f"{self.address}: the server for actors does not start")
        self.check()
        return self

    @property
    def num_actors(self) -> int:
        """That are connected now."""
        return len(self._actors)

    def publish(self, version: int, params: Params) -> None:
        """Give these parameters to every actor, from now on. `params` are copied before this returns."""
        self._params, self._version = messages.pack_params(version, params), version
        self._loop.call_soon_threadsafe(self._announce)

    def check(self) -> None:
        """Raise what ended the server, or kept rows from being stored: a learner must not train on without them."""
        if self._failure is not None:
            raise errors.TrainingError(
                f"{self.address}: rows of actors cannot be taken any more", found=repr(self._failure)
            ) from self._failure

    def close(self) -> None:
        """Let everybody go. Rows that were not acknowledged stay with their actors."""
        if self._thread.is_alive() and self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(30)
        self._socket.close()
        self._store.shutdown()

    # --- in the thread ------------------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:  # raised again in the learner's thread, by `check`
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        config = self.config
        async with serve(
            self._talk,
            sock=self._socket,
            ssl=self._access.tls,
            process_request=self._let_in,
            origins=[None],  # browsers name one: no web page may talk to a robot's learner
            compression=None,
            open_timeout=config.handshake_timeout,
            ping_interval=config.ping_interval,
            ping_timeout=config.ping_interval,
            close_timeout=1.0,
            max_size=config.max_message_bytes,
            server_header=None,
            logger=_connection_log,
        ):
            self._ready.set()
            await self._stop.wait()

    def _let_in(self, ws: ServerConnection, request: Request) -> Response | None:
        given = request.headers.get_all("Authorization")
        if not self._access.is_allowed(given[0] if len(given) == 1 else None):
            return ws.respond(http.HTTPStatus.UNAUTHORIZED, "Authorization: Api-Key KEY is missing or wrong\n")
        return None

    async def _talk(self, ws: ServerConnection) -> None:
        """One actor, from its hello to its last row."""
        name, sender = None, None
        try:
            name = await self._greet(ws)
            self._is_new[ws] = asyncio.Event()
            sender = asyncio.create_task(self._give(ws, self._is_new[ws]))
            async for message in ws:
                expected = await self._loop.run_in_executor(self._store, self._take, name, message)
                await ws.send(messages.pack("acknowledge", expected=expected))
        except (ConnectionClosed, TimeoutError):
            return  # it went; what was not acknowledged it still has
        except errors.VlaError as error:
            await self._refuse(ws, f"{type(error).__name__}: {error}")
        except Exception as error:
            _log.exception("rows were not stored, and not by the actor's fault")
            self._failure = error
            await self._refuse(ws, messages.INTERNAL_ERROR)
        finally:
            if sender is not None:
                sender.cancel()
            self._is_new.pop(ws, None)
            if self._actors.get(name) is ws:
                del self._actors[name]

    async def _greet(self, ws: ServerConnection) -> str:
        async with asyncio.timeout(self.config.handshake_timeout):
            hello = messages.unpack(await ws.recv(), "hello")
        name, ours = hello.get("actor"), messages.describe(self._row)
        if hello.get("protocol") != messages.PROTOCOL:
            raise errors.RequestError("hello: protocol", expected=messages.PROTOCOL, found=hello.get("protocol"))
        if not isinstance(name, str) or not name:
            raise errors.RequestError("hello: actor", expected="a name", found=repr(name)[:80])
        if hello.get("rows") != ours:
            raise errors.RequestError(
                f"actor {name!r} sends other rows than the learner stores",
                expected=ours,
                found=str(hello.get("rows"))[:2000],
                fix="start both from the same recipe and environment",
            )
        older = self._actors.get(name)
        self._actors[name] = ws
        if older is not None:  # a lost connection that nobody has noticed yet
            await older.close(_REPLACED, "the same actor has come again")
        await ws.send(messages.pack("welcome", expected=self.inbox.buffer.expected(name)))
        return name

    async def _give(self, ws: ServerConnection, is_new: asyncio.Event) -> None:
        """Every new version, or the newest of several, to one actor."""
        sent = None
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            while True:
                if self._params is not None and self._params is not sent:
                    sent = self._params
                    async with asyncio.timeout(self.config.send_timeout):
                        await ws.send(sent)
                await is_new.wait()
                is_new.clear()

    def _take(self, name: str, message: bytes | str) -> int:
        return self.inbox.accept(name, messages.unpack_rows(message, self._row))

    def _announce(self) -> None:
        for event in self._is_new.values():
            event.set()

    async def _refuse(self, ws: ServerConnection, reason: str) -> None:
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            async with asyncio.timeout(self.config.handshake_timeout):
                await ws.send(reason)
                await ws.close(_INTERNAL, reason.partition("\n")[0].encode()[:100].decode(errors="ignore"))
