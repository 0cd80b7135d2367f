"""The robot's side: ask a policy server for actions, come back after a lost connection, record what was done.

    with PolicyClient("ws://127.0.0.1:8000") as client:
        chunk = client.infer({"observation/front": picture, "observation/state": state, "prompt": "..."})["actions"]

`ChunkPlayer` makes of it one action per control step. Nothing here needs JAX or a device.
"""

import dataclasses
import random
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from jaxtyping import Float32
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from vla_jax.core import errors, wire
from vla_jax.core.backoff import Backoff
from vla_jax.data.formats import image_codec
from vla_jax.serving import robots
from vla_jax.serving.latency import LatencyMeter, split
from vla_jax.serving.recording import EpisodeRecorder
from vla_jax.serving.robots import Robot

_LOST = (ConnectionClosed, OSError, TimeoutError, InvalidHandshake)
_NEVER = (401, 403, 404)  # HTTP answers that trying again does not change


@dataclasses.dataclass(frozen=True)
class ClientConfig:
    """Times in seconds."""

    open_timeout: float = 10.0
    answer_timeout: float = 30.0  # of one request; a first one may wait behind others
    jpeg_quality: int | None = None  # pictures travel as JPEG of this quality; None: as they are
    backoff: Backoff = Backoff()

    def __post_init__(self):
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 100:
            raise errors.ConfigError("ClientConfig.jpeg_quality", expected="1 to 100", found=self.jpeg_quality)


class PolicyClient:
    """One connection to a policy server, opened when it is first needed.

    A lost connection is opened again and the request sent once more: acting has no memory on the server, so asking
    twice changes nothing. `latency` holds where the time of the answers went.
    """

    def __init__(
        self,
        address: str,
        api_key: str | None = None,
        config: ClientConfig | None = None,
        *,
        robot: Robot | None = None,
        accept: Sequence[str] = (),
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        """With a `robot`, every server that is connected to is compared with it, also the one that comes back after a
        loss; differences in `accept` are meant (names of `core.contract.ACCEPTABLE`)."""
        self.address, self.config, self.latency = address, config or ClientConfig(), LatencyMeter()
        self.num_reconnects = 0
        self._headers = {"Authorization": f"Api-Key {api_key}"} if api_key else {}
        self._tls, self._clock, self._sleep = tls, clock, sleep
        self._robot, self._accept = robot, tuple(accept)
        self._draws = random.Random()
        self._ws: ClientConnection | None = None
        self._metadata: dict[str, Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def metadata(self) -> dict[str, Any]:
        """What the server says of its policy; connects if need be. Raises as `infer`."""
        if self._metadata is None:
            self._patiently(lambda ws: None)
        return self._metadata

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """`actions`, float32 [h, a] in the robot's units, and `server_timing` in ms.

        Raises RequestError with the server's words when it refuses the observation, with a table when its policy is not
        for this robot, and when no server can be reached for `backoff.give_up` seconds.
        """
        message = wire.pack(self._compressed(observation))
        start = self._clock()
        answer = self._patiently(lambda ws: self._ask(ws, message))
        self.latency.record(split(self._clock() - start, answer["server_timing"]))
        return answer

    def close(self) -> None:
        if self._ws is not None:
            self._ws.close()
            self._ws = None

    def _ask(self, ws: ClientConnection, message: bytes) -> dict[str, Any]:
        ws.send(message)
        answer = ws.recv(timeout=self.config.answer_timeout)
        if isinstance(answer, str):
            self.close()  # the server closes too
            raise errors.RequestError(f"{self.address} refused the request", found=answer)
        return wire.unpack(answer)

    def _patiently(self, use: Callable[[ClientConnection], Any]) -> Any:
        """`use` with a connection, again after every loss until `give_up`."""
        lost_since, attempt = None, 0
        while True:
            try:
                return use(self._connected())
            except _LOST as error:
                self._forget()
                now = self._clock()
                lost_since, attempt = now if lost_since is None else lost_since, attempt + 1
                wait = self.config.backoff.wait(attempt, self._draws.random())
                is_final = isinstance(error, InvalidStatus) and error.response.status_code in _NEVER
                if is_final or now + wait - lost_since > self.config.backoff.give_up:
                    raise errors.RequestError(
                        f"{self.address}: no answer",
                        expected="a policy server (vla-jax serve CHECKPOINT)",
                        found=f"{type(error).__name__}: {error}",
                        fix="check address and API key" if is_final else "check that it runs and can be reached",
                    ) from error
                self._sleep(wait)

    def _connected(self) -> ClientConnection:
        if self._ws is None:
            ws = connect(
                self.address,
                additional_headers=self._headers,
                ssl=self._tls,
                compression=None,
                max_size=wire.Limits().max_bytes,
                open_timeout=self.config.open_timeout,
                close_timeout=1.0,
            )
            self._ws = ws
            greeting = ws.recv(timeout=self.config.open_timeout)
            if isinstance(greeting, str):
                self.close()
                raise errors.RequestError(f"{self.address} is no policy server", found=greeting[:200])
            metadata = wire.unpack(greeting)
            self._require_fit(metadata)
            self.num_reconnects += self._metadata is not None
            self._metadata = metadata
        return self._ws

    def _require_fit(self, metadata: Mapping[str, Any]) -> None:
        if self._robot is None:
            return
        try:
            robots.require_fit(metadata, self._robot, self._accept, raises=errors.RequestError)
        except errors.VlaError:
            self.close()
            raise

    def _forget(self) -> None:
        """Drop a connection that failed, without waiting for the other side."""
        if self._ws is not None:
            self._ws.socket.close()
            self._ws = None

    def _compressed(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        quality = self.config.jpeg_quality
        if quality is None:
            return dict(observation)
        return {key: image_codec.encode_jpeg(v, quality) if _is_picture(v) else v for key, v in observation.items()}


def _is_picture(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[-1] == 3


class ChunkPlayer:
    """One action per control step: the first `execution_horizon` of every chunk, then the policy looks again.

    The robot waits while the policy thinks; `realtime.py` has players that do not. With a `recorder` every step is kept
    for `end_episode`.
    """

    def __init__(
        self, client: PolicyClient, execution_horizon: int | None = None, recorder: EpisodeRecorder | None = None
    ):
        """By default as many steps as the policy was evaluated with."""
        self._client, self._execution_horizon, self._recorder = client, execution_horizon, recorder
        self._left: list[Float32[np.ndarray, a]] = []

    def act(self, observation: Mapping[str, Any]) -> Float32[np.ndarray, "a"]:
        """The action for this control step. The observation is sent only where a new chunk is due."""
        if not self._left:
            horizon = self._execution_horizon or self._client.metadata["execution_horizon"]
            self._left = list(self._client.infer(observation)["actions"][:horizon])
        action = self._left.pop(0)
        if self._recorder is not None:
            self._recorder.add(observation, action)
        return action

    def end_episode(self, *, is_success: bool) -> None:
        """Forget the rest of the chunk, and write the episode where there is a recorder."""
        self._left = []
        if self._recorder is not None:
            self._recorder.end_episode(is_success=is_success)
