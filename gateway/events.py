"""What happened, told once as a frozen record to whoever listens.

Event names are public: dashboards and log queries may rely on them. Listeners are called inline,
after every decision is made and settled; one that raises is counted and otherwise ignored, so
telemetry can never change an outcome. Slow sinks must queue on their own side.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """Base of all events. `at` is the gateway's clock in seconds."""

    at: float


class CircuitChanged(Event, frozen=True, kw_only=True, tag="circuit_changed"):
    """A mode's circuit moved. `until` is in seconds from `at`, None when it closed."""

    mode: str
    old: str
    new: str
    cause: str
    epoch: int
    until: float | None = None


class AttemptFinished(Event, frozen=True, kw_only=True, tag="attempt_finished"):
    """One upstream attempt ended. `kind` is the `ErrorKind`, or "" on success."""

    request_id: str
    mode: str
    target: str
    outcome: str
    kind: str
    duration_s: float
    first_token_s: float | None = None
    probe: bool = False


class RequestFinished(Event, frozen=True, kw_only=True, tag="request_finished"):
    """One request ended. `error` is the error's `code`, or "" on success."""

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


class TargetResting(Event, frozen=True, kw_only=True, tag="target_resting"):
    """A target is left alone for `for_s`. `alarm` means a person must act (key, bill, model)."""

    mode: str
    target: str
    kind: str
    for_s: float
    alarm: bool


class ConfigReloaded(Event, frozen=True, kw_only=True, tag="config_reloaded"):
    """A new configuration took effect, was refused, or was taken back."""

    result: str
    detail: str = ""


Listener = Callable[[Event], None]


class EventBus:
    """Hands events to listeners and keeps them from hurting anyone.

    Attributes:
        faults: how often a listener raised.
    """

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self.faults = 0

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Add a listener; call the result to remove it."""
        self._listeners.append(listener)

        def stop() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return stop

    @property
    def heard(self) -> bool:
        """Whether anyone listens: building an event nobody hears is waste on the hot path."""
        return bool(self._listeners)

    def emit(self, event: Event) -> None:
        """Tell every listener. Never raises."""
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except Exception:  # noqa: BLE001 - a listener's fault is the listener's alone
                self.faults += 1
