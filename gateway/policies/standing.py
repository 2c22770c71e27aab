"""How a circuit stands: all of it that counts, and what it means at a given time (B12).

Plain data and pure functions of it and the time. What is in here is the same in every worker that
shares the circuit; what is not (permits, in-flight counts) is each worker's own.
"""

from __future__ import annotations

import math

import msgspec

from gateway.policies.phases import CircuitOptions, Phase

# A hold that ends at exactly 300 s must not be missed by a float's last digit, and 31 s of a ramp
# to 60 are 31 and not 32.
EPSILON = 1e-9


class Standing(msgspec.Struct, kw_only=True):
    """All that a circuit is, apart from who is inside. Times are on the clock, in seconds.

    Attributes:
        state: CLOSED, OPEN or, half open, PROBING.
        epoch: how many transitions there have been.
        opened: when it last left closed or opened again.
        failures: when each of the consecutive failures was.
        relapses: openings since it was last well for a whole ramp.
        forced: what an operator made of it: FORCED_OPEN, FORCED_CLOSED or None.
        cause: of the latest transition.
        lease_until: when the probe under way must be settled; inf without one.
        holder: the worker that probes.
        tried: when the panic rule last had a trial.
        ramp_from, ramp_floor: when the recovery ramp began, and at which share of the limit.
        last_token: the latest first token of this epoch.
        overdue: when the attempts that are overdue began, by worker; only where it is shared.
        sample, sample_s: calls and failures lately, see `Sampling`, and how far that looks back.
    """

    state: Phase = Phase.CLOSED
    epoch: int = 0
    opened: float = 0.0
    failures: list[float] = []
    relapses: int = 0
    forced: Phase | None = None
    cause: str = ""
    lease_until: float = math.inf
    holder: str = ""
    tried: float = -math.inf
    ramp_from: float = -math.inf
    ramp_floor: float = 0.0
    last_token: float = -math.inf
    overdue: dict[str, list[float]] = {}
    sample: list[list[int]] = []
    sample_s: float = 0.0

    def phase(self, now: float, options: CircuitOptions) -> Phase:
        """Where it stands at `now`."""
        if self.forced is not None:
            return self.forced
        if self.state is Phase.CLOSED:
            return Phase.RECOVERING if self.ramping(now, options) else Phase.CLOSED
        if self.state is Phase.PROBING and not self.lease_over(now):
            return Phase.PROBING if self.lease_until < math.inf else Phase.PROBE_DUE
        return Phase.PROBE_DUE if now + EPSILON >= self.probe_at(now, options) else Phase.OPEN

    def lease_over(self, now: float) -> bool:
        """Whether a probe overstayed. It reopened the circuit then, noticed or not."""
        return now + EPSILON >= self.lease_until

    def opened_at(self, now: float) -> float | None:
        """When it opened; None unless it is open or probing."""
        if self.state is Phase.CLOSED:
            return None
        return self.lease_until if self.lease_over(now) else self.opened

    def hold_s(self, now: float, options: CircuitOptions) -> float:
        """How long this opening holds, relapses counted in."""
        return options.hold_s(self.relapses + self.lease_over(now))

    def probe_at(self, now: float, options: CircuitOptions) -> float:
        """When it may be probed."""
        hold, early = self.hold_s(now, options), options.early_probe_s
        return (self.opened_at(now) or 0.0) + (min(hold, early) if early > 0 else hold)

    def until(self, now: float, options: CircuitOptions) -> float | None:
        """Seconds until it may be tried again; None if it is closed or forced."""
        phase = self.phase(now, options)
        if phase is Phase.PROBING:
            return max(0.0, self.lease_until - now)
        if phase is Phase.OPEN:
            return max(0.0, self.probe_at(now, options) - now)
        return 0.0 if phase is Phase.PROBE_DUE else None

    def ramping(self, now: float, options: CircuitOptions) -> bool:
        """Whether it recovers: closed lately, and not yet open to all."""
        return self.forced is None and now < self.ramp_from + options.ramp_s

    def calm_from(self, options: CircuitOptions) -> float:
        """From when on it is closed and lets everyone in, if nothing happens; inf if it is not."""
        if self.forced is not None or self.state is not Phase.CLOSED:
            return math.inf
        return self.ramp_from + options.ramp_s

    def silent(self, *, but: str) -> int:
        """How many attempts of all workers but one are overdue, and no token came since."""
        return sum(
            began >= self.last_token
            for worker, attempts in self.overdue.items()
            if worker != but
            for began in attempts
        )

    def report(self, worker: str, silent: list[float]) -> None:
        """Note which attempts of a worker are overdue, in place of what it said before."""
        attempts = {**self.overdue, worker: silent}
        overdue = {
            name: [at for at in began if at >= self.last_token] for name, began in attempts.items()
        }
        self.overdue = {name: began for name, began in overdue.items() if began}

    def shown(self) -> Phase:
        """What listeners are told that it was, whatever time has made of it since."""
        return self.forced or self.state
