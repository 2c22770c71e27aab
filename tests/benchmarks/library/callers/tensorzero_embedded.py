"""TensorZero inside the process, observability off: it would want a database."""

from __future__ import annotations

import importlib
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from tests.benchmarks.library.asking import Given, Kinds, check_events, messages

_HEAD = """
[gateway]
observability.enabled = false
[models.pretended]
routing = {routing}
"""
_PROVIDER = """
[models.pretended.providers.backend{number}]
type = "openai"
model_name = "pretended"
api_base = "{url}"
api_key_location = "none"
"""
_LIMIT = "timeouts = { non_streaming.total_ms = 1000, streaming.ttft_ms = 1000 }\n"


async def make(stack: AsyncExitStack, given: Given) -> Kinds:
    """A model with a route; with failover, each provider of it limited to 1 s."""
    urls = given.urls if given.failover else given.urls[:1]
    routing = [f"backend{number}" for number in range(len(urls))]
    text = _HEAD.format(routing=str(routing).replace("'", '"'))
    for number, url in enumerate(urls):
        text += _PROVIDER.format(number=number, url=url) + (_LIMIT if given.failover else "")
    file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "tensorzero.toml"
    file.write_text(text)
    tensorzero: Any = importlib.import_module("tensorzero")
    client = await tensorzero.AsyncTensorZeroGateway.build_embedded(config_file=str(file))
    stack.push_async_callback(client.close)

    def asked(number: int) -> dict[str, Any]:
        return {
            "model_name": "pretended",
            "input": {"messages": messages(number)},
            "params": {"chat_completion": {"temperature": 0.2}},
        }

    async def whole(number: int) -> object:
        return await client.inference(**asked(number))

    async def streamed(number: int) -> object:
        chunks = [chunk async for chunk in await client.inference(**asked(number), stream=True)]
        check_events(len(chunks))
        return chunks

    return {"json": whole, "stream": streamed, "iterate": streamed}
