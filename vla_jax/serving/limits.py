"""Who may come in, and how often they may ask."""

import collections
import dataclasses
import hmac
import ipaddress
import os
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from vla_jax.core import errors

API_KEY_VARIABLE = "VLA_JAX_API_KEY"
_MIN_KEY_LENGTH = 16
_MAX_ADDRESSES = 4096


@dataclasses.dataclass(frozen=True)
class Access:
    """Where the server listens and whom it lets in."""

    host: str = "127.0.0.1"
    api_key: str | None = None
    tls: ssl.SSLContext | None = None

    def is_allowed(self, authorization: str | None) -> bool:
        """Whether this `Authorization` header opens the door. Takes the same time for every wrong key."""
        if self.api_key is None:
            return True
        given, expected = (authorization or "").encode(), f"Api-Key {self.api_key}".encode()
        return hmac.compare_digest(given, expected)


def make_access(
    host: str,
    *,
    api_key_file: str | None = None,
    tls_certificate: str | None = None,
    tls_key: str | None = None,
    allow_anonymous: bool = False,
) -> Access:
    """The key comes from a file or from $VLA_JAX_API_KEY, never from the command line, where others can read it.

    Raises ConfigError for an address that others can reach without a key, unless `allow_anonymous`.
    """
    if api_key_file is not None and not Path(api_key_file).is_file():
        raise errors.ConfigError("--api-key-file", expected="a file with the key in it", found=api_key_file)
    key = os.environ.get(API_KEY_VARIABLE) if api_key_file is None else Path(api_key_file).read_text()
    key = key.strip() if key is not None else None
    if key is not None and len(key) < _MIN_KEY_LENGTH:
        raise errors.ConfigError(
            "the API key is too short",
            expected=f"{_MIN_KEY_LENGTH} characters or more",
            found=len(key),
            fix="python -c 'import secrets; print(secrets.token_urlsafe())' makes one",
        )
    if key is None and not allow_anonymous and not is_loopback(host):
        raise errors.ConfigError(
            f"--host {host} can be reached from other machines",
            expected=f"an API key in --api-key-file or ${API_KEY_VARIABLE}",
            found="none",
            fix="give one (and a TLS certificate where the network is not yours), or --allow-anonymous True",
        )
    return Access(host, key, _tls(tls_certificate, tls_key))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
    """`rate` requests per second and address on average, `burst` at once; a token bucket for each address."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic):
        if rate <= 0 or burst < 1:
            raise errors.ConfigError("rate limit", expected="rate above 0, burst of 1 or more", found=(rate, burst))
        self._rate, self._burst, self._clock = rate, burst, clock
        self._buckets: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()  # tokens, since

    def take(self, address: str) -> bool:
        """Whether one more request of this address is within its rate."""
        now = self._clock()
        tokens, since = self._buckets.pop(address, (self._burst, now))
        tokens = min(self._burst, tokens + (now - since) * self._rate)
        is_within = tokens >= 1
        self._buckets[address] = (tokens - 1 if is_within else tokens, now)
        if len(self._buckets) > _MAX_ADDRESSES:
            self._buckets.popitem(last=False)  # the one that asked longest ago: its bucket is the fullest
        return is_within
