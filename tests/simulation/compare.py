"""Every policy in the same world, and what each came to: sums that add up over worlds."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from gateway.errors import GatewayError
from gateway.simulator.clock import run
from gateway.simulator.faults import AnyFault, Flapping, Outage
from gateway.simulator.service import UpstreamStats
from gateway.simulator.traffic import play as traffic
from tests.simulation.baselines import PEERS, NoResilience, answer_in_time
from tests.simulation.outcomes import CANCELLED, Outcome
from tests.simulation.schedule import MODES, Schedule
from tests.simulation.world import Played, play

OURS, EARLY = "downshift-gateway", "the same, early_probe_s = 10"
POLICIES = (OURS, EARLY, *(peer.name for peer in PEERS))

# An outage of which somebody can recover: nothing else strikes the mode for so long after it.
_CLEAN_S = 330.0


class Tally(msgspec.Struct):
    """What one policy came to. Counts are of requests that only an upstream could answer, whose
    callers stayed; `troubled` ones came while their own mode had a fault.

    Attributes:
        asked, answered, native: all, those answered in time, those answered by the mode asked for.
        troubled, troubled_answered, troubled_native: the same of the troubled ones.
        calls, uncached: calls that reached any upstream; requests no cache answered.
        dead_calls, dead_s: calls to upstreams that were all gone, and for how long they were.
        simulated_s: how long the worlds lasted.
        waits: how many answers took so long, by the tenth of the power of two.
        recoveries: seconds from an outage's end to the first request its mode answered again; None
            if that was not before the next fault, or the end.
        errors: why there was no answer.
    """

    asked: int = 0
    answered: int = 0
    native: int = 0
    troubled: int = 0
    troubled_answered: int = 0
    troubled_native: int = 0
    calls: int = 0
    uncached: int = 0
    dead_calls: int = 0
    dead_s: float = 0.0
    simulated_s: float = 0.0
    waits: dict[int, int] = {}
    recoveries: list[float | None] = []
    errors: dict[str, int] = {}

    def add(self, other: Tally) -> None:
        """Count another's too."""
        for name in self.__struct_fields__:
            mine, theirs = getattr(self, name), getattr(other, name)
            both = Counter(mine) + Counter(theirs) if isinstance(mine, dict) else mine + theirs
            setattr(self, name, dict(both) if isinstance(mine, dict) else both)

    def wait_s(self, share: float) -> float:
        """Below which so many of the answers were, seconds, within 7 %."""
        below, total = 0, sum(self.waits.values())
        for power in sorted(self.waits):
            below += self.waits[power]
            if below >= share * total:
                return float(2.0 ** ((power + 0.5) / 10.0))
        return 0.0

    def recovery_s(self, share: float) -> float:
        """Below which so many of the recoveries were; infinite if fewer came back in time."""
        ordered = sorted(math.inf if one is None else one for one in self.recoveries)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def tally(
    schedule: Schedule, outcomes: Sequence[Outcome], stats: Mapping[str, UpstreamStats]
) -> Tally:
    """Sum one world up."""
    waits, errors = Counter[int](), Counter[str]()
    sums = Tally(simulated_s=schedule.horizon_s)
    natives: dict[str, list[float]] = {mode: [] for mode in MODES}
    for outcome in outcomes:
        ask = schedule.asks[outcome.number]
        sums.uncached += not outcome.cached
        if outcome.error == CANCELLED or not ask.once:
            continue
        answered, native = outcome.mode != "", outcome.mode == ask.mode
        troubled = _troubled(schedule.faults[ask.mode], ask.at)
        sums.asked += 1
        sums.answered += answered
        sums.native += native
        sums.troubled += troubled
        sums.troubled_answered += troubled and answered
        sums.troubled_native += troubled and native
        if answered:
            waits[math.floor(10.0 * math.log2(max(outcome.took_s, 1e-3)))] += 1
        else:
            errors[outcome.error] += 1
        if native:
            natives[ask.mode].append(ask.at)
    sums.waits, sums.errors = dict(waits), dict(errors)
    sums.calls = sum(stat.started for stat in stats.values())
    sums.dead_calls = sum(stat.in_outage for stat in stats.values())
    for mode, faults in schedule.faults.items():
        sums.dead_s += sum(_dead_s(fault) for fault in faults)
        sums.recoveries += _recoveries(faults, sorted(natives[mode]), schedule.horizon_s)
    return sums


def _troubled(faults: Sequence[AnyFault], at: float) -> bool:
    return any(fault.start <= at < fault.end for fault in faults)


def _dead_s(fault: AnyFault) -> float:
    """For how long the whole target was gone."""
    length_s = fault.end - fault.start
    if isinstance(fault, Outage):
        return length_s
    if isinstance(fault, Flapping):
        turn_s = fault.up_s + fault.down_s
        return length_s // turn_s * fault.down_s + min(length_s % turn_s, fault.down_s)
    return 0.0


def _recoveries(
    faults: Sequence[AnyFault], natives: Sequence[float], horizon_s: float
) -> list[float | None]:
    """How long each clean outage's mode took to answer for itself again, once it could."""
    recovered: list[float | None] = []
    for outage in faults:
        others = [fault for fault in faults if fault is not outage]
        clear_until = min(
            (fault.start for fault in others if fault.end > outage.end), default=horizon_s
        )
        if isinstance(outage, Outage) and clear_until - outage.end >= _CLEAN_S:
            back = next((at for at in natives if outage.end <= at < clear_until), None)
            recovered.append(None if back is None else back - outage.end)
    return recovered


# -- who is compared ------------------------------------------------------------------------------


def ours(schedule: Schedule) -> tuple[Played, Tally]:
    """The gateway as it ships, with every invariant checked."""
    played = play(schedule)
    return played, tally(schedule, played.outcomes, played.stats)


def early(schedule: Schedule) -> tuple[Played, Tally]:
    """The gateway with one option changed: a leased probe each ten seconds may end a hold."""
    played = play(schedule, {"circuit": {"early_probe_s": 10}})
    return played, tally(schedule, played.outcomes, played.stats)


def theirs(peer: type[NoResilience], schedule: Schedule) -> Tally:
    """A peer's policy in the same world."""
    outcomes: list[Outcome] = []
    upstreams = {mode: schedule.upstream(mode) for mode in MODES}

    async def main() -> None:
        now = asyncio.get_running_loop().time
        policy = peer(upstreams, random.Random(schedule.seed))

        async def ask(number: int) -> None:
            asked, began, leaves = schedule.asks[number], now(), None
            if asked.patience_s is not None:
                task = asyncio.current_task()
                assert task is not None
                leaves = asyncio.get_running_loop().call_later(asked.patience_s, task.cancel)
            mode, error = "", ""
            try:
                mode = await answer_in_time(policy, asked)
            except asyncio.CancelledError:
                error = CANCELLED
            except GatewayError as failure:
                error = failure.code
            except TimeoutError:
                error = "deadline_exceeded"
            finally:
                if leaves is not None:
                    leaves.cancel()
            outcomes.append(Outcome(number, mode, now() - began, error))

        for end in await traffic((asked.at for asked in schedule.asks), ask):
            if isinstance(end, BaseException):
                raise end

    run(main, seed=schedule.interleaving)
    return tally(schedule, outcomes, {mode: upstreams[mode].stats for mode in MODES})


def others(schedule: Schedule) -> dict[str, Tally]:
    """Everybody but us, in the same world."""
    return {peer.name: theirs(peer, schedule) for peer in PEERS}
