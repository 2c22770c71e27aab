"""The path of a request, on one page.

    observe -> quota -> deadline -> response_cache -> admission -> circuit_breaker -> provider

A hit never reaches admission, so answers from the store work in a total outage; admission stands
before the ladder, so an open mode holds no place in the queue.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from gateway.clock import Clock
from gateway.config import Config
from gateway.detectors.latency import LatencyDetector
from gateway.errors import ConfigError
from gateway.events import CircuitChanged, EventBus
from gateway.generation import Generation, GenerationRequest
from gateway.middleware.admission import Admission
from gateway.middleware.base import Answer, Handler, compose
from gateway.middleware.circuit_breaker import CircuitBreaker
from gateway.middleware.deadline import Deadline
from gateway.middleware.observe import Observe
from gateway.middleware.quota import Quota, open_usage
from gateway.middleware.response_cache import ResponseCache
from gateway.modes import ModeOptions, Modes, TargetOptions
from gateway.policies.agreement import Agreement
from gateway.policies.budget import RetryBudget
from gateway.policies.circuit import Circuit
from gateway.policies.downshift import Ladder, Rung, Target
from gateway.policies.limit import Limit
from gateway.policies.phases import CircuitOptions, Transition
from gateway.policies.quota import Accounts
from gateway.providers.base import Provider
from gateway.registry import Clients, build_provider, build_store, resolve
from gateway.stores.base import Store

if TYPE_CHECKING:
    from gateway.stores.shared import SharedStore


class Pipeline:
    """A configuration brought to life: the ladder and the layers above it.

    Built anew on each reload. Circuits, limits, providers and the store are taken over from the
    pipeline before where their names and options allow, so a reload forgets nothing it need not.

    Args:
        config: what to build.
        clock: monotonic seconds.
        events: told what happens.
        latency: what first-token times are normal, kept across reloads.
        on_end: told of every request's end: by whom, and the answer or the error.
        before: the pipeline this one replaces.
        shared: where workers agree on their circuits; None is one worker.

    Raises:
        ConfigError: a target cannot be built; names the table.
    """

    def __init__(
        self,
        config: Config,
        clock: Clock,
        events: EventBus,
        latency: LatencyDetector,
        on_end: OnEnd,
        before: Pipeline | None = None,
        shared: SharedStore | None = None,
    ) -> None:
        self.config = config
        self.modes = Modes(config.modes)
        self.in_flight = 0
        self.on_idle: Callable[[], None] | None = None
        self.providers: list[tuple[TargetOptions, Provider]] = []
        self._on_end = on_end
        self._clock = clock
        self._events = events
        self._shared = shared
        self.clients: Clients = before.clients if before else Clients()
        self.store = self._store(before)
        self.ladder = Ladder(self._rungs(latency, before), clock)
        self.cache = ResponseCache(self.store, config.cache, self.ladder, clock)
        line = before.admission.line if before else None
        self.admission: Admission = Admission(self.ladder, config.admission, clock, line)
        self.gearbox = CircuitBreaker(self.ladder, clock, events)
        self.accounts: Accounts = (
            before.accounts if before else Accounts(clock, rates=shared, open_months=open_usage)
        )
        workers = config.server.workers if shared is not None else 1
        self.accounts.configure(config.keys, path=config.server.usage_path, workers=workers)
        quota = [Quota(self.accounts, self.ladder, clock)] if config.keys else []
        self._handle: Handler = compose(
            [
                Observe(events, clock, self._ended),  # 1 what happened, told once
                *quota,  # 2 what each key may use
                Deadline(self.ladder, clock),  # 3 one absolute deadline
                self.cache,  # 4 hit, miss, single flight, stale-if-error
                self.admission,  # 5 shed before it queues
            ],
            terminal=self.gearbox,  # 6 the ladder
        )

    def answer(self, request: GenerationRequest) -> Awaitable[Answer]:
        """Send one request down the path."""
        self.in_flight += 1
        return self._handle(request)

    async def retire(self, others: Sequence[Pipeline]) -> None:
        """Close what none of `others`, which are still in use, has taken over."""
        self.gearbox.close()
        kept = {id(provider) for other in others for _, provider in other.providers}
        for provider in self._own_providers():
            if id(provider) not in kept:
                await provider.aclose()
        if all(self.store is not other.store for other in others):
            await self.store.aclose()

    async def aclose(self) -> None:
        """Stop every request under way and close everything."""
        await self.cache.aclose()
        self.gearbox.close()
        for provider in self._own_providers():
            await provider.aclose()
        await self.clients.aclose()
        await self.store.aclose()
        self.accounts.close()

    def _own_providers(self) -> list[Provider]:
        return list({id(provider): provider for _, provider in self.providers}.values())

    def _ended(self, generation: Generation | None, error: BaseException | None) -> None:
        self.in_flight -= 1
        self._on_end(self, generation, error)
        if self.in_flight == 0 and self.on_idle is not None:
            self.on_idle()

    def _store(self, before: Pipeline | None) -> Store:
        config = self.config.cache
        if before is not None:
            old = before.config.cache
            if (old.path, old.max_bytes) == (config.path, config.max_bytes):
                return before.store
        return build_store(config, self._clock)

    def _rungs(self, latency: LatencyDetector, before: Pipeline | None) -> list[Rung]:
        # All that can fail comes first: a configuration that cannot be built changes nothing.
        providers = [
            [self._provider(mode, number, before) for number in range(len(mode.targets))]
            for mode in self.config.modes
        ]
        old = {rung.name: rung for rung in before.ladder} if before else {}
        shared = self._shared
        budgets = self._budgets(list(old.values()))
        lowest = len(self.config.modes) - 1
        rungs = []
        for index, mode in enumerate(self.config.modes):
            options = self.config.circuit
            if index == lowest:
                options = options.for_bottom()  # nothing below it: short holds (B9)
            previous = old.get(mode.name)
            if previous is not None:
                limit, circuit = previous.limit, previous.circuit
                circuit.options = options
                limit.resize(mode.max_in_flight)
            else:
                limit = Limit(mode.max_in_flight, self._clock)
                circuit = _circuit(mode.name, options, limit, self._clock, self._events, shared)
            targets = [
                _target(provider, target.weight, budgets[provider.domain], previous)
                for provider, target in zip(providers[index], mode.targets, strict=True)
            ]
            identity = _identity(mode, targets)
            rungs.append(Rung(index, mode, circuit, limit, targets, latency, self._clock, identity))
        return rungs

    def _budgets(self, old: Sequence[Rung]) -> dict[str, RetryBudget]:
        """One purse for each failure domain; those there are already keep what is in them."""
        budgets = {target.provider.domain: target.budget for rung in old for target in rung.targets}
        for budget in budgets.values():
            budget.resize(self.config.budget)
        for _, provider in self.providers:
            budgets.setdefault(provider.domain, RetryBudget(self.config.budget))
        return budgets

    def _provider(self, mode: ModeOptions, number: int, before: Pipeline | None) -> Provider:
        options = resolve(mode.targets[number], mode.name)
        built = self.providers + (before.providers if before else [])
        provider = next((p for known, p in built if known == options), None)
        if provider is None:
            try:
                provider = build_provider(options, self.clients)
            except ConfigError as error:
                raise ConfigError(
                    error.reason,
                    file=self.config.source,
                    table=f"modes.{mode.name}.targets[{number}]",
                    key=error.key,
                ) from error
        self.providers.append((options, provider))
        return provider


OnEnd = Callable[[Pipeline, Generation | None, BaseException | None], None]


def _target(provider: Provider, weight: float, budget: RetryBudget, before: Rung | None) -> Target:
    """The target as it stood in the rung before, at rest or not, or a new one."""
    for target in before.targets if before else ():
        if target.provider is provider:
            target.weight = weight
            return target
    return Target(provider, budget, weight)


def _circuit(
    mode: str,
    options: CircuitOptions,
    limit: Limit,
    clock: Clock,
    events: EventBus,
    shared: SharedStore | None,
) -> Circuit:
    agreement: Agreement | None = None
    if shared is not None:
        from gateway.stores.cell import Cell  # noqa: PLC0415 - a single worker needs no SQLite

        agreement = Cell(shared, f"circuit/{mode}")

    def tell(moved: Transition) -> None:
        events.emit(
            CircuitChanged(
                at=clock(),
                mode=mode,
                old=moved.old,
                new=moved.new,
                cause=moved.cause,
                epoch=moved.epoch,
                until=circuit.until(),
            )
        )

    circuit = Circuit(
        mode, options, clock, limit=lambda: limit.current, on_change=tell, agreement=agreement
    )
    return circuit


def _identity(mode: ModeOptions, targets: list[Target]) -> bytes:
    """What makes this mode's answers its own (B18): who answers, and with which defaults."""
    answers: Mapping[str, object] = {
        "targets": sorted(target.provider.identity for target in targets),
        "sampling": dict(mode.sampling),
        "thinking": mode.thinking,
    }
    return hashlib.sha256(msgspec.msgpack.encode(answers, order="sorted")).digest()
