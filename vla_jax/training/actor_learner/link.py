"""The actor's end of the connection, in a thread of its own, and the loop that acts over it.

    spool, link = Spool(row, folder), ActorLink(address, "arm-1", spool)
    with link:
        run(actor, link, spool)

The robot never waits for the network: it acts with the newest parameters that have come, and its rows wait in the spool
until the learner has them. A learner that is away is tried again for as long as it takes.
"""

import asyncio
import contextlib
import random
import ssl
import threading
import time
from collections.abc import Callable
from typing import Self

import jax
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from vla_jax.core import errors
from vla_jax.core.backoff import Backoff
from vla_jax.core.types import Params, Transitions
from vla_jax.training.actor_learner import messages
from vla_jax.training.actor_learner.actor import Actor
from vla_jax.training.actor_learner.spool import Spool

_LOST = (ConnectionClosed, OSError, TimeoutError, InvalidHandshake)
_NEVER = (401, 403, 404)  # HTTP answers that trying again does not change


class ActorLink:
    """Parameters in, rows out. Use it as a context, or call `start` and `close`."""

    def __init__(
        self,
        address: str,
        name: str,
        row: Transitions,
        spool: Spool,
        *,
        api_key: str | None = None,
        tls: ssl.SSLContext | None = None,
        assemble: Callable[[Params], Params] = lambda published: published,
        backoff: Backoff | None = None,
        timeout: float = 30.0,
    ):
        """`name` is the actor's own: two of one name push each other out. `assemble` makes what acts of what is
        published, where the learner leaves out what never changes. `timeout` in seconds, of a welcome and of an
        acknowledgement."""
        self.address, self.name, self.num_connections = address, name, 0
        self._row, self._spool, self._tls, self._timeout = row, spool, tls, timeout
        self._headers = {"Authorization": f"Api-Key {api_key}"} if api_key else {}
        self._assemble, self._backoff = assemble, backoff or Backoff()
        self._failure: BaseException | None = None
        self._latest: tuple[int, Params] | None = None
        self._changed = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._has_rows, self._stop = asyncio.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._main, name=f"link of {name}", daemon=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> Self:
        self._thread.start()
        return self

    def latest(self, timeout: float) -> tuple[int, Params]:
        """The newest version and its parameters, on the device; waits only for the first. Raises RequestError when none
        comes in time, or when the learner refused this actor."""
        with self._changed:
            self._changed.wait_for(lambda: self._latest is not None or self._failure is not None, timeout)
            self.check()
            if self._latest is None:
                raise errors.RequestError(
                    f"{self.address}: no parameters",
                    expected="a learner that publishes them",
                    found=f"none in {timeout:g} s",
                    fix="check that it runs and can be reached",
                )
            return self._latest

    def wake(self) -> None:
        """There are new rows in the spool."""
        self._call(self._has_rows.set)

    def drain(self, timeout: float) -> bool:
        """Wait until every row is acknowledged; whether they are."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._spool) == 0 or self._failure is not None, timeout)

    def check(self) -> None:
        """Raise what ended the link for good."""
        if isinstance(self._failure, errors.VlaError):
            raise self._failure
        if self._failure is not None:
            raise errors.RequestError(f"{self.address}: the link broke", found=repr(self._failure)) from self._failure

    def close(self) -> None:
        """Let go, without waiting for rows that are not acknowledged."""
        self._call(self._stop.set)
        self._thread.join(10)

    # --- in the thread ------------------------------------------------------------------------------------------------

    def _call(self, function: Callable[[], None]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just ended
                self._loop.call_soon_threadsafe(function)

    def _main(self) -> None:
        try:
            asyncio.run(self._stay())
        except Exception as error:  # raised again in the actor's thread, by `check`
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    async def _stay(self) -> None:
        self._loop = asyncio.get_running_loop()
        stop, attempt = asyncio.create_task(self._stop.wait()), 0
        while not stop.done():
            started = time.monotonic()
            session = asyncio.create_task(self._session())
            await asyncio.wait([stop, session], return_when=asyncio.FIRST_COMPLETED)
            if stop.done():
                session.cancel()
                await asyncio.gather(session, return_exceptions=True)
                return
            error = session.exception()
            if not isinstance(error, _LOST):
                raise error or errors.RequestError(f"{self.address}: the session ended by itself")
            if isinstance(error, InvalidStatus) and error.response.status_code in _NEVER:
                raise errors.RequestError(f"{self.address}: refused", found=error, fix="check address and API key")
            attempt = 1 if time.monotonic() - started > self._backoff.longest else attempt + 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(stop), self._backoff.wait(attempt, random.random()))

    async def _session(self) -> None:
        """One connection, until it is lost."""
        async with connect(
            self.address,
            additional_headers=self._headers,
            ssl=self._tls,
            compression=None,
            max_size=messages.LIMITS.max_bytes,
            open_timeout=self._timeout,
            close_timeout=1.0,
        ) as ws:
            columns = messages.describe(self._row)
            await ws.send(messages.pack("hello", actor=self.name, protocol=messages.PROTOCOL, rows=columns))
            async with asyncio.timeout(self._timeout):
                welcome = self._read(await ws.recv(), "welcome")
            self.num_connections += 1
            self._acknowledge(welcome["expected"])
            acknowledged = asyncio.Event()
            tasks = [
                asyncio.create_task(self._receive(ws, acknowledged)),
                asyncio.create_task(self._send(ws, acknowledged)),
            ]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _receive(self, ws: ClientConnection, acknowledged: asyncio.Event) -> None:
        async for message in ws:
            fields = self._read(message, "params", "acknowledge")
            if fields["kind"] == "acknowledge":
                self._acknowledge(fields["expected"])
                acknowledged.set()
            else:
                version, params = messages.unpack_params(fields)
                placed = self._assemble(jax.device_put(params))
                with self._changed:
                    self._latest = (version, placed)
                    self._changed.notify_all()
        raise ConnectionResetError("the learner closed the connection")

    async def _send(self, ws: ClientConnection, acknowledged: asyncio.Event) -> None:
        """The oldest rows, and the next ones when they are acknowledged."""
        while True:
            self._has_rows.clear()
            rows = self._spool.batch()
            if rows is None:
                await self._has_rows.wait()
                continue
            acknowledged.clear()
            await ws.send(messages.pack_rows(rows))
            async with asyncio.timeout(self._timeout):
                await acknowledged.wait()

    def _acknowledge(self, expected: int) -> None:
        with self._changed:
            self._spool.acknowledge(expected)
            self._changed.notify_all()

    def _read(self, message: bytes | str, *kinds: str) -> dict:
        if message == messages.INTERNAL_ERROR:
            raise ConnectionResetError("the learner broke; it may come back")
        if isinstance(message, str):
            raise errors.RequestError(f"{self.address} refused the actor {self.name!r}", found=message)
        return messages.unpack(message, *kinds)


def run(
    actor: Actor,
    link: ActorLink,
    spool: Spool,
    *,
    num_decisions: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    timeout: float = 600.0,
) -> int:
    """Act until `num_decisions` are made (None: forever) or `should_stop`; returns how many were made.

    Raises RequestError when no parameters come for `timeout` seconds in the beginning, or when the learner refuses this
    actor, and what the environment raises.
    """
    made = 0
    actor.warm_up(link.latest(timeout)[1])
    while not should_stop() and (num_decisions is None or made < num_decisions):
        version, params = link.latest(timeout)
        for row in actor.decide(params, version):
            spool.add(row)
        link.wake()
        made += 1
    return made
