"""Who may come in, and how often they may ask."""

import collections
import dataclasses
import hashlib
import hmac
import ipaddress
import os
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from vla_jax.core import errors

API_KEY_VARIABLE = "VLA_JAX_API_KEY"
_MIN_KEY_LENGTH = 16
_MAX_CLIENTS = 4096


@dataclasses.dataclass(frozen=True)
class ApiKey:
    name: str  # for people: errors and logs say it, never the secret
    secret: str = dataclasses.field(repr=False)

    def __post_init__(self):
        if len(self.secret) < _MIN_KEY_LENGTH:
            raise errors.ConfigError(
                f"API key {self.name!r} is too short",
                expected=f"{_MIN_KEY_LENGTH} characters or more",
                found=len(self.secret),
                fix="python -c 'import secrets; print(secrets.token_urlsafe())' makes one",
            )


@dataclasses.dataclass(frozen=True)
class Access:
    """Where the server listens and whom it lets in."""

    host: str = "127.0.0.1"
    api_keys: tuple[ApiKey, ...] = ()  # any of them opens the door; none: it stands open
    tls: ssl.SSLContext | None = None

    def is_allowed(self, authorization: str | None) -> bool:
        """Whether this `Authorization` header opens the door."""
        return not self.api_keys or self.holder(authorization) is not None

    def holder(self, authorization: str | None) -> str | None:
        """The name of the key in this header; None where it is none of ours.

        Takes the same time for every header of a length: all keys are compared, each as a whole, by their digests.
        """
        given, found = _digest(authorization or ""), None
        for key in self.api_keys:
            if hmac.compare_digest(given, _digest(f"Api-Key {key.secret}")):
                found = key.name
        return found


@dataclasses.dataclass(frozen=True)
class AccessOptions:
    """The arguments of `make_access` as commands have them: `make_access(**dataclasses.asdict(options))`."""

    host: str = "127.0.0.1"  # another address needs an API key, see docs/serving.md
    api_key_file: str | None = None  # a file with a key a line; without it, $VLA_JAX_API_KEY is the key
    allow_anonymous: bool = False  # anyone who can reach the address may come in
    tls_certificate: str | None = None  # PEM files
    tls_key: str | None = None


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogateescape")).digest()


def make_access(
    host: str,
    *,
    api_key_file: str | None = None,
    tls_certificate: str | None = None,
    tls_key: str | None = None,
    allow_anonymous: bool = False,
) -> Access:
    """Keys come from a file or from $VLA_JAX_API_KEY, never from the command line, where others can read them.

    Raises ConfigError for an address that others can reach without a key, unless `allow_anonymous`.
    """
    given = os.environ.get(API_KEY_VARIABLE)
    if api_key_file is not None:
        keys = read_keys(api_key_file)
    else:
        keys = () if given is None else (ApiKey(f"${API_KEY_VARIABLE}", given.strip()),)
    if not keys and not allow_anonymous and not is_loopback(host):
        raise errors.ConfigError(
            f"--host {host} can be reached from other machines",
            expected=f"an API key in --api-key-file or ${API_KEY_VARIABLE}",
            found="none",
            fix="give one (and a TLS certificate where the network is not yours), or --allow-anonymous True",
        )
    return Access(host, keys, _tls(tls_certificate, tls_key))


def read_keys(path: str | Path) -> tuple[ApiKey, ...]:
    """One key a line, behind its name if it has one; empty lines and lines that begin with # do not count.

    Raises ConfigError for a file that is not there or has no key in it, for short keys, and for a key or a name that
    comes twice. Errors name lines, never keys.
    """
    path = Path(path)
    if not path.is_file():
        raise errors.ConfigError("--api-key-file", expected="a file with the keys in it", found=path)
    keys: list[ApiKey] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        place = f"{path}, line {number}"
        if len(words) > 2:
            raise errors.ConfigError(place, expected="a key, or a name and a key", found=f"{len(words)} words")
        key = ApiKey(words[0] if len(words) == 2 else f"line {number}", words[-1])
        if any(key.name == other.name or key.secret == other.secret for other in keys):
            raise errors.ConfigError(place, expected="a name and a key of its own", found="one from a line above")
        keys.append(key)
    if not keys:
        raise errors.ConfigError(f"--api-key-file {path}", expected="a key a line", found="none")
    return tuple(keys)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet: a port that is taken is known before minutes of compiling.

    Raises ConfigError when the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        raise errors.ConfigError(
            f"cannot listen on {host} port {port}", found=error, fix="choose another --port; 0 takes any free one"
        ) from error
    return sock


def _tls(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise errors.ConfigError("--tls-certificate and --tls-key", expected="both or none", found="one")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise errors.ConfigError(
            f"--tls-certificate {certificate}, --tls-key {key}",
            expected="a certificate and its key, PEM files",
            found=error,
        ) from error
    return context


class RateLimit:
    """`rate` requests per second on average, `burst` at once, of every client by itself: a token bucket for each."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic):
        if rate <= 0 or burst < 1:
            raise errors.ConfigError("rate limit", expected="rate above 0, burst of 1 or more", found=(rate, burst))
        self._rate, self._burst, self._clock = rate, burst, clock
        self._buckets: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()  # tokens, since

    def take(self, client: str) -> bool:
        """Whether one more request of this client (an API key or an address) is within its rate."""
        now = self._clock()
        tokens, since = self._buckets.pop(client, (self._burst, now))
        tokens = min(self._burst, tokens + (now - since) * self._rate)
        is_within = tokens >= 1
        self._buckets[client] = (tokens - 1 if is_within else tokens, now)
        if len(self._buckets) > _MAX_CLIENTS:
            self._buckets.popitem(last=False)  # the one that asked longest ago: its bucket is the fullest
        return is_within
