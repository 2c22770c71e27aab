"""What the server refuses before a request becomes one, and what it breaks off when it stops."""

from __future__ import annotations

from gateway.errors import InvalidRequest, RequestRejected


class BadHTTP(InvalidRequest):
    """Not HTTP/1.1."""

    code = "invalid_http"


class HeadTooLarge(InvalidRequest):
    """The request line and headers are longer, or more, than is taken (RFC 6585, 5)."""

    http_status = 431
    code = "headers_too_large"


class TooManyConnections(RequestRejected):
    """This worker holds `[server] max_connections` connections."""

    code = "too_many_connections"
    retry_after = 1.0


class ShuttingDown(RequestRejected):
    """The service stops; another one, or this one in a moment, will answer."""

    code = "shutting_down"
    retry_after = 1.0
