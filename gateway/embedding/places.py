"""The targets of `[[embeddings.targets]]`, by the model they have, and how each one stands."""

from __future__ import annotations

from dataclasses import replace

from gateway.clock import Clock
from gateway.config import Config
from gateway.errors import ConfigError, InvalidRequest
from gateway.events import CircuitChanged, EventBus
from gateway.modes import TargetOptions
from gateway.openai_api.errors import ModelNotFound
from gateway.policies.budget import RetryBudget
from gateway.policies.circuit import Circuit
from gateway.policies.phases import Transition
from gateway.providers.embeddings import Embedder, build_embedder
from gateway.registry import Clients, api_key, resolve

MODE = "embeddings"
"""What events call the mode of a request for vectors."""


class Place:
    """One target and how it stands.

    Args:
        embedder: who is called.
        circuit: its own.
        budget: the purse of its failure domain.

    Attributes:
        weight: relative share, > 0.
        resting_until: left alone until this clock time (429, overload, dead key).
        doubted_until: asked last until this clock time, for it failed a moment ago.
        in_flight: attempts under way.
    """

    __slots__ = (
        "budget",
        "circuit",
        "doubted_until",
        "embedder",
        "in_flight",
        "resting_until",
        "weight",
    )

    def __init__(self, embedder: Embedder, circuit: Circuit, budget: RetryBudget) -> None:
        self.embedder = embedder
        self.circuit = circuit
        self.budget = budget
        self.weight = 1.0
        self.resting_until = self.doubted_until = float("-inf")
        self.in_flight = 0

    def wait_s(self, now: float) -> float:
        """Seconds until it may be asked again, 0 if it may be now."""
        return max(self.resting_until - now, self.circuit.until() or 0.0, 0.0)


class Places:
    """All targets of a configuration.

    Args:
        clock: monotonic seconds.
        events: told when a circuit moves.
    """

    def __init__(self, clock: Clock, events: EventBus) -> None:
        self._clock = clock
        self._events = events
        self._clients = Clients()
        self._config: Config | None = None
        self._budgets: dict[str, RetryBudget] = {}
        # Targets that a reload leaves out stay until the end: it may yet be taken back.
        self._known: list[tuple[TargetOptions, Place]] = []
        self._groups: dict[str, list[Place]] = {}

    def configure(self, config: Config) -> None:
        """Follow a configuration; targets that were in the old one, too, keep how they stand.

        Raises:
            ConfigError: a target cannot be built; everything stays as it was.
        """
        if config is self._config:
            return
        groups: dict[str, list[Place]] = {}
        for number, options in enumerate(config.embeddings):
            try:
                place = self._place(resolve(options, ""), config)
            except ConfigError as error:
                raise ConfigError(
                    error.reason,
                    file=config.source,
                    table=f"embeddings.targets[{number}]",
                    key=error.key,
                ) from error
            groups.setdefault(place.embedder.model, []).append(place)
        for budget in self._budgets.values():
            budget.resize(config.budget)
        self._groups, self._config = groups, config

    @property
    def models(self) -> list[str]:
        """The models there are, the default one first."""
        return list(self._groups)

    def of(self, model: str | None) -> list[Place]:
        """The targets that have a model; None, "" and "auto" stand for the first one.

        Raises:
            ModelNotFound: nobody has it; says which there are, or how to add one.
        """
        if not self._groups or self._config is None:
            raise ModelNotFound(
                "no embedding model is configured; add [[embeddings.targets]] with kind, base_url "
                "and model to the configuration",
                param="model",
            )
        if not isinstance(model, str | None):
            raise InvalidRequest("model must be a string", param="model")
        name = self._config.aliases.get(model or "", model or "")
        if name in ("", "auto"):
            name = self.models[0]
        if name not in self._groups:
            known = ", ".join(self.models)
            raise ModelNotFound(
                f"the embedding model {name[:100]!r} does not exist; ask for {known}",
                param="model",
            )
        return self._groups[name]

    async def aclose(self) -> None:
        """Close connections."""
        await self._clients.aclose()

    def _place(self, options: TargetOptions, config: Config) -> Place:
        # Below its siblings stands nothing, so holds are short (B9). Vectors come whole, so there
        # is no first token to be overdue, and there is no queue to wait in while a ramp climbs.
        rules = replace(config.circuit.for_bottom(), slow_s=0.0, ramp_s=0.0)
        for known, place in self._known:
            if known == options:
                place.circuit.options = rules
                return place
        embedder = build_embedder(options, self._clients.for_target(options), api_key)
        circuit = Circuit(
            f"{MODE}:{embedder.name}",
            rules,
            self._clock,
            on_change=lambda moved: self._moved(place, moved),
        )
        budget = self._budgets.setdefault(embedder.domain, RetryBudget(config.budget))
        place = Place(embedder, circuit, budget)
        place.weight = options.weight
        self._known.append((options, place))
        return place

    def _moved(self, place: Place, moved: Transition) -> None:
        self._events.emit(
            CircuitChanged(
                at=self._clock(),
                mode=place.circuit.name,
                old=moved.old,
                new=moved.new,
                cause=moved.cause,
                epoch=moved.epoch,
                until=place.circuit.until(),
            )
        )
