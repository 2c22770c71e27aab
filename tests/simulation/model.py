"""A second opinion on one mode's circuit: what it must be, from what goes in and out of it.

It shares no code with `gateway.policies`: the rules are B4, B5, B6, B9 and B10 as the contract has
them. Transitions are taken from what the gateway tells; whether they were right is for
`invariants` to say, which find here what had to be so.
"""

from __future__ import annotations

from collections import deque

from gateway.detectors.failures import Outcome
from gateway.policies.phases import CircuitOptions, Permit

CLOSED, OPEN, PROBING = "closed", "open", "probing"

# Two sums of the same seconds may differ in their last bits.
TINY_S = 1e-6


class ModeModel:
    """One mode's circuit, by the book.

    Args:
        name: the mode.
        options: what is in force, the bottom's included.

    Attributes:
        state: CLOSED, OPEN or PROBING.
        since: when it came into that state.
        opened: when it opened last: for a probe that overstayed, when its lease ended.
        failures: when each of the failures in a row was.
        calls: every outcome that counts of the last 30 s of this epoch: its second, and whether it
            failed.
        permits: all that are out, and the request each was given to.
        probe: the one that may be out while probing.
        rests_until: until when its target was told to be left alone.
        issued, settled: how many permits there were, how many came back.
    """

    def __init__(self, name: str, options: CircuitOptions) -> None:
        self.name = name
        self.options = options
        self.state = CLOSED
        self.since = self.opened = float("-inf")
        self.last_failure = float("-inf")
        self.epoch = 0
        self.failures: list[float] = []
        self.calls: deque[tuple[int, bool]] = deque()
        self.permits: dict[Permit, str] = {}
        self.unclaimed: Permit | None = None
        self.probe: Permit | None = None
        self.rests_until = float("-inf")
        self.issued = self.settled = 0

    # -- what happens ---------------------------------------------------------------------------

    def issue(self, permit: Permit) -> None:
        """A permit was given, to a request that shows itself at once by its first call."""
        self.issued += 1
        self.permits[permit] = ""
        self.unclaimed = permit
        if permit.probe:
            self.probe = permit

    def claim(self, request_id: str) -> Permit | None:
        """The permit under which a request calls now."""
        permit, self.unclaimed = self.unclaimed, None
        if permit is not None:
            self.permits[permit] = request_id
            return permit
        return next((p for p, owner in self.permits.items() if owner == request_id), None)

    def settle(self, permit: Permit, outcome: Outcome, now: float, *, counts: bool) -> None:
        """A permit came back; `counts` if it is of this epoch."""
        self.settled += 1
        self.permits.pop(permit, None)
        if permit is self.probe:
            self.probe = None
        if permit is self.unclaimed:
            self.unclaimed = None
        if not counts or outcome is Outcome.IGNORED or self.state is not CLOSED:
            return
        oldest = int(now) - int(self.options.sampling_duration_s)
        while self.calls and self.calls[0][0] <= oldest:
            self.calls.popleft()
        self.calls.append((int(now), outcome is Outcome.FAILURE))
        if outcome is Outcome.SUCCESS:
            self.failures.clear()
        else:
            self.failures.append(now)
            self.last_failure = now

    def turn(self, state: str, now: float, epoch: int, cause: str) -> None:
        """The gateway says that it is in another state now."""
        if state is OPEN:
            overstayed = cause == "lease over" and self.probe is not None
            self.opened = self.probe.lease_until if overstayed and self.probe else now
            self.probe = None
        self.state, self.since, self.epoch = state, now, epoch
        self.failures.clear()
        self.calls.clear()

    # -- what must be ---------------------------------------------------------------------------

    @property
    def bottom(self) -> bool:
        """Whether it is the lowest mode, whose holds are short and grow (B9)."""
        return self.options.break_growth > 1.0

    def hold_s(self) -> float:
        """How long it must stay open at least."""
        options = self.options
        early = options.early_probe_s
        return min(options.break_duration_s, early) if early > 0 else options.break_duration_s

    def held(self, now: float) -> bool:
        """Whether nobody may enter: open, and its hold is not over."""
        return self.state is OPEN and now < self.opened + self.hold_s() - TINY_S

    def must_open(self, now: float) -> bool:
        """Whether outcomes alone open it: a row of failures, or the share of them (B4)."""
        options = self.options
        lately = [at for at in self.failures if at >= now - options.failure_window_s]
        if len(lately) >= options.failure_threshold:
            return True
        failed = sum(bad for _, bad in self.calls)
        enough = len(self.calls) >= options.minimum_throughput
        return enough and failed >= options.failure_ratio * len(self.calls)

    def overdue(self, now: float) -> int:
        """How many visits of this epoch have lasted past the slow threshold."""
        slow_s = self.options.slow_s
        return sum(
            permit.epoch == self.epoch and now - permit.started >= slow_s - TINY_S
            for permit in self.permits
        )

    def ramping(self, now: float) -> bool:
        """Whether it recovers: closed lately, or failed lately while it did."""
        began = max(self.since, self.last_failure) if self.since > float("-inf") else self.since
        return self.state is CLOSED and now < began + self.options.ramp_s

    def lease_over(self, now: float) -> bool:
        """Whether the probe has overstayed."""
        return self.probe is not None and now + TINY_S >= self.probe.lease_until
