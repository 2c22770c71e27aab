"""How things stand, as samples: what `Gateway.status` says, in the names of the metrics.

Read when somebody scrapes, so it is right without traffic: a mode whose hold ran out says so
though nobody asked for it (B12). With several workers each has its own circuits and queue; the
samples of all are combined as the table says, and nothing stays behind of a mode that is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

Sample = tuple[str, tuple[str, ...], float]
"""Name, label values in the table's order, value."""

PHASES = (
    "closed",
    "forced_closed",
    "recovering",
    "probing",
    "probe_due",
    "open",
    "forced_open",
)
"""Their place is their number in `gateway_circuit_phase`: the higher, the worse."""


class Gauge(NamedTuple):
    """One metric: what it says, its labels, and how the workers' values make one."""

    help: str
    labels: tuple[str, ...] = ()
    combine: Callable[[Iterable[float]], float] = sum


_TARGET = ("mode", "target")

GAUGES: dict[str, Gauge] = {
    "gateway_circuit_phase": Gauge(
        "Phase of a mode's circuit: "
        + ", ".join(f"{number} {phase}" for number, phase in enumerate(PHASES))
        + "; the worst of all workers.",
        ("mode",),
        max,
    ),
    "gateway_mode_downshifted": Gauge(
        "1 while a lower mode answers for this one, be it open or all its targets at rest.",
        ("mode",),
        max,
    ),
    "gateway_mode_hold_seconds": Gauge(
        "Seconds until a downshifted mode may be back; 0 if it is, or nobody knows.",
        ("mode",),
        max,
    ),
    "gateway_cache_ttl_seconds": Gauge(
        "Freshness lifetime now in force for answers to requests for this mode.", ("mode",), min
    ),
    "gateway_mode_in_flight": Gauge(
        "Requests a mode works on, its own and those downshifted to it.", ("mode", "origin")
    ),
    "gateway_mode_limit": Gauge("Requests a mode takes at once, as adapted to load.", ("mode",)),
    "gateway_mode_cap": Gauge(
        "Requests its circuit lets in at once; below the limit while it recovers.", ("mode",)
    ),
    "gateway_target_in_flight": Gauge("Requests a target works on.", _TARGET),
    "gateway_target_rest_seconds": Gauge(
        "Seconds a target is still left alone (throttled, overloaded, key or bill).", _TARGET, max
    ),
    "gateway_retry_budget_tokens": Gauge(
        "What is left to pay second attempts from; they need more than half of it.", _TARGET, min
    ),
    "gateway_cache_bytes": Gauge("Memory the response cache takes."),
    "gateway_cache_max_bytes": Gauge("Memory the response cache may take."),
    "gateway_cache_entries": Gauge("Answers in the response cache."),
    "gateway_queue_depth": Gauge("Requests that wait for a slot."),
    "gateway_in_flight_requests": Gauge("Requests under way, waiting ones included."),
    "gateway_key_tokens_left": Gauge(
        "Tokens a key has left this month; keys without a budget have none.", ("key",), min
    ),
    "gateway_key_in_flight": Gauge("Requests under way that count against a key.", ("key",)),
    "gateway_listener_faults": Gauge("How often a listener of events has raised."),
    "gateway_config_on_trial": Gauge(
        "1 while a new configuration may still be taken back by itself.", (), max
    ),
    "gateway_config_reload_success": Gauge(
        "0 if the last reload was refused or taken back, else 1.", (), min
    ),
    "gateway_workers": Gauge("Processes that serve."),
}


def samples_of(status: Mapping[str, Any]) -> Iterator[Sample]:
    """One worker's samples, out of its `Gateway.status()`.

    How the keys stand (`Accounts.status`) is read from `status["keys"]`, where it is given.
    """
    for mode, about in status["modes"].items():
        yield from _mode(mode, about)
    cache = status["cache"]
    for name in ("bytes", "max_bytes", "entries"):
        if name in cache:  # a store shared by many does not know its own size
            yield f"gateway_cache_{name}", (), cache[name]
    yield "gateway_queue_depth", (), status["queued"]
    yield "gateway_in_flight_requests", (), status["in_flight"]
    for key, about in status.get("keys", {}).items():
        yield "gateway_key_in_flight", (key,), about["in_flight"]
        if "monthly_tokens" in about:
            month = about["monthly_tokens"]
            yield "gateway_key_tokens_left", (key,), max(0, month["limit"] - month["used"])
    yield "gateway_listener_faults", (), status["listener_faults"]
    yield "gateway_config_on_trial", (), status["config"]["on_trial"]
    yield "gateway_workers", (), 1


def _mode(mode: str, about: Mapping[str, Any]) -> Iterator[Sample]:
    yield "gateway_circuit_phase", (mode,), PHASES.index(about["phase"])
    yield "gateway_mode_downshifted", (mode,), about["downshifted"]
    yield "gateway_mode_hold_seconds", (mode,), about["until_s"] or 0.0
    yield "gateway_cache_ttl_seconds", (mode,), about["ttl_s"]
    yield "gateway_mode_limit", (mode,), about["limit"]
    yield "gateway_mode_cap", (mode,), about["cap"]
    for origin in ("native", "downshifted"):
        yield "gateway_mode_in_flight", (mode, origin), about["in_flight"][origin]
    alike: dict[str, int] = {}
    for target in about["targets"]:
        # The same model at two places has one name: number them, or one would hide the other.
        number = alike[target["name"]] = alike.get(target["name"], 0) + 1
        labels = (mode, target["name"] if number == 1 else f"{target['name']}#{number}")
        yield "gateway_target_in_flight", labels, target["in_flight"]
        yield "gateway_target_rest_seconds", labels, target["resting_s"]
        yield "gateway_retry_budget_tokens", labels, target["budget_tokens"]


def combined(workers: Iterable[Iterable[Sample]]) -> dict[str, dict[tuple[str, ...], float]]:
    """The samples of all workers as one: label values and value of each metric in the table."""
    values: dict[str, dict[tuple[str, ...], list[float]]] = {name: {} for name in GAUGES}
    for samples in workers:
        for name, labels, value in samples:
            values[name].setdefault(tuple(labels), []).append(float(value))
    return {
        name: {labels: GAUGES[name].combine(each) for labels, each in found.items()}
        for name, found in values.items()
    }
