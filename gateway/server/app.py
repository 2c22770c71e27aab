"""Puts the service together: configuration -> gateway, keys, telemetry, routes -> application."""

from __future__ import annotations

from gateway.config import Config
from gateway.events import Event, Listener
from gateway.gateway import Gateway
from gateway.server.access import Access
from gateway.server.asgi import ASGI
from gateway.server.operations import Operations
from gateway.server.service import Service


class App:
    """One worker's service.

    Args:
        config: what to serve.

    Attributes:
        gateway, service, operations: its parts.
        asgi: the ASGI application.
    """

    def __init__(self, config: Config) -> None:
        listeners = _listeners(config)
        self.gateway = Gateway(config, listeners=listeners)
        self.operations = Operations(self.gateway)
        self.service = Service(
            self.gateway,
            Access(config),
            self.operations.routes(),
            tell=_all(listeners),
        )
        self.asgi = ASGI(self.service, config.server, start=self.start, stop=self.stop)

    async def start(self) -> None:
        """Nothing to prepare: targets connect when they are asked."""

    async def stop(self) -> None:
        """Close the gateway."""
        await self.gateway.aclose()


def _listeners(config: Config) -> list[Listener]:
    listeners: list[Listener] = []
    if config.server.log != "off":
        from gateway.telemetry.logs import log_listener  # noqa: PLC0415

        listeners.append(log_listener(json=config.server.log == "json"))
    return listeners


def _all(listeners: list[Listener]) -> Listener:
    def tell(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return tell
