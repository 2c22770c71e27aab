"""Asks a running service how it stands, and says it in a few lines; `gateway status`."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from gateway.errors import ConfigError, GatewayError


class NoAnswer(GatewayError):
    """Nobody answers there, or it says no."""

    code = "no_answer"


def ask(url: str, timeout_s: float = 5.0) -> dict[str, Any]:
    """`GET /status` and whether it is ready.

    Args:
        url: where the service listens. A key it may want is read from `GATEWAY_KEY`.
        timeout_s: how long it may take, seconds.

    Raises:
        ConfigError: no URL.
        NoAnswer: nobody answers, or nothing that a gateway would say.
    """
    place = urlsplit(url if "://" in url else f"http://{url}")
    if place.scheme not in ("http", "https") or not place.hostname:
        raise ConfigError(f"expected a URL such as http://127.0.0.1:8080, got {url!r}")
    kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
    key = os.environ.get("GATEWAY_KEY", "")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    connection = kind(place.netloc, timeout=timeout_s)
    try:
        ready, _ = _get(connection, f"{place.path.rstrip('/')}/readyz", headers)
        code, body = _get(connection, f"{place.path.rstrip('/')}/status", headers)
        status = json.loads(body)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NoAnswer(f"no gateway answers at {url}: {error}") from None
    finally:
        connection.close()
    if code != 200 or "modes" not in status:
        said = status.get("error", {}).get("message", f"status {code}")
        raise NoAnswer(f"{url} does not say how it stands: {said}")
    return {"ready": ready == 200, **status}


def table(status: Mapping[str, Any]) -> str:
    """A line a mode, and one for the rest."""
    return "\n".join(_lines(status))


def _lines(status: Mapping[str, Any]) -> Iterator[str]:
    yield f"{'mode':<12}{'phase':<16}{'back in':>9}{'TTL':>9}{'in flight':>11}  answered by"
    for name, mode in status["modes"].items():
        until, flight = mode["until_s"], mode["in_flight"]
        yield (
            f"{name:<12}{mode['phase'].replace('_', ' '):<16}"
            f"{'-' if until is None else f'{until:.0f} s':>9}{mode['ttl_s']:>7.0f} s"
            f"{flight['native'] + flight['downshifted']:>11}  "
            f"{', '.join(_target(target) for target in mode['targets'])}"
        )
    config = status["config"]
    yield ""
    yield (
        f"{'ready' if status['ready'] else 'not ready'}; {status['in_flight']} in flight, "
        f"{status['queued']} queued; configuration {config['source'] or 'built in code'}"
        f"{', on trial' if config['on_trial'] else ''}"
    )


def _target(target: Mapping[str, Any]) -> str:
    resting = target["resting_s"]
    return f"{target['name']}{f' (rests {resting:.0f} s)' if resting else ''}"


def _get(
    connection: http.client.HTTPConnection, path: str, headers: Mapping[str, str]
) -> tuple[int, bytes]:
    connection.request("GET", path, headers=dict(headers))
    response = connection.getresponse()
    return response.status, response.read()
