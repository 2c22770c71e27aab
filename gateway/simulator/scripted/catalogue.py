"""Everything the scripted upstream can play, by name, to script and to iterate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

from gateway.simulator.scripted.bad import BAD
from gateway.simulator.scripted.errors import HTTP_ERRORS, HttpError
from gateway.simulator.scripted.exchange import Exchange
from gateway.simulator.scripted.fault import Play, ScriptedFault
from gateway.simulator.scripted.good import GOOD, ok

Script: TypeAlias = Sequence[str | Play]
"""What to play, one entry a request: a name of `FAULTS`, or a function of one's own."""


def http_error(error: HttpError) -> ScriptedFault:
    """Answer with this HTTP error."""

    async def play(exchange: Exchange) -> None:
        if isinstance(error.body, dict):
            exchange.json(error.body, error.status, error.header_values())
            return
        content_type = "text/html" if error.body.startswith("<html>") else "text/plain"
        exchange.document(error.body.encode(), content_type, error.status, error.header_values())

    return ScriptedFault(
        play=play,
        says=f"HTTP {error.status}: {error.kind}.",
        kind=error.kind,
        status=error.status,
        retry_after=error.retry_after,
    )


FAULTS: Final[dict[str, ScriptedFault]] = {
    **GOOD,
    **BAD,
    **{name: http_error(error) for name, error in HTTP_ERRORS.items()},
}

SEQUENCES: Final[dict[str, tuple[str, ...]]] = {
    "500_once": ("500", "ok"),
    "reset_once": ("reset", "ok"),
    "429_once": ("429_retry_after_seconds", "ok"),
    "loading_then_ok": ("503_loading", "503_loading", "ok"),
}
"""Scripts with a name."""


def plays(entry: str | Play, *, stream: bool) -> Play:
    """The function that plays an entry; a fault that is not for this form of call plays `ok`."""
    if not isinstance(entry, str):
        return entry
    fault = FAULTS[entry]
    return fault.play if fault.strikes(stream=stream) else ok


def check(script: Script) -> None:
    """Raise ValueError if the script is empty or names something that is not there."""
    if not script:
        raise ValueError("an empty script plays nothing; begin with 'ok'")
    unknown = [entry for entry in script if isinstance(entry, str) and entry not in FAULTS]
    if unknown:
        raise ValueError(f"unknown faults {unknown}; there are {', '.join(FAULTS)}")
