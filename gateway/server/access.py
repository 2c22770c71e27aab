"""Who calls: an API key -> a caller. Fails closed.

Follows the configuration in force, so that keys come and go with a reload.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import ip_address
from typing import Final, NamedTuple

from gateway.clock import Clock
from gateway.config import Config
from gateway.errors import AuthenticationFailed, ConfigError
from gateway.openai_api.errors import PermissionDenied, UnsupportedMediaType
from gateway.openai_api.words import ANYONE, Call, Caller
from gateway.policies.keys import ADMIN, KeyOptions, digest_of, expiry

OPEN: Final = frozenset(
    {"/livez", "/readyz", "/health", "/health/liveness", "/health/readiness", "/dashboard/"}
)
"""Routes that tell nothing worth a key: load balancers have none, and the dashboard's page fetches
its figures with one."""

_ADMINS: Final = Caller(key=ADMIN, tenant=ADMIN)
_NOBODY: Final = bytes(32)
# What a proxy says of whom it speaks for: it may be on this machine, they are elsewhere.
_FORWARDED: Final = frozenset({"forwarded", "x-forwarded-for", "x-real-ip", "via"})


class KeyRefused(AuthenticationFailed):
    """The same for a key that is missing and one that is wrong."""

    headers: Final = [("www-authenticate", "Bearer")]  # RFC 9110, 11.6.1: a 401 must say how


class _Entry(NamedTuple):
    digest: bytes
    caller: Caller
    expires: float
    expired: str


_NO_KEYS: Final = "has no API keys; configure [keys.NAME]"
_NO_ENTRY: Final = _Entry(_NOBODY, ANYONE, 0.0, "")


class Access:
    """Knows the keys.

    Args:
        config: has `[keys.NAME]` and `[server]`.
        now: Unix seconds; keys end at a date.
    """

    def __init__(self, config: Config, now: Clock = time.time) -> None:
        self._now = now
        self._read(config)

    def check(self, call: Call, route: str, config: Config) -> Caller:
        """Who calls.

        Args:
            call: what came in.
            route: the route it goes to.
            config: the configuration in force; a new one is read when it is first seen.

        Raises:
            KeyRefused: keys are configured, and it bears none that is good.
            PermissionDenied: it may not do this, or nobody may from where it comes.
            UnsupportedMediaType: its body says that it is something other than JSON.
        """
        if config is not self._config:
            self._read(config)
        if route in self._open or (route == "/" and _is_browser(call)):
            return ANYONE
        caller = self._caller(call, admin=route.startswith("/admin/"))
        if call.body:
            _check_json(call.headers.get("content-type", ""))
        return caller

    def _caller(self, call: Call, *, admin: bool) -> Caller:
        key = _key(call.headers)
        if not key and not admin and not self._entries:
            _check_local(call, self._origins, _NO_KEYS)  # nearly all callers of a keyless service
            return ANYONE
        digest = hashlib.sha256(key.encode("latin-1", "replace")).digest()
        # Whether a key exists must not show in how long its refusal takes. Where a digest lands in
        # a dict says nothing about the key, and the comparison always runs its whole length.
        entry = self._entries.get(digest, _NO_ENTRY)
        known = hmac.compare_digest(entry.digest, digest)
        if self._admin and hmac.compare_digest(self._admin, digest):
            return _ADMINS
        if known and entry.expires <= self._now():
            raise KeyRefused(entry.expired)
        if admin:
            return self._operator(call, known=known)
        if known:
            return entry.caller
        if self._entries:
            raise KeyRefused(_REFUSED)
        _check_local(call, self._origins, _NO_KEYS)
        return ANYONE

    def _operator(self, call: Call, *, known: bool) -> Caller:
        if not self._admin:
            _check_local(call, self._origins, "has no admin key; set [server] admin_key_hash")
            return _ADMINS
        if known:
            raise PermissionDenied("this takes the admin key")
        raise KeyRefused(_REFUSED)

    def _read(self, config: Config) -> None:
        entries = [_entry(key) for key in config.keys]
        admin, metrics = config.server.admin_key_hash, config.server.open_metrics
        self._entries = {entry.digest: entry for entry in entries}
        self._admin = digest_of(admin) if admin else b""
        self._open = OPEN | {"/metrics"} if metrics else OPEN
        self._origins = frozenset(config.server.cors_origins)
        self._config = config


def check_exposure(config: Config) -> None:
    """Refuse to listen to a network without knowing who calls.

    Raises:
        ConfigError: `[server] host` is not this machine's own and no keys are configured.
    """
    host = config.server.host
    if not config.keys and not is_loopback(host.strip("[]")):
        raise ConfigError(
            f"{host or 'every address'} can be reached from other machines, and no API keys are "
            'configured; add one with `gateway keys new NAME`, or use host = "127.0.0.1"',
            file=config.source,
            table="server",
            key="host",
        )


@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Whether a name or an address can only mean this machine."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)  # how a dual-stack socket tells of IPv4
    return (mapped or address).is_loopback


_REFUSED: Final = "missing or wrong API key; send a good one as `Authorization: Bearer KEY`"


def _entry(key: KeyOptions) -> _Entry:
    caller = Caller(
        key=key.name,
        tenant=key.tenant or key.name,
        modes=frozenset(key.modes) or None,
        priority=key.priority,
    )
    expired = f"the API key {key.name} expired on {key.expires}"
    return _Entry(digest_of(key.hash), caller, expiry(key.expires), expired)


def _key(headers: Mapping[str, str]) -> str:
    said = headers.get("authorization")
    if said is None:
        return headers.get("x-api-key", "")
    scheme, _, key = said.partition(" ")
    if scheme.lower() == "bearer":  # RFC 9110, 11.1: schemes have no case
        return key.strip()
    return headers.get("x-api-key", "")


def _check_local(call: Call, origins: frozenset[str], lacks: str) -> None:
    """Raises PermissionDenied unless somebody on this machine calls, and no web page through them.

    A web page can have its visitor's browser call this machine. A cross-origin request bears the
    page's `Origin`. Under DNS rebinding the page's own name comes to mean 127.0.0.1, so that the
    browser sees one origin and lets the page read the answers; but `Host` still says that name.
    """
    headers = call.headers
    if not call.peer and "host" not in headers:
        return  # this very process: every HTTP/1.1 request has a host
    if not _FORWARDED.isdisjoint(headers) or not is_loopback(call.peer):
        raise PermissionDenied(f"only callers on this machine may do this: the gateway {lacks}")
    if not _names_this_machine(headers.get("host", "")[:256]):
        raise PermissionDenied(
            f"call it as 127.0.0.1 or localhost, not by another name: the gateway {lacks}"
        )
    origin = headers.get("origin")
    if (
        origin
        and origin not in origins
        and not _names_this_machine(origin.partition("://")[2][:256])
    ):
        raise PermissionDenied(
            "web pages of other sites may not do this; see [server] cors_origins: "
            f"the gateway {lacks}"
        )


@lru_cache(maxsize=256)
def _names_this_machine(authority: str) -> bool:
    """Whether `host[:port]` does; an IPv6 address stands in brackets."""
    if authority.startswith("["):
        return is_loopback(authority[1:].partition("]")[0])
    return is_loopback(authority.partition(":")[0])


def _is_browser(call: Call) -> bool:
    """Gets the dashboard's bare page; whoever else asks for `/` gets the figures."""
    return "text/html" in call.headers.get("accept", "")


def _check_json(content_type: str) -> None:
    """Without a content type the body is taken at its word; browsers' forms always have one."""
    if content_type == "application/json":
        return
    if content_type and content_type.partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType(
            f"the body must be JSON, not {content_type[:60]!r}; "
            "add the header `content-type: application/json`"
        )
