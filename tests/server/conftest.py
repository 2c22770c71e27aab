"""What the tests of the real server share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.simulator.scripted.server import ScriptedUpstream
from tests.server.live import Live

MODES = """
[modes.creative]
first_token_s = 30
[[modes.creative.targets]]
kind = "vllm"
base_url = "{url}"
model = "creative-model"
[modes.fast]
[[modes.fast.targets]]
kind = "vllm"
base_url = "{url}"
model = "fast-model"
[cache]
enabled = false
"""


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as server:
        yield server


UVICORN = pytest.mark.parametrize("runner", ["uvicorn"], indirect=True)
"""What granian does in its own way, or not at all; see gateway/server/granian_server.py."""


@pytest.fixture(params=["uvicorn", "granian"])
def runner(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(request.param)
    return str(request.param)


Serve = Callable[..., AbstractAsyncContextManager[Live]]


@pytest.fixture
def serve(tmp_path: Path, upstream: ScriptedUpstream, runner: str) -> Serve:
    """Starts the service on the scripted upstream; keyword arguments go into `[server]`."""

    @asynccontextmanager
    async def start(*arguments: str, tables: str = "", **server: Any) -> AsyncIterator[Live]:
        lines = [f"{key} = {_toml(value)}" for key, value in server.items()]
        table = "\n".join(["", "[server]", f'runner = "{runner}"', *lines, ""])
        config = MODES.format(url=upstream.base_url) + tables + table
        async with Live(config, tmp_path, *arguments) as live:
            yield live

    return start


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value).replace("'", '"')
