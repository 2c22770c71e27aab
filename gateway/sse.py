"""Server-Sent Events as bytes: split what arrives into events, encode what leaves. No I/O.

Follows the WHATWG event stream interpretation (html.spec.whatwg.org, *Server-sent events*, 9.2.6),
with one word added: an event named `error` is how DashScope reports a failure inside a 200
(`id:1`, `event:error`, `:HTTP_STATUS/429`, `data:{...}`), so it is kept apart from the payloads.
"""

from __future__ import annotations

PING = b": ping\n\n"
"""A comment: keeps proxies and read timers awake, is no event."""

END = b"[DONE]"
"""The payload of the event that ends an OpenAI stream."""

DONE = b"data: [DONE]\n\n"
"""`END` as it goes over the wire."""

MAX_EVENT_BYTES = 8 * 1024 * 1024

_BOM = b"\xef\xbb\xbf"


class EventTooLarge(ValueError):
    """One event grew past `max_event_bytes`; the stream cannot be read any further."""


def encode(data: bytes) -> bytes:
    """Frame one payload; several lines become several `data` fields, and CR or CRLF becomes LF."""
    if b"\n" in data or b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\ndata: ")
    return b"data: %b\n\n" % data


class SSESplitter:
    """Split a byte stream, cut anywhere, into the payloads of its events.

    Comments and the fields `id`, `retry` and `event` are skipped. The event named `error` ends the
    stream: its payload is in `error`, and whatever follows it is ignored.

    Args:
        max_event_bytes: the most one unfinished event may hold, default 8 MiB.
    """

    __slots__ = ("_data", "_event", "_held", "_max", "_partial", "_skip_lf", "_started", "error")

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self.error: bytes | None = None
        self._max = max_event_bytes
        self._partial: list[bytes] = []  # pieces of a line whose end has not arrived
        self._data: list[bytes] = []  # `data` lines of the event under way
        self._event = b""  # its name
        self._held = 0  # bytes in the two lists
        self._skip_lf = False  # the last line ended in CR; a LF next belongs to it
        self._started = False  # the first line, which may bear a byte order mark, has been read

    @property
    def pending(self) -> bool:
        """Whether an event is unfinished: at the end of a stream, the sign of one cut short."""
        line = b"".join(self._partial)
        if not self._started:
            line = line.removeprefix(_BOM)
        return bool(self._data) or line[:1] not in (b"", b":")

    def feed(self, data: bytes) -> list[bytes]:
        """Return the payloads of the events that `data` completes, in order.

        Raises:
            EventTooLarge: one event is larger than `max_event_bytes`.
        """
        if self._partial:
            if b"\n" not in data and b"\r" not in data:
                self._hold(data)  # without a join, so a long line in small pieces stays linear
                return []
            self._held -= sum(map(len, self._partial))
            data = b"".join((*self._partial, data))
            self._partial.clear()
        # The common case, entirely in C: `data: x\n\n` blocks and nothing else. Each event accounts
        # for two line feeds, so if there are no others, every payload is one line.
        if (
            data.startswith(b"data: ")
            and not (self._data or self._event)
            and len(data) <= self._max
            and b"\r" not in data
        ):
            end = len(data) - 2 if data.endswith(b"\n\n") else data.rfind(b"\n\n")
            if end > 0:
                payloads = data[6:end].split(b"\n\ndata: ")
                if data.count(b"\n", 0, end) == 2 * len(payloads) - 2 and self.error is None:
                    self._started = True
                    self._skip_lf = False
                    if end + 2 < len(data):
                        self._parse(data[end + 2 :], payloads)
                    return payloads
        payloads = []
        self._parse(data, payloads)
        return payloads

    def _parse(self, data: bytes, payloads: list[bytes]) -> None:
        """Read `data` line by line; append what it completes to `payloads`."""
        if not data or self.error is not None:
            return
        if self._skip_lf:
            self._skip_lf = False
            data = data.removeprefix(b"\n")
        lines = data.splitlines()  # of bytes: splits at LF, CR and CRLF, and at nothing else
        if lines and not data.endswith((b"\n", b"\r")):
            rest = lines.pop()
        else:
            rest = b""
            self._skip_lf = data.endswith(b"\r")
        for line in lines:
            if not self._started:
                self._started = True
                line = line.removeprefix(_BOM)  # noqa: PLW2901
            if not line:
                self._dispatch(payloads)
                if self.error is not None:
                    return
                continue
            field, _, value = line.partition(b":")
            if field == b"data":
                value = value.removeprefix(b" ")
                self._data.append(value)
                self._count(len(value) + 1)
            elif field == b"event":
                self._event = value.removeprefix(b" ")
        if rest:
            self._hold(rest)

    def _dispatch(self, payloads: list[bytes]) -> None:
        """A blank line: the event is complete. One without `data` is none."""
        if self._data:
            payload = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
            self._data.clear()
            if self._event == b"error":
                self.error = payload
            else:
                payloads.append(payload)
        self._event = b""
        self._held = 0

    def _hold(self, piece: bytes) -> None:
        self._partial.append(piece)
        self._count(len(piece))

    def _count(self, size: int) -> None:
        self._held += size
        if self._held > self._max:
            raise EventTooLarge(f"one event is larger than {self._max} bytes")
