"""The gateways that meet the wall, each with the best configuration its documentation offers."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import ClassVar

from gateway.faultlab import Given, Lab, Ours, recipes
from gateway.faultlab.client import get
from gateway.faultlab.endpoints import Endpoint
from gateway.faultlab.scenario import Run
from gateway.faultlab.trial import Address
from tests.benchmarks import peers

_PATIENCE_S = 120.0

Opened = AbstractAsyncContextManager[Endpoint]
Open = Callable[[Lab, Sequence[Run]], Opened]

CONFIGURED = {
    "downshift-gateway": "shipped values, a process for each run; scenario 15 with "
    f"early_probe_s = {recipes.EARLY_PROBE_S} instead of the shipped hold of 300 s",
    "LiteLLM proxy": "num_retries 1, none after a time-out, fallbacks, timeout 30, "
    "stream_timeout 12, allowed_fails 2, cooldown_time 20, local cache",
    "Portkey": "one retry that minds Retry-After, fallback on 408, 429 and 5xx, request_timeout "
    "12000, cache simple (which the open gateway takes but does not do); its streams mended (as "
    "published each is a 500 under Node 20)",
    "ferrogw": "a process for each run; two attempts, fallback, circuit breaker of 3 failures and "
    "20 s, request_timeout 30 s",
}
"""How each is set up, in words."""


@asynccontextmanager
async def ours(_: Lab, __: Sequence[Run]) -> AsyncIterator[Endpoint]:
    """Our own: a process for each run."""
    yield Ours()


@asynccontextmanager
async def litellm(lab: Lab, runs: Sequence[Run]) -> AsyncIterator[Endpoint]:
    """LiteLLM's proxy: one process, each run a model of its own."""
    program = peers.binary("litellm", "litellm")
    assert program is not None
    port, config = _port(), recipes.litellm(runs, lab.urls)
    environment = {
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    command = [str(program), "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
    async with _process(command, {"config.yaml": config}, environment, port, "/health/liveliness"):
        yield Given(f"http://127.0.0.1:{port}/v1")


@asynccontextmanager
async def portkey(_: Lab, __: Sequence[Run]) -> AsyncIterator[Endpoint]:
    """Portkey: one process, configured by a header of each request."""
    script, port = peers.portkey(), _port()
    command = ["node", str(script), f"--port={port}", "--headless"]
    # Without it, it refuses upstreams on the loopback.
    environment = {"TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"}
    async with _process(command, {}, environment, port, "/"):
        yield Given(f"http://127.0.0.1:{port}/v1", more=recipes.portkey)


class Ferrogw:
    """Ferrogw: a process for each run, since its circuits belong to providers, not to models.

    Three of its providers stand for the three roles; their model maps name the lab's models.
    """

    shared = False
    _PROVIDERS: ClassVar = {"creative": "openai", "balanced": "groq", "fast": "fireworks"}

    @asynccontextmanager
    async def open(self, run: Run, urls: Mapping[str, str]) -> AsyncIterator[Address]:
        program, port = peers.binary("ferrogw", "ferrogw"), _port()
        targets, environment = [], {}
        for role in run.roles:
            provider = self._PROVIDERS[role]
            targets += [
                f"  - virtual_key: {provider}",
                f"    model_map: {{{run.model()}: {run.model(role)}}}",
                "    retry: {attempts: 2, on_status_codes: [429, 500, 502, 503, 504]}",
                "    circuit_breaker: {failure_threshold: 3, success_threshold: 1, timeout: 20s}",
            ]
            url = urls[role] if provider != "openai" else urls[role].removesuffix("/v1")
            environment[f"{provider.upper()}_BASE_URL"] = url
            environment[f"{provider.upper()}_API_KEY"] = "unused"
        config = ["strategy: {mode: fallback}", "targets:", *targets, "request_timeout: 30s", ""]
        environment |= {"GATEWAY_CONFIG": "config.yaml", "MASTER_KEY": "fgw_lab"}
        environment |= {"PORT": str(port), "RATE_LIMIT_RPS": "0"}
        files = {"config.yaml": "\n".join(config)}
        async with _process([str(program), "serve"], files, environment, port, "/health"):
            bearer = {"authorization": "Bearer fgw_lab"}
            yield Address(f"http://127.0.0.1:{port}/v1", run.model(), bearer)


@asynccontextmanager
async def ferrogw(_: Lab, __: Sequence[Run]) -> AsyncIterator[Endpoint]:
    """Ferrogw: a process for each run."""
    yield Ferrogw()


def installed() -> dict[str, Open]:
    """Who is here."""
    found: dict[str, Open] = {"downshift-gateway": ours}
    if peers.binary("litellm", "litellm") is not None:
        found["LiteLLM proxy"] = litellm
    if shutil.which("node") and peers.portkey() is not None:
        found["Portkey"] = portkey
    if peers.binary("ferrogw", "ferrogw") is not None:
        found["ferrogw"] = ferrogw
    return found


@asynccontextmanager
async def _process(
    command: Sequence[str],
    files: Mapping[str, str],
    environment: Mapping[str, str],
    port: int,
    path: str,
) -> AsyncIterator[None]:
    """A server, from its first good answer at `path` to the end of the block."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            Path(folder, name).write_text(text, encoding="utf-8")
        with Path(folder, "output.log").open("wb") as output:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        try:
            end = time.monotonic() + _PATIENCE_S
            while (await get(f"http://127.0.0.1:{port}{path}")).status != 200:
                if process.poll() is not None or time.monotonic() > end:
                    said = Path(folder, "output.log").read_text(errors="replace")[-800:]
                    raise RuntimeError(f"{command[0]} did not start: {said}")
                await asyncio.sleep(0.2)
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
