"""Web pages of other origins: which of them may call (the Fetch standard's CORS protocol).

https://fetch.spec.whatwg.org/#http-cors-protocol
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.openai_api.words import Call, Reply

_METHODS: Final = ("GET", "POST")
_MAX_AGE_S: Final = 600


class CORS:
    """Lets pages of some origins call.

    Args:
        origins: such as "https://app.example"; "*" is any.
    """

    def __init__(self, origins: Sequence[str]) -> None:
        self._origins = frozenset(origins)
        self._any = "*" in self._origins

    def preflight(self, call: Call) -> Reply | None:
        """The answer to a browser that asks whether a page may; None if this is no such question.

        It comes before anyone knows who calls: browsers send no key with it.
        """
        headers = call.headers
        method = headers.get("access-control-request-method")
        if call.method != "OPTIONS" or method is None or "origin" not in headers:
            return None
        allowed = self.headers(call)
        wrong = [] if self._may(headers["origin"]) else ["origin"]
        wrong += [] if method in _METHODS else ["method"]
        if wrong:
            said = f"Disallowed CORS {', '.join(wrong)}".encode()
            return 400, [("content-type", "text/plain; charset=utf-8"), *allowed], said
        allowed += [
            ("access-control-allow-methods", ", ".join(_METHODS)),
            ("access-control-max-age", str(_MAX_AGE_S)),
        ]
        asked = headers.get("access-control-request-headers")
        if asked is not None:
            allowed.append(("access-control-allow-headers", asked))
        return 200, [("content-type", "text/plain; charset=utf-8"), *allowed], b"OK"

    def headers(self, call: Call) -> list[tuple[str, str]]:
        """What an answer to this call bears; nothing if no page asks."""
        origin = call.headers.get("origin")
        if origin is None:
            return []
        told = [("vary", "Origin"), ("access-control-expose-headers", "*")]
        if self._may(origin):
            told.append(("access-control-allow-origin", "*" if self._any else origin))
        return told

    def _may(self, origin: str) -> bool:
        return self._any or origin in self._origins
