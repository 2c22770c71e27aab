"""What happened, told once as a frozen record to whoever listens.

Event names are public: dashboards and log queries may rely on them. Listeners are called inline,
after every decision is made and settled; one that raises is counted and otherwise ignored, so
telemetry can never change an outcome. Slow sinks must queue on their own side.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec


class Event(msgspec.Struct, frozen=True, tag_field="event", gc=False):
    """Base of all events. `at` is the gateway's clock in seconds.

    The garbage collector does not track events (`gc=False`): three are made for each request, and
    what they hold refers to nothing. Those three are made without their fields' names where that
    is on the path of every request: msgspec takes six times as long to find thirty fields by name.
    """

    at: float


class CircuitChanged(Event, frozen=True, kw_only=True, gc=False, tag="circuit_changed"):
    """A mode's circuit moved. `until` is in seconds from `at`, None when it closed."""

    mode: str
    old: str
    new: str
    cause: str
    epoch: int
    until: float | None = None


class AttemptFinished(Event, frozen=True, gc=False, tag="attempt_finished"):
    """One upstream attempt ended. `kind` is the `ErrorKind`, or "" on success."""

    request_id: str
    mode: str
    target: str
    outcome: str
    kind: str
    duration_s: float
    first_token_s: float | None = None
    probe: bool = False


class RequestFinished(Event, frozen=True, gc=False, tag="request_finished"):
    """One request ended: all that one canonical line needs, and never what was asked or answered.

    Attributes:
        error: the error's `code`, or "" on success.
        operation: `chat`, or `text_completion` for a raw prompt.
        outcome: `ok`; `degraded` (a lower mode answered); `stale` (an entry past its lifetime);
            `invalid` (the caller's mistake); `refused` (we had no room, or no mode it may use);
            `failed` (upstream, or we); `abandoned` (the caller left).
        status: the HTTP status this end stands for; 499 if the caller left, as nginx has it.
        key: the `[keys.NAME]` it counted against, "" if none.
        trace: the caller's W3C `traceparent`, "" if none or not a valid one.
        first_token_s: seconds from the door to the first content token.
        queued_s: seconds it waited for a slot.
        upstream_s: seconds in upstream attempts, failed ones included; None where an error came
            before an answer, or an answer that was kept had to stand in: then nobody added them up.
        overhead_s: what is left of the way from the door to the upstream's end without queue and
            upstream, >= 0: our own time. A slow reader of a stream adds nothing to it. None if the
            answer did not end well, or the call was begun by another caller's request.
        inter_token_s: mean seconds between tokens after the first, None where unknown.
        prompt_tokens, completion_tokens: as the upstream counts them.
        cached_tokens: those of the prompt that the upstream had in its own cache.
        reasoning_tokens: those of the completion that were reasoning.
    """

    request_id: str
    requested_mode: str
    mode: str
    model: str
    target: str
    tenant: str
    stream: bool
    degraded: bool
    reason: str | None
    cached: bool
    stale: bool
    attempts: int
    error: str
    finish_reason: str | None
    first_token_s: float | None
    duration_s: float
    prompt_tokens: int
    completion_tokens: int
    operation: str = "chat"
    outcome: str = "ok"
    status: int = 200
    key: str = ""
    trace: str = ""
    queued_s: float = 0.0
    upstream_s: float | None = None
    overhead_s: float | None = None
    inter_token_s: float | None = None
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class HTTPFinished(Event, frozen=True, gc=False, tag="http_finished"):
    """One HTTP request ended; told once by the server, after the pipeline's own event if any.

    Attributes:
        method: `GET`, `POST`, ...
        route: the route's template, such as `/v1/models/{id}`; "" if no route matched. Never the
            path as sent: it goes into a metric's label.
        status: what was answered; 499 if the caller left before there was an answer.
        error: the error's `code` on the wire, or "".
        request_id: what the `x-request-id` header says.
        generation_id: the id of the generation it became, "" if it never became one.
        tenant, key: whose it was, "" if unknown.
        duration_s: seconds from its first byte to the last of the answer.
        request_bytes: length of its body, as far as it was read.
        client_disconnected: the caller left before the answer was complete.
        refused: it never reached the pipeline: not meant for it or, from 400 up, turned away.
        trace: the caller's W3C `traceparent`, "" if none or not a valid one.
    """

    method: str
    route: str
    status: int
    error: str = ""
    request_id: str = ""
    generation_id: str = ""
    tenant: str = ""
    key: str = ""
    duration_s: float = 0.0
    request_bytes: int = 0
    client_disconnected: bool = False
    refused: bool = False
    trace: str = ""


class TargetResting(Event, frozen=True, kw_only=True, gc=False, tag="target_resting"):
    """A target is left alone for `for_s`. `alarm` means a person must act (key, bill, model)."""

    mode: str
    target: str
    kind: str
    for_s: float
    alarm: bool


class ConfigReloaded(Event, frozen=True, kw_only=True, gc=False, tag="config_reloaded"):
    """A new configuration took effect, was refused, or was taken back."""

    result: str
    detail: str = ""


class SharingChanged(Event, frozen=True, kw_only=True, gc=False, tag="sharing_changed"):
    """The file in which the workers agree was lost, or is back; without it each is on its own."""

    shared: bool
    detail: str = ""


Listener = Callable[[Event], None]

_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)


def traceparent(text: str) -> str:
    """`text` if it is a W3C `traceparent` (version 00), else "": no caller's words reach a log.

    https://www.w3.org/TR/trace-context/#traceparent-header
    """
    return text if text and _TRACEPARENT.fullmatch(text) else ""


class ByKind:
    """A listener that says which kinds of events it hears, and what it does with each.

    Args:
        handlers: what is called for events of a kind; the other kinds pass it by.
    """

    def __init__(self, handlers: Mapping[type[Event], Callable[[Any], None]]) -> None:
        self.handlers = handlers

    def __call__(self, event: Event) -> None:
        """Take in one event."""
        handler = self.handlers.get(type(event))
        if handler is not None:
            handler(event)


class EventBus:
    """Hands events to listeners and keeps them from hurting anyone.

    Attributes:
        heard: whether anyone listens: building an event nobody hears is waste on the hot path.
        faults: how often a listener raised.
    """

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        # Who is called for a kind of event, known from its first one on: a listener of some kinds
        # costs the others nothing.
        self._told: dict[type[Event], tuple[Listener, ...]] = {}
        self.heard = False
        self.faults = 0

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Add a listener; call the result to remove it."""
        self._listeners.append(listener)
        self._changed()

        def stop() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)
                self._changed()

        return stop

    def emit(self, event: Event) -> None:
        """Tell every listener. Never raises."""
        kind = type(event)
        if kind not in self._told:
            self._told[kind] = tuple(self._who_hears(kind))
        for listener in self._told[kind]:
            try:
                listener(event)
            except Exception:  # noqa: BLE001 - a listener's fault is the listener's alone
                self.faults += 1

    def _who_hears(self, kind: type[Event]) -> Iterator[Listener]:
        for listener in self._listeners:
            if not isinstance(listener, ByKind):
                yield listener
            elif kind in listener.handlers:
                yield listener.handlers[kind]

    def _changed(self) -> None:
        self._told.clear()
        self.heard = bool(self._listeners)
