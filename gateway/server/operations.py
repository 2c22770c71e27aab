"""What operators ask: is it alive, is it ready, how does it stand; and what they may move."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from gateway.errors import ConfigError, InvalidRequest
from gateway.gateway import Gateway
from gateway.openai_api.words import JSON, Call, Reply, Routes
from gateway.policies.keys import ADMIN
from gateway.telemetry.metrics import Metrics

_encode = msgspec.json.Encoder(order="sorted").encode


class BrokenConfig(InvalidRequest):
    """The configuration file to be loaded is broken; the message says where."""

    code = "config_error"


class Operations:
    """Health, status, metrics, feedback and steering.

    Args:
        gateway: what they are about.
        reload: reads the configuration again; returns the keys that wait for a restart.
        metrics: the Prometheus page.

    Attributes:
        stopping: True once the service drains: readiness says no, requests are still answered.
    """

    def __init__(
        self,
        gateway: Gateway,
        reload: Callable[[], list[str]],
        metrics: Metrics,
    ) -> None:
        self.stopping = False
        self._gateway = gateway
        self._metrics = metrics
        self._reload = reload

    def routes(self) -> Routes:
        """What this file answers."""
        return {
            ("GET", "/livez"): self.live,
            ("GET", "/health/liveness"): self.live,
            ("GET", "/readyz"): self.ready,
            ("GET", "/health/readiness"): self.ready,
            ("GET", "/health"): self.health,
            ("GET", "/status"): self.status,
            ("POST", "/feedback"): self.feedback,
            ("POST", "/admin/force"): self.force,
            ("POST", "/admin/reload"): self.reload,
            ("GET", "/metrics"): self.metrics,
        }

    async def live(self, call: Call) -> Reply:
        """The event loop turns."""
        return 200, [JSON], b'{"status":"ok"}'

    async def ready(self, call: Call) -> Reply:
        """Send me traffic: at least one mode can be tried, and no stop signal has come."""
        ready, why = self._readiness()
        body = _encode({"status": "ready" if ready else "not ready", "reason": why})
        return 200 if ready else 503, [JSON], body

    async def health(self, call: Call) -> Reply:
        """A summary for people and load balancers."""
        ready, why = self._readiness()
        modes = {name: of["phase"] for name, of in self._gateway.status()["modes"].items()}
        well = all(phase in ("closed", "recovering", "forced_closed") for phase in modes.values())
        state = "ok" if ready and well else "degraded" if ready else "unavailable"
        body = _encode({"status": state, "reason": why, "modes": modes})
        return 200 if ready else 503, [JSON], body

    async def status(self, call: Call) -> Reply:
        """Everything `Gateway.status` knows; of keys, an ordinary one sees itself alone."""
        status, key = self._gateway.status(), call.caller.key
        if key not in ("", ADMIN):
            status["keys"] = {name: of for name, of in status["keys"].items() if name == key}
        return 200, [JSON], _encode(status)

    async def metrics(self, call: Call) -> Reply:
        """The Prometheus exposition; rendered in a thread, as it takes milliseconds."""
        self._metrics.refresh()
        page = await asyncio.to_thread(self._metrics.render)
        return 200, [("content-type", self._metrics.content_type)], page

    async def feedback(self, call: Call) -> Reply:
        """`{"generation_id", "rating", ...}`: keep what a person thinks of an answer."""
        fields = json_object(call)
        generation_id, rating = fields.pop("generation_id", None), fields.pop("rating", None)
        if not isinstance(generation_id, str):
            raise InvalidRequest("generation_id must be the id of an answer", param="generation_id")
        if isinstance(rating, bool) or not isinstance(rating, (int, float)):
            raise InvalidRequest("rating must be a number from 1 to 5", param="rating")
        fields.pop("tenant", None)
        await self._gateway.feedback(
            generation_id, float(rating), tenant=call.caller.tenant, **fields
        )
        return 200, [JSON], b'{"status":"kept"}'

    async def force(self, call: Call) -> Reply:
        """`{"mode", "how": "open" | "closed" | "auto"}`."""
        fields = json_object(call)
        self._gateway.force(str(fields.get("mode", "")), str(fields.get("how", "")))
        return 200, [JSON], _encode(self._gateway.status()["modes"])

    async def reload(self, call: Call) -> Reply:
        """Read the configuration file again."""
        try:
            waiting = self._reload()
        except ConfigError as error:
            raise BrokenConfig(error.message, param=error.key) from None
        status = self._gateway.status()["config"]
        return 200, [JSON], _encode({**status, "restart_needed": waiting})

    def _readiness(self) -> tuple[bool, str]:
        if self.stopping:
            return False, "stopping"
        modes = self._gateway.status()["modes"].values()
        if all(of["phase"] in ("open", "probing", "forced_open") for of in modes):
            return False, "every mode is held open"
        return True, ""


def json_object(call: Call) -> dict[str, Any]:
    """The body of a call as a JSON object.

    Raises:
        InvalidRequest: it is none.
    """
    try:
        fields = msgspec.json.decode(call.body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("the body must be a JSON object")
    return fields
