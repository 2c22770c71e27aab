"""What just happened, kept small: the last minute, the last ten minutes, the last events in words.

A listener like any other. It reads the clock and the gateway's status, does no I/O of its own and
keeps a bounded amount whatever the traffic; an event costs it a few microseconds, and nothing is
added up until somebody asks for a `snapshot`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import msgspec

from gateway.clock import Clock
from gateway.events import (
    AttemptFinished,
    ByKind,
    CircuitChanged,
    ConfigReloaded,
    HTTPFinished,
    RequestFinished,
    TargetResting,
)
from gateway.telemetry.sentences import (
    Told,
    circuit_words,
    config_words,
    resting_words,
    stand_in,
    unanswered_words,
)
from gateway.telemetry.snapshot import Line, Snapshot, merge, standing_of
from gateway.telemetry.tally import Tally, total

MINUTE_S: Final = 60
STEP_S: Final = 5
STEPS: Final = 120
RECENT_S: Final = 10
_LINES: Final = 200
_REPEAT_S: Final = 30.0
# Failures led to an opening if they are no older than this, and beyond a hundred nobody counts:
# `[circuit] failure_window_s` is near enough for a sentence.
_LED_TO_IT_S: Final = 60.0
_TOLD_APART: Final = 100
_FRESH_S: Final = 5.0
_UNANSWERED: Final = frozenset({"failed", "refused"})
_SNAPSHOT, _VIEWERS = "live", "live/viewers"
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Snapshot).decode


class Post(Protocol):
    """What one worker has put up."""

    @property
    def value(self) -> bytes:
        """The bytes put up."""

    @property
    def age_s(self) -> float:
        """How long ago, seconds."""


class Board(Protocol):
    """A blackboard that all workers see; `gateway.stores.shared.SharedStore` is one."""

    @property
    def worker(self) -> str:
        """This worker's name among the others."""

    def put(self, worker: str, name: str, value: bytes) -> None:
        """Put up `value` under `name` in place of what `worker` had there."""

    def all(self, name: str) -> Mapping[str, Post]:
        """What each worker has put up under `name`."""


class Live(ByKind):
    """Hears events and knows how it stands.

    Args:
        status: `Gateway.status`; read when a circuit moves and for each snapshot.
        clock: monotonic seconds, the gateway's own.
        board: where the workers of one service see each other; None is a worker alone.

    Attributes:
        on_news: called when something happened that people want to see at once.
    """

    def __init__(
        self,
        status: Callable[[], Mapping[str, Any]],
        *,
        clock: Clock = time.monotonic,
        board: Board | None = None,
    ) -> None:
        super().__init__(
            {
                RequestFinished: self._request,
                AttemptFinished: self._attempt,
                HTTPFinished: self._http,
                CircuitChanged: self._circuit,
                TargetResting: self._resting,
                ConfigReloaded: self._config,
            }
        )
        self.on_news: Callable[[], None] = _nobody
        self.board = board
        self._status = status
        self._clock = clock
        self._since = clock()
        self._second = int(self._since)
        self._next = self._second + 1
        self._now = Tally()
        self._seconds: deque[tuple[int, Tally]] = deque(maxlen=MINUTE_S)
        self._steps: deque[tuple[int, Tally]] = deque(maxlen=STEPS + 1)
        self._lines: dict[str, Line] = {}
        self._told = 0
        self._repeats: dict[str, str] = {}
        self._failing: dict[str, dict[str, float]] = {}

    # -- hearing --------------------------------------------------------------------------------

    def _request(self, event: RequestFinished) -> None:
        if event.at >= self._next:
            self._turn(event.at)
        self._now.request(event)
        if event.outcome in _UNANSWERED:
            repeat = f"{event.outcome} {event.requested_mode} {event.error}"
            self._tell(unanswered_words(event), event.at, repeat=repeat)

    def _http(self, event: HTTPFinished) -> None:
        # What no route matched is somebody who looks for something else.
        if event.refused and event.status >= 400 and event.route:
            if event.at >= self._next:
                self._turn(event.at)
            self._now.turned_away += 1

    def _attempt(self, event: AttemptFinished) -> None:
        """Which requests of a mode failed in a row; a request that tried twice is one (B4)."""
        if event.outcome == "success":
            if event.mode in self._failing:
                del self._failing[event.mode]
        elif event.outcome == "failure":
            if event.at >= self._next:
                self._turn(event.at)
            self._now.failure(event.mode)
            failing = self._failing.setdefault(event.mode, {})
            failing[event.request_id] = event.at
            if len(failing) > _TOLD_APART:
                del failing[next(iter(failing))]

    def _circuit(self, event: CircuitChanged) -> None:
        failing = self._failing.pop(event.mode, {}).values()
        failures = sum(at > event.at - _LED_TO_IT_S for at in failing)
        told = circuit_words(event, stand_in(event.mode, self._status()["modes"]))
        # Workers that share a circuit all hear of its moves: the epoch says that it is one move.
        key = f"{event.mode} {event.epoch} {event.new}"
        self._tell(told, event.at, key=key, failures=failures)

    def _resting(self, event: TargetResting) -> None:
        repeat = f"resting {event.mode} {event.target} {event.kind}"
        self._tell(resting_words(event), event.at, repeat=repeat)

    def _config(self, event: ConfigReloaded) -> None:
        self._tell(config_words(event), event.at)

    def _tell(
        self, told: Told, at: float, *, key: str = "", repeat: str = "", failures: int = 0
    ) -> None:
        """Put a line into the log; what repeats within half a minute is counted, not repeated."""
        before = self._lines.get(self._repeats.get(repeat, "")) if repeat else None
        if before is not None and at - before.at < _REPEAT_S and before.text == told.text:
            again = msgspec.structs.replace(before, at=at, times=before.times + 1)
            self._lines[before.key] = again
            return
        if not key:
            self._told += 1
            key = f"{self.board.worker if self.board else ''}#{self._told}"
        if repeat:
            self._repeats[repeat] = key
        self._lines.pop(key, None)
        self._lines[key] = Line(key, at, told.tone, told.text, failures)
        if len(self._lines) > _LINES:
            del self._lines[next(iter(self._lines))]
            self._repeats = {r: k for r, k in self._repeats.items() if k in self._lines}
        self.on_news()

    def _turn(self, at: float) -> None:
        """A new second began: what was counted becomes part of the minute and of its step."""
        if self._now.requests or self._now.turned_away or self._now.failures:
            self._seconds.append((self._second, self._now))
            step = self._second // STEP_S
            if not self._steps or self._steps[-1][0] != step:
                self._steps.append((step, Tally()))
            self._steps[-1][1].take(self._now)
            self._now = Tally()
        self._second = int(at)
        self._next = self._second + 1

    # -- telling --------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """How this worker stands now. Costs a millisecond or two under heavy traffic."""
        now, status = self._clock(), self._status()
        if now >= self._next:
            self._turn(now)
        second, step = self._second, self._second // STEP_S
        seconds = [tally for at, tally in self._seconds if at > second - MINUTE_S]
        recent = [t for at, t in self._seconds if second - RECENT_S <= at < second]
        history = {at: tally for at, tally in self._steps if at > step - STEPS}
        history[step] = total([history.get(step, Tally()), self._now])
        cache = status["cache"]
        return Snapshot(
            at=now,
            since=self._since,
            workers=1,
            recent=sum(tally.requests for tally in recent),
            minute=total([*seconds, self._now]),
            history=history,
            modes=standing_of(status, now),
            lines=dict(self._lines),
            queued=status["queued"],
            in_flight=status["in_flight"],
            store={name: int(cache.get(name, 0)) for name in ("entries", "bytes", "max_bytes")},
            config=dict(status["config"]),
        )

    def together(self) -> Snapshot:
        """How the whole service stands: this worker and what the others have put up."""
        own = self.snapshot()
        if self.board is None:
            return own
        self.board.put(self.board.worker, _VIEWERS, b"")
        self.put_up(own)
        others = [
            _decode(post.value)
            for worker, post in self.board.all(_SNAPSHOT).items()
            if worker != self.board.worker and post.age_s < _FRESH_S
        ]
        return merge([own, *others])

    def wanted(self) -> bool:
        """Whether somebody looks at another worker, which then needs what this one knows."""
        if self.board is None:
            return False
        viewers = self.board.all(_VIEWERS).items()
        return any(w != self.board.worker and post.age_s < _FRESH_S for w, post in viewers)

    def put_up(self, snapshot: Snapshot) -> None:
        """Let the other workers see how this one stands."""
        if self.board is not None:
            self.board.put(self.board.worker, _SNAPSHOT, _encode(snapshot))


def _nobody() -> None:
    """Nobody looks."""
