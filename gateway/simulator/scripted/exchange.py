"""One HTTP request to a scripted upstream, and the bare line to answer it on.

What plays on an exchange writes bytes itself, well or badly; nothing corrects it. An answer that
is left before its `end` is cut off there with a FIN.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Mapping
from typing import Any, NoReturn

import msgspec

from gateway.simulator.answers import count_words, numbered_words

TOKENS = 8
"""Tokens of a scripted answer, unless the request's `max_tokens` is lower."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of zero seconds: close sends RST, not FIN
_REASONS = {200: "OK", 404: "Not Found", 429: "Too Many Requests", 500: "Internal Server Error"}


def answer_tokens(body: Mapping[str, Any]) -> list[str]:
    """The tokens of the answer to a request: they follow from its model and messages alone."""
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or TOKENS
    return numbered_words([body.get("model"), body.get("messages")], min(TOKENS, limit))


def reset(transport: asyncio.Transport) -> None:
    """Close a connection with RST instead of FIN; what is not sent yet is lost."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.fileno() != -1:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


class CutOff(Exception):
    """The line was cut at the byte the script said."""


class Exchange:
    """One request and its answer.

    Args:
        transport: the connection, which stays open for the next request after a proper `end`.
        path: the request's path.
        headers: its headers, names in lower case.
        body: its JSON object.
        pace_s: how long `pause` lasts, seconds.

    Attributes:
        model: the model asked for.
        stream: whether a stream was asked for.
        tokens: the content of a good answer, token by token.
        is_chat: whether it asks for a chat completion.
        ended: whether the answer was sent to its proper end.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        path: str,
        headers: dict[str, str],
        body: dict[str, Any],
        pace_s: float,
    ) -> None:
        self._transport = transport
        self.path, self.headers, self.body = path, headers, body
        self.model = str(body.get("model", ""))
        self.is_chat = path.endswith("/chat/completions")
        self.stream = bool(body.get("stream"))
        self.tokens = answer_tokens(body)
        self.ended = False
        self._pace_s = pace_s
        self._chunked = False
        self._bytes_left: int | None = None

    # The line: bytes, pauses, ends.

    def raw(self, data: bytes) -> None:
        """Write bytes as they are."""
        if self._bytes_left is None:
            if not self._transport.is_closing():  # asyncio would log each write to nobody
                self._transport.write(data)
            return
        self._transport.write(data[: self._bytes_left])
        self._bytes_left -= len(data)
        if self._bytes_left <= 0:
            raise CutOff

    def cut_at(self, byte: int) -> None:
        """Let the next `byte` bytes pass, then raise `CutOff` from whatever writes."""
        self._bytes_left = byte

    def head(
        self,
        status: int = 200,
        *,
        content_type: str = "text/event-stream; charset=utf-8",
        headers: Mapping[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        """Write the status line and headers; without a `length` the body goes in chunks."""
        self._chunked = length is None
        framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
        lines = [
            f"HTTP/1.1 {status} {_REASONS.get(status, 'Scripted')}",
            f"content-type: {content_type}",
            framing,
            *(f"{name}: {value}" for name, value in (headers or {}).items()),
        ]
        self.raw("\r\n".join([*lines, "", ""]).encode())

    def write(self, data: bytes) -> None:
        """Write a piece of the body, framed as the head announced."""
        self.raw(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def end(self) -> None:
        """End the answer properly; the connection serves the next request."""
        if self._chunked:
            self.raw(b"0\r\n\r\n")
        self.ended = True

    async def pause(self) -> None:
        """Wait long enough for the client to read what was written as a segment of its own."""
        await asyncio.sleep(self._pace_s)

    async def forever(self) -> NoReturn:
        """Say no more; only the client's hanging up ends it."""
        await asyncio.get_running_loop().create_future()
        raise AssertionError("nobody resolves this future")

    def reset(self) -> None:
        """Break the connection with RST instead of FIN."""
        reset(self._transport)

    # The words of OpenAI's API.

    def event(self, payload: Mapping[str, Any]) -> None:
        """Write one server-sent event."""
        self.write(b"data: %b\n\n" % msgspec.json.encode(payload))

    def chunk(self, delta: Mapping[str, Any] | None, **fields: Any) -> dict[str, Any]:
        """A `chat.completion.chunk`; `delta` None has no choices, `fields` go into the choice."""
        choice = {"index": 0, "delta": delta, "finish_reason": None, **fields}
        return self._object("chat.completion.chunk") | {
            "choices": [] if delta is None else [choice]
        }

    def role(self) -> None:
        """Write the event that only names the role: no content yet (behaviour.md, B15)."""
        self.event(self.chunk({"role": "assistant", "content": ""}))

    def say(self, *tokens: str) -> None:
        """Write one content event a token."""
        for token in tokens:
            self.event(self.chunk({"content": token}))

    def finish(self, reason: str = "stop", *, done: bool = True) -> None:
        """Write the events after the last token, `[DONE]` included, and end the answer."""
        self.event(self.chunk({}, finish_reason=reason))
        if (self.body.get("stream_options") or {}).get("include_usage"):
            self.event(self.chunk(None) | {"usage": self.usage()})
        if done:
            self.write(b"data: [DONE]\n\n")
        self.end()

    def completion(self, message: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
        """A whole `chat.completion`; `fields` go into its choice."""
        message = {"role": "assistant", "content": None, **message}
        choice = {"index": 0, "message": message, "finish_reason": "stop", **fields}
        return self._object("chat.completion") | {"choices": [choice], "usage": self.usage()}

    def json(
        self, payload: object, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer with one JSON document."""
        self.document(msgspec.json.encode(payload), "application/json", status, headers)

    def document(
        self,
        body: bytes,
        content_type: str,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answer with one document of any type."""
        self.head(status, content_type=content_type, headers=headers, length=len(body))
        self.write(body)
        self.end()

    def usage(self) -> dict[str, int]:
        """Token counts, a word taken for a token."""
        prompt = count_words(self.body.get("messages") or [])
        answer = len(self.tokens)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
        }

    def _object(self, kind: str) -> dict[str, Any]:
        return {
            "id": "chatcmpl-scripted",
            "object": kind,
            "created": 1790000000,
            "model": self.model,
        }
