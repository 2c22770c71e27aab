"""The dashboard: a page for people, a stream that keeps it live, a screenful of text for curl."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from gateway.errors import AdmissionRejected
from gateway.gateway import Gateway
from gateway.openai_api.words import Call, Reply, Routes
from gateway.server.assets import SAFE, Assets
from gateway.server.broadcast import Broadcast
from gateway.telemetry.live import Live
from gateway.telemetry.picture import History, picture

_encode = msgspec.json.Encoder().encode
_TEXT = ("content-type", "text/plain; charset=utf-8")
_STREAM = [
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-store"),
    ("x-accel-buffering", "no"),  # nginx would hold events back
    *SAFE,
]
_EXCHANGE_S: Final = 1.0


class Dashboard:
    """Shows how it stands.

    Args:
        gateway: whose configuration is shown beside its figures.
        live: knows the figures.
    """

    def __init__(self, gateway: Gateway, live: Live) -> None:
        self._gateway = gateway
        self._live = live
        self._broadcast = Broadcast(self._frame)
        self._history = History()
        self._told: dict[str, int] = {}
        self._exchange: asyncio.Task[None] | None = None
        live.on_news = self._broadcast.wake

    def routes(self) -> Routes:
        """What this file answers."""
        return {
            ("GET", "/"): self.page,
            ("GET", "/dashboard/"): self.asset,
            ("GET", "/live"): self.stream,
        }

    async def page(self, call: Call) -> Reply:
        """The page, or for whoever does not ask for HTML the same in a screenful of text."""
        if "text/html" in call.headers.get("accept", ""):
            return self._assets.reply("dashboard.html", call)
        text = "\n".join(_text(self._picture())) + "\n"
        return 200, [_TEXT, ("cache-control", "no-store"), *SAFE], text.encode()

    async def asset(self, call: Call) -> Reply:
        """A file of the page."""
        return self._assets.reply(call.path.removeprefix("/dashboard/"), call)

    async def stream(self, call: Call) -> Reply:
        """How it stands, each second and when something happens, as server-sent events.

        The first frame has the whole event log, the others what is new in it.
        """
        if self._broadcast.full:
            raise AdmissionRejected("too many people look at the dashboard", retry_after=5.0)
        if call.method == "HEAD":
            return 200, _STREAM, b""
        return 200, _STREAM, self._broadcast.frames()

    def start(self) -> None:
        """Begin to exchange figures with the other workers, if there are any."""
        if self._live.board is not None and self._exchange is None:
            self._exchange = asyncio.get_running_loop().create_task(self._put_up())

    def close(self) -> None:
        """End all streams at once, so that they never hold up a stop. Idempotent."""
        self._broadcast.close()
        if self._exchange is not None:
            self._exchange.cancel()

    @functools.cached_property
    def _assets(self) -> Assets:
        return Assets()

    def _frame(self, whole: bool) -> bytes:
        shown = self._picture()
        events = shown["events"]
        if not whole:
            shown["events"] = [e for e in events if self._told.get(e["key"]) != e["times"]]
            self._told = {event["key"]: event["times"] for event in events}
        return b"data: " + _encode(shown) + b"\n\n"

    def _picture(self) -> dict[str, Any]:
        shown = picture(self._live.together(), self._history)
        config = self._gateway.config
        shown["budget_tokens"] = config.budget.tokens
        shown["cache"]["enabled"] = config.cache.enabled
        return shown

    async def _put_up(self) -> None:
        """Tell the other workers how this one stands, while somebody looks at one of them."""
        while True:
            await asyncio.sleep(_EXCHANGE_S)
            if not len(self._broadcast) and self._live.wanted():
                self._live.put_up(self._live.snapshot())


# -- for curl -------------------------------------------------------------------------------------


def _text(shown: Mapping[str, Any]) -> Iterator[str]:
    minute = shown["minute"]
    yield shown["headline"]["text"]
    yield ""
    yield f"{'mode':<12}{'phase':<28}{'TTL':>8}{'in flight':>12}{'first token':>14}  answered by"
    for mode in shown["modes"]:
        name = mode["name"]
        by_mode = minute["by_mode"].get(name, {"first_token_ms": {"p50": None}})
        yield (
            f"{name:<12}{_phase(mode):<28}{mode['ttl_s']:>6.0f} s{mode['in_flight']:>12}"
            f"{_ms(by_mode['first_token_ms']['p50']):>14}  {_who(minute['flow'].get(name, {}))}"
        )
    latency = minute["latency_ms"]
    hits = "-" if minute["hit_share"] is None else f"{minute['hit_share'] * 100:.0f} %"
    yield ""
    yield (
        f"last minute  {minute['requests']} requests, {minute['degraded']} answered by a lower "
        f"mode, {minute['failed']} failed, {minute['refused']} refused, cache hits {hits}"
    )
    yield (
        f"answers      p50 {_ms(latency['p50'])}, p95 {_ms(latency['p95'])}, "
        f"p99 {_ms(latency['p99'])}; {shown['in_flight']} in flight, {shown['queued']} queued"
    )
    yield ""
    for event in shown["events"][-8:]:
        times = f" ({event['times']} times)" if event["times"] > 1 else ""
        yield f"{event['ago_s']:>8.0f} s ago  {event['text']}{times}"
    if not shown["events"]:
        yield "nothing has happened yet"
    yield ""
    yield "a browser shows this live; /status has it as JSON"


def _phase(mode: Mapping[str, Any]) -> str:
    phase: str = mode["phase"].replace("_", " ")
    return phase if not mode["until_s"] else f"{phase}, {mode['until_s']:.0f} s to go"


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value / 1000:.2f} s" if value >= 1000 else f"{value:.3g} ms"


def _who(flow: Mapping[str, int]) -> str:
    whole = sum(flow.values())
    ranked = sorted(flow.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{by.lstrip(':')} {count / whole:.0%}" for by, count in ranked) or "not asked"
