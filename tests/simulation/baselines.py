"""What peers do when an upstream fails: four policies, small and honest, over the same upstreams.

Each has the parameters its documentation gives as defaults. All get more than their defaults hold:
the gateway's own clocks for first token and stall (the openai SDK waits 600 s by default, LiteLLM
as long), a deadline for the whole request, a caller's cancellation that reaches the upstream, and
no truncated answer is ever taken for a whole one. So what differs is the policy, not the plumbing.
None has a cache; measures leave the questions out that a cache could answer.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from aiobreaker import CircuitBreaker, CircuitBreakerError
from aiobreaker.state import CircuitBreakerState
from aiobreaker.storage.memory import CircuitMemoryStorage

from gateway.errors import GatewayError, StreamInterrupted, UpstreamError, UpstreamThrottled
from gateway.errors import UpstreamTimeout as Timeout
from gateway.providers.base import Call
from gateway.simulator.upstream import SimulatedProvider
from tests.simulation.schedule import MODES, Ask

# The gateway's own clocks, from the config.toml that ships.
DEADLINE_S = {"creative": 180.0, "balanced": 120.0, "fast": 30.0}
FIRST_TOKEN_S = {"creative": 15.0, "balanced": 15.0, "fast": 5.0}
STALL_S = 20.0


class Unavailable(GatewayError):
    """A policy that will not even try: all it may use is cooling, or open."""


async def ask_upstream(upstream: SimulatedProvider, mode: str, ask: Ask) -> None:
    """One attempt, under the gateway's clocks.

    Raises:
        StreamInterrupted: it broke after its first token, and the caller has read that already.
        UpstreamError: it broke before; the caller has seen nothing.
    """
    call = Call([{"role": "user", "content": ask.prompt}], {})
    loop, read = asyncio.get_running_loop(), 0
    reply = None
    try:
        async with asyncio.timeout(FIRST_TOKEN_S[mode]) as clock:
            reply = await upstream.open(call)
            while chunks := await reply.read():
                content = sum(chunk.carries() for chunk in chunks)
                if content:
                    read += content
                    clock.reschedule(loop.time() + STALL_S)
    except TimeoutError:
        silent = Timeout("silence", phase="stall" if read else "first_token", target=mode)
        raise (StreamInterrupted("silence") if ask.stream and read else silent) from None
    except UpstreamError as error:
        if ask.stream and read:
            raise StreamInterrupted(str(error)) from error
        raise
    finally:
        if reply is not None:
            reply.close()


class NoResilience:
    """The client library alone, without retries: one call to the mode asked for.

    Args:
        upstreams: by mode.
        rng: for jitter.
    """

    name = "no resilience"

    def __init__(self, upstreams: dict[str, SimulatedProvider], rng: random.Random) -> None:
        self.upstreams = upstreams
        self.rng = rng
        self.now = asyncio.get_running_loop().time

    async def answer(self, ask: Ask) -> str:
        """Answer, and return the mode that did."""
        await self.attempt(ask.mode, ask)
        return ask.mode

    async def attempt(self, mode: str, ask: Ask) -> None:
        """Call one mode once."""
        await ask_upstream(self.upstreams[mode], mode, ask)

    def ladder(self, ask: Ask) -> Iterator[str]:
        """The mode asked for and its fallbacks."""
        start = MODES.index(ask.mode)
        yield from MODES[start:] if ask.allow_degrade else MODES[start : start + 1]


class Retries(NoResilience):
    """No breaker: three tries with exponential backoff at each mode, then its fallback.

    openai-python: `max_retries` 2; first pause 0.5 s, doubled to at most 8 s, up to a quarter of it
    taken off at random; a Retry-After of at most 60 s is obeyed instead; tried again are connection
    errors, timeouts, 408, 409, 429 and 5xx (README, "Retries", and `_calculate_retry_timeout`).
    LiteLLM's fallbacks likewise come after `num_retries` at the first model group.
    """

    name = "retries, then fallback"
    tries = 3

    async def answer(self, ask: Ask) -> str:
        failure: GatewayError = Unavailable("no mode")
        for mode in self.ladder(ask):
            for number in range(self.tries):
                try:
                    await self.attempt(mode, ask)
                except StreamInterrupted:
                    raise
                except UpstreamError as error:
                    failure = error
                    if number + 1 < self.tries and self.worth_retrying(mode):
                        await asyncio.sleep(self.pause_s(number, error))
                    else:
                        break
                else:
                    return mode
        raise failure

    def worth_retrying(self, mode: str) -> bool:
        """Whether the same mode may be tried again."""
        return True

    def pause_s(self, number: int, error: UpstreamError) -> float:
        """How long to wait before try `number` + 1."""
        after = error.retry_after if isinstance(error, UpstreamThrottled) else None
        if after is not None and 0 < after <= 60:
            return after
        return min(8.0, 0.5 * 2.0**number) * (1.0 - 0.25 * self.rng.random())


class Cooldown(Retries):
    """A blacklist with a timer, as LiteLLM's Router has it: all traffic returns when it is over.

    Documented defaults: `cooldown_time` 5 s, `allowed_fails` 3 a minute, or more than half of at
    least 5 calls in the minute; a 429 cools at once, for its Retry-After if it has one; 2 retries,
    none of them once the deployment cools (docs.litellm.ai, "Retries, fallbacks and cooldowns";
    litellm/constants.py). LiteLLM itself spares a group of one deployment almost any cooldown
    (`SINGLE_DEPLOYMENT_TRAFFIC_FAILURE_THRESHOLD`, 1,000 requests a minute); here it is in force.
    """

    name = "cooldown 5 s"
    cooldown_s = 5.0
    allowed_fails = 3

    def __init__(self, upstreams: dict[str, SimulatedProvider], rng: random.Random) -> None:
        super().__init__(upstreams, rng)
        self.cools_until = dict.fromkeys(MODES, 0.0)
        self.minute = dict.fromkeys(MODES, -1)
        self.calls = dict.fromkeys(MODES, 0)
        self.fails = dict.fromkeys(MODES, 0)

    def ladder(self, ask: Ask) -> Iterator[str]:
        return (mode for mode in super().ladder(ask) if self.worth_retrying(mode))

    def worth_retrying(self, mode: str) -> bool:
        return self.now() >= self.cools_until[mode]

    async def attempt(self, mode: str, ask: Ask) -> None:
        try:
            await super().attempt(mode, ask)
        except UpstreamError as error:
            self._count(mode, failed=True)
            after = error.retry_after if isinstance(error, UpstreamThrottled) else None
            too_many = self.fails[mode] > self.allowed_fails
            half = self.calls[mode] >= 5 and self.fails[mode] > 0.5 * self.calls[mode]
            if isinstance(error, UpstreamThrottled) or too_many or half:
                self.cools_until[mode] = self.now() + min(after or self.cooldown_s, 60.0)
            raise
        else:
            self._count(mode, failed=False)

    def _count(self, mode: str, *, failed: bool) -> None:
        minute = int(self.now() // 60)
        if minute != self.minute[mode]:
            self.minute[mode], self.calls[mode], self.fails[mode] = minute, 0, 0
        self.calls[mode] += 1
        self.fails[mode] += failed


class LongCooldown(Cooldown):
    """The same with the longest cooldown its users commonly set: a minute."""

    name = "cooldown 60 s"
    cooldown_s = 60.0


class Breaker(NoResilience):
    """aiobreaker 1.2 as it comes, around each call, and the next mode when it is open.

    `CircuitBreaker(fail_max=3, timeout_duration=timedelta(minutes=5))`, its own states and counts;
    after the hold one trial call (as it comes it lets everyone through then, which would only be
    worse). Every error counts for it, a 429 too, and there are no retries.
    """

    name = "aiobreaker, plain"

    def __init__(self, upstreams: dict[str, SimulatedProvider], rng: random.Random) -> None:
        super().__init__(upstreams, rng)
        self.trials = dict.fromkeys(MODES, False)
        self.breakers = {
            mode: CircuitBreaker(
                fail_max=3,
                timeout_duration=timedelta(minutes=5),
                state_storage=_Virtual(self.now),
                name=mode,
            )
            for mode in MODES
        }

    async def answer(self, ask: Ask) -> str:
        failure: GatewayError = Unavailable("every circuit is open")
        for mode in self.ladder(ask):
            try:
                await self.attempt(mode, ask)
            except StreamInterrupted:
                raise
            except UpstreamError as error:
                failure = error
            except Unavailable:
                pass
            else:
                return mode
        raise failure

    async def attempt(self, mode: str, ask: Ask) -> None:
        breaker = self.breakers[mode]
        trial = breaker.current_state is not CircuitBreakerState.CLOSED
        if trial and self.trials[mode]:
            raise Unavailable("the trial is under way")
        self.trials[mode] |= trial
        try:
            await breaker.call_async(ask_upstream, self.upstreams[mode], mode, ask)
        except CircuitBreakerError as error:
            # It says so in place of the failure that opened it, too: what was first is the cause.
            cause = error.__cause__
            raise cause if isinstance(cause, UpstreamError) else Unavailable("open") from None
        finally:
            if trial:
                self.trials[mode] = False


class _Virtual(CircuitMemoryStorage):  # type: ignore[misc]
    """aiobreaker's own storage, with the hold on virtual time: it asks for no more than whether
    `opened_at` is longer ago than `timeout_duration`.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__(CircuitBreakerState.CLOSED)
        self._now = now
        self._opened = 0.0

    @property
    def opened_at(self) -> datetime:
        over = self._now() - self._opened >= 300.0
        return datetime.now(UTC).replace(tzinfo=None) - timedelta(days=over)

    @opened_at.setter
    def opened_at(self, date_time: datetime) -> None:
        self._opened = self._now()


PEERS: tuple[type[NoResilience], ...] = (NoResilience, Retries, Cooldown, LongCooldown, Breaker)


async def answer_in_time(policy: NoResilience, ask: Ask) -> str:
    """What a caller does with any of them: wait for the answer, until the deadline.

    Raises:
        TimeoutError: the deadline passed.
        GatewayError: there is no answer.
    """
    deadline_s = DEADLINE_S[ask.mode] if ask.deadline_s is None else ask.deadline_s
    async with asyncio.timeout(deadline_s):
        return await policy.answer(ask)
