"""Where a target's requests go, and everything of a request that never changes."""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qsl, urlsplit

from gateway.errors import ConfigError
from gateway.modes import TargetOptions
from gateway.transport.base import Origin, header_line, request_head

_SECRET_LENGTH: Final = 8


def address(
    base_url: str, route: str, options: TargetOptions, api_key: str | None, *, accept: str
) -> tuple[Origin, bytes]:
    """The origin and the head of a `POST` to one route of a target.

    Args:
        base_url: up to and including `/v1`; a query is kept.
        route: below it, such as `chat/completions`.
        options: has the extra headers.
        api_key: sent as a bearer token, None sends none.
        accept: the media types that are understood.

    Raises:
        ConfigError: an address or a header that cannot be sent.
    """
    try:
        origin = Origin.from_url(base_url)
    except ValueError as error:
        raise ConfigError(str(error), key="base_url") from None
    parts = urlsplit(base_url)
    path = f"{parts.path.rstrip('/')}/{route}" + (f"?{parts.query}" if parts.query else "")
    headers = {
        "accept": accept,
        "content-type": "application/json",
        "user-agent": "downshift-gateway",
    }
    if api_key:
        headers["authorization"] = f"Bearer {api_key}"
    headers.update((name.lower(), value) for name, value in options.headers.items())
    try:
        for name, value in headers.items():
            header_line(name, value)
        return origin, request_head("POST", path, origin, headers.items())
    except ValueError as error:
        raise ConfigError(str(error), key="headers") from None


def shown(base_url: str) -> str:
    """An address as people may see it: some put a key into its query, or before its host."""
    scheme, _, rest = base_url.partition("?")[0].partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if rest else scheme


def secrets(options: TargetOptions, api_key: str | None) -> tuple[str, ...]:
    """What no error may show, were the server to quote its request: the key, and what extra
    headers or the address's query say, unless it is too short to be one. The longest first: one
    may hold another.
    """
    query = parse_qsl(urlsplit(options.base_url).query)
    said = [*options.headers.values(), *(value for _, value in query)]
    # A header such as `authorization: Basic ...` may be quoted without its scheme.
    found = {word for text in said for word in (text, *text.split()) if len(word) >= _SECRET_LENGTH}
    return tuple(sorted(found | ({api_key} if api_key else set()), key=len, reverse=True))
