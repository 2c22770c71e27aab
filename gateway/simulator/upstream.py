"""An upstream that is only pretended: a queue, slots, tokens at a rate, and faults on cue.

It is a `Provider` like any other, so the real pipeline runs against it, on virtual time or on real
time (`kind = "simulated"` in config.toml). Its answers are numbered words that follow from the
prompt, so a lost, doubled or foreign token shows at once.
"""

from __future__ import annotations

import asyncio
import math
import random
from typing import NoReturn

import msgspec

from gateway.errors import (
    ConfigError,
    ErrorKind,
    UpstreamError,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from gateway.generation import Choice, Chunk, Delta
from gateway.modes import TargetOptions
from gateway.providers.base import Call
from gateway.simulator.answers import count_words, numbered_words
from gateway.simulator.faults import Effects, FaultPlan, How, read_plan
from gateway.simulator.service import Service, Slots, UpstreamStats


class SimulatedProvider:
    """One simulated target.

    Args:
        name: for people and logs.
        service: how it serves while nothing is wrong.
        plan: what goes wrong and when.
        model: the name it answers with.
        domain: failure domain; "" is its own.
        context_window: words of prompt it takes, None for any number.
        streams: False gives the whole answer at once, when it is finished.
        origin: where on the event loop's clock the plan's time 0 lies; None is the first call.
    """

    continues = True

    def __init__(
        self,
        name: str = "simulated/simulated",
        *,
        service: Service | None = None,
        plan: FaultPlan | None = None,
        model: str = "simulated",
        domain: str = "",
        context_window: int | None = None,
        streams: bool = True,
        origin: float | None = 0.0,
    ) -> None:
        self.service = service or Service()
        self.plan = plan or FaultPlan()
        self.name, self.model, self.domain = name, model, domain or name
        self.identity = f"simulated {name} {model} {self.service.seed}"
        self.context_window = context_window
        self.streams = streams
        self.stats = UpstreamStats()
        self._origin = origin
        self._rng = random.Random(self.service.seed)  # noqa: S311 - chance, not secrecy
        self.slots = Slots(self._capacity)

    @classmethod
    def from_options(cls, options: TargetOptions) -> SimulatedProvider:
        """The target a configuration describes: `options` holds `Service`'s fields and `faults`.

        The faults' times count from the first call.

        Raises:
            ConfigError: an unknown key, or a value outside its range.
        """
        knobs = dict(options.options)
        plan = read_plan(knobs.pop("faults", ()))
        try:
            service = msgspec.convert(knobs, Service)
        except msgspec.ValidationError as error:
            known = ", ".join((*Service.__struct_fields__, "faults"))
            raise ConfigError(f"{error}; known options: {known}", key="options") from None
        model = options.model or "simulated"
        return cls(
            f"simulated/{model}",
            service=service,
            plan=plan,
            model=model,
            domain=options.base_url,
            context_window=options.context_window or None,
            streams=options.stream_upstream,
            origin=None,
        )

    def now(self) -> float:
        """Seconds on the plan's clock."""
        now = asyncio.get_running_loop().time()
        if self._origin is None:
            self._origin = now
        return now - self._origin

    def tokens(self, call: Call) -> list[str]:
        """The tokens a complete answer to `call` has; joined they are its text.

        They follow from seed, model and messages. A `prefix` is continued: its words are counted,
        and numbering goes on from there.
        """
        limit = call.params.get("max_completion_tokens") or call.params.get("max_tokens")
        return numbered_words(
            [self.service.seed, self.model, call.messages],
            min(self.service.tokens, limit or self.service.tokens),
            first=len(call.prefix.split()),
        )

    async def open(self, call: Call) -> SimulatedReply:
        """Accept the call, or fail as the plan says."""
        now = self.now()
        effects = self.plan.at(now, self._rng)
        self.stats.arrive(now, down=self.plan.outage(now) is not None)
        try:
            await asyncio.sleep(self.service.round_trip_s * effects.latency)
            if effects.fails == "silent":
                await silence()
            self._refuse(call, effects)
        except UpstreamError as error:
            self.stats.leave(error)
            raise
        except BaseException:
            self.stats.leave("cancelled")
            raise
        return SimulatedReply(self, call, effects)

    async def aclose(self) -> None:
        """Nothing is held between calls."""

    def _refuse(self, call: Call, effects: Effects) -> None:
        """Raise what this call is answered with instead of a stream."""
        prompt = count_words(call.messages)
        if effects.fails in ("refuse", "reset"):
            what = "connection refused" if effects.fails == "refuse" else "connection reset"
            raise UpstreamUnavailable(what, kind=ErrorKind.CONNECT, target=self.name)
        if effects.fails == "error500":
            raise UpstreamUnavailable("internal error", target=self.name, status=500)
        if effects.throttled:
            raise UpstreamThrottled(
                "too many requests", target=self.name, status=429, retry_after=effects.retry_after
            )
        if self.context_window is not None and prompt > self.context_window:
            raise UpstreamRejected(
                f"maximum context length is {self.context_window} words, the prompt has {prompt}",
                kind=ErrorKind.CONTEXT,
                target=self.name,
                status=400,
            )
        if self.slots.queued >= self.service.queue and not self.slots.free():
            raise UpstreamUnavailable(
                "the request queue is full",
                kind=ErrorKind.OVERLOADED,
                target=self.name,
                status=503,
            )

    def _capacity(self) -> int:
        return int(self.service.slots * self.plan.capacity(self.now()))

    def first_token_s(self) -> float:
        """Draw the seconds from a slot to the first token."""
        return self._rng.lognormvariate(math.log(self.service.first_token_s), self.service.spread)


class SimulatedReply:
    """An answer under way: waits for its slot, then gives its tokens as they are due."""

    def __init__(self, provider: SimulatedProvider, call: Call, effects: Effects) -> None:
        self._provider = provider
        self._effects = effects
        self._tokens = provider.tokens(call)
        self._cut_short = len(self._tokens) + len(call.prefix.split()) < provider.service.tokens
        self._prompt_words = count_words(call.messages)
        self._id = f"simulated-{provider.stats.started}"
        cut, stall = (
            math.inf if after is None else after
            for after in (effects.cut_after, effects.stall_after)
        )
        self._stalls = stall <= cut
        self._breaks_after = min(cut, stall)
        if not provider.streams and self._breaks_after <= len(self._tokens):
            self._breaks_after = 0
        self._pace = effects.latency / provider.service.tokens_per_s
        self._first_at: float | None = None
        self._sent = 0
        self._ended = False
        self._turn = provider.slots.enter()

    async def read(self) -> list[Chunk]:
        if self._ended:
            return []
        try:
            if not self._turn.done():
                await asyncio.shield(self._turn)
            if self._first_at is None:
                wait = self._provider.first_token_s() * self._effects.latency
                self._first_at = self._provider.now() + wait
                if self._provider.streams and self._breaks_after != 0:
                    return [self._chunk(Delta(role="assistant", content=""))]
            return await self._next_tokens(self._first_at)
        except UpstreamError as error:
            self._end(error)
            raise

    async def _next_tokens(self, first_at: float) -> list[Chunk]:
        """Wait until a token is due, and return all that are."""
        total = len(self._tokens)
        awaited = self._sent if self._provider.streams else max(total - 1, 0)
        due = first_at + awaited * self._pace
        if (wait := due - self._provider.now()) > 0:
            await asyncio.sleep(wait)
        now = self._provider.now()
        await self._suffer(self._provider.plan.outage(now))

        # The one waited for, and those that came while the reader was elsewhere.
        arrived = min(awaited + 1 + int((now - due) / self._pace), total)
        breaks_next = self._sent < self._breaks_after <= arrived
        if breaks_next:
            arrived = int(self._breaks_after)
        tokens, self._sent = self._tokens[self._sent : arrived], arrived
        if not self._provider.streams:
            tokens = ["".join(tokens)]
        chunks = [self._chunk(Delta(content=token)) for token in tokens]
        return chunks if breaks_next or arrived < total else [*chunks, *self._finish()]

    async def _suffer(self, outage: How | None) -> None:
        """Break where the plan says so; an outage takes streams under way with it."""
        broken = self._sent == self._breaks_after
        if outage == "silent" or (broken and self._stalls):
            await silence()
        if outage in ("refuse", "reset") or broken:
            raise UpstreamUnavailable(
                f"the stream ended after {self._sent} tokens without a finish",
                kind=ErrorKind.INTERRUPTED,
                target=self._provider.name,
            )

    def _finish(self) -> list[Chunk]:
        self._end("completed")
        finish = self._chunk(Delta(), "length" if self._cut_short else "stop")
        usage = self._chunk(None)
        usage.usage = {
            "prompt_tokens": self._prompt_words,
            "completion_tokens": self._sent,
            "total_tokens": self._prompt_words + self._sent,
        }
        return [finish, usage]

    def _chunk(self, delta: Delta | None, finish_reason: str | None = None) -> Chunk:
        choices = [] if delta is None else [Choice(delta, finish_reason=finish_reason)]
        return Chunk(choices, id=self._id, model=self._provider.model)

    def close(self) -> None:
        self._end("cancelled")

    def _end(self, how: UpstreamError | str) -> None:
        """Count the end and give the slot back, once."""
        if not self._ended:
            self._ended = True
            self._provider.stats.leave(how)
            self._provider.slots.leave(self._turn)


async def silence() -> NoReturn:
    """Say nothing for ever; only cancellation ends it."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError("nobody resolves this future")
