"""One target behind an OpenAI-compatible HTTP API: the hot path of the gateway.

call --request_body--> JSON --client--> bytes --replies--> chunks
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from gateway.errors import (
    ConfigError,
    InvalidRequest,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
)
from gateway.modes import TargetOptions
from gateway.providers import qwen
from gateway.providers.address import address, secrets
from gateway.providers.base import Call, Reply
from gateway.providers.capabilities import Continuation, capabilities
from gateway.providers.decoding import CarefulDecoder
from gateway.providers.dialects import parse_error
from gateway.providers.repairs import Lessons
from gateway.providers.replies import StreamReply, WholeReply
from gateway.providers.request_body import Accent, Speaker
from gateway.transport.base import Client, Response

_T = TypeVar("_T")

_encode = msgspec.json.Encoder().encode

_ACCEPT = "text/event-stream, application/json"
_MAX_ERROR_BYTES = 64 * 1024
_NO_ROUTE = (404, 405, 501)
_PLAIN = (None, b"", b"identity")
_ERROR_BODY_S = 1.0


class OpenAICompatible:
    """One endpoint and model; a `Provider`.

    Args:
        options: the target; `kind` picks its row in `capabilities`.
        client: sends the requests. Not closed here: it may be shared.
        api_key: sent as a bearer token, None sends none. Shown nowhere.

    Raises:
        ConfigError: unknown kind, a model that must be named, an address or header that cannot be
            sent.
    """

    def __init__(self, options: TargetOptions, client: Client, *, api_key: str | None) -> None:
        row = capabilities(options.kind)
        model = options.model or row.model
        if model is None:
            raise ConfigError(f"kind {options.kind!r} must be told which model", key="model")
        base_url = options.base_url or row.base_url
        hosted = options.kind == "dashscope"
        self.name = f"{options.kind}/{model}" if model else options.kind
        self.model = model
        self.context_window = options.context_window or (
            qwen.context_window(model) if hosted else None
        )
        always_thinks = hosted and qwen.switch(model) is qwen.Switch.ALWAYS
        known = Lessons(
            stream_only=hosted and qwen.stream_only(model),
            always_thinks=always_thinks,
            max_tokens=qwen.output_cap(model) if hosted else None,
        )
        self._speaker = Speaker(Accent(row, model, known))
        self._completions = row.completions
        self.continues = row.continuation is not Continuation.NONE and not always_thinks
        self._kind = options.kind
        self.streams = options.stream_upstream or known.stream_only
        self._headers_s = options.headers_s
        self._client = client
        self._origin, self._head = address(
            base_url, "chat/completions", options, api_key, accept=_ACCEPT
        )
        self._decoder = CarefulDecoder(options.kind, self.name, secrets(options, api_key))
        _, self._raw_head = address(base_url, "completions", options, api_key, accept=_ACCEPT)
        digest = hashlib.sha256((api_key or "").encode()).hexdigest()[:8]
        self.domain = f"{self._origin}#{digest}"
        # Without the query: some put their key there.
        path = urlsplit(base_url).path.rstrip("/")
        self.identity = f"{options.kind} {self._origin}{path} {model}"

    def __repr__(self) -> str:
        return f"OpenAICompatible({self.name!r}, {str(self._origin)!r})"

    def open(self, call: Call) -> Coroutine[Any, Any, Reply]:
        """Send the call; see `Provider.open`.

        A refusal that says how to ask better is obeyed once and remembered, see `Speaker`. So is
        a server, or a model, that turns out to have no `/completions`: it is asked as a chat.

        Raises:
            InvalidRequest: the call holds something that is not JSON.
        """
        if call.raw and self._completions:
            return self._open_raw(call)
        return self._speaker.ask(self._attempt, call)

    async def _open_raw(self, call: Call) -> Reply:
        try:
            return await self._speaker.ask(self._raw_attempt, call)
        except UpstreamRejected as error:
            if error.status not in _NO_ROUTE:
                raise
        reply = await self._speaker.ask(self._attempt, call)
        self._completions = False  # it answers chats, so it was the route that is not there
        return reply

    async def aclose(self) -> None:
        """Nothing of this target's own is open: connections belong to the client."""

    def _attempt(self, call: Call, accent: Accent) -> Awaitable[Reply]:
        self.streams = stream = self.streams or accent.lessons.stream_only
        return self._send(self._head, call, accent.body(call, stream=stream), stream=stream)

    def _raw_attempt(self, call: Call, accent: Accent) -> Awaitable[Reply]:
        body = accent.raw_body(call, stream=self.streams)
        return self._send(self._raw_head, call, body, stream=self.streams)

    async def _send(self, head: bytes, call: Call, body: dict[str, Any], *, stream: bool) -> Reply:
        try:
            payload = _encode(body)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequest(f"the request cannot be sent as JSON: {error}") from error
        request_id = call.request_id
        if request_id and request_id.isascii() and request_id.isprintable():
            head += b"x-request-id: %b\r\n" % request_id.encode("ascii")
        sent = self._client.request(self._origin, head, payload)
        try:
            # Unstreamed, the headers come with the whole answer: that has the mode's own deadline.
            response = await (self._within_headers_s(sent) if stream else sent)
        except UpstreamError as error:
            error.target = error.target or self.name
            raise
        try:
            if not 200 <= response.status < 300:
                raise await self._refusal(response)
            return self._reply(response, body.get("n"))
        except BaseException:
            response.close()
            raise

    def _reply(self, response: Response, n: object) -> Reply:
        headers = dict(response.headers)  # one pass in C; of two alike the last counts
        media_type = headers.get(b"content-type", b"").lower()
        if headers.get(b"content-encoding") not in _PLAIN:
            raise self._decoder.malformed("an encoding nobody asked for")
        # What it says it is goes before what was asked for: some servers ignore `stream`.
        if media_type.startswith(b"text/event-stream"):
            return StreamReply(self._decoder, response, n if isinstance(n, int) else 1)
        if media_type.startswith(b"application/json"):
            return WholeReply(self._decoder, response)
        shown = media_type.decode("latin-1")[:50] or "nothing"
        raise self._decoder.malformed(f"{shown} as its content type")

    async def _refusal(self, response: Response) -> UpstreamError:
        """The error that an answer other than 2xx means; leaves the connection fit for reuse."""
        try:
            async with asyncio.timeout(_ERROR_BODY_S):
                body = await response.read_all(_MAX_ERROR_BYTES)
            response.release()
        except (UpstreamError, TimeoutError):
            body = b""  # the status alone says enough
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in response.headers
        }
        return parse_error(
            response.status,
            headers,
            body,
            kind=self._kind,
            target=self.name,
            secrets=self._decoder.secrets,
        )

    async def _within_headers_s(self, sent: Awaitable[_T]) -> _T:
        """Wait for the response headers, `headers_s` at most; `asyncio.timeout` costs 5 µs more."""
        task = asyncio.current_task()
        if task is None:
            return await sent
        expired = False

        def expire() -> None:
            nonlocal expired
            expired = True
            task.cancel()

        cancelling = task.cancelling()
        timer = asyncio.get_running_loop().call_later(self._headers_s, expire)
        try:
            return await sent
        except asyncio.CancelledError:
            if expired and task.uncancel() <= cancelling:
                raise UpstreamTimeout(
                    f"{self.name} sent no response headers within {self._headers_s:g} s",
                    phase="headers",
                    target=self.name,
                ) from None
            raise
        finally:
            timer.cancel()
