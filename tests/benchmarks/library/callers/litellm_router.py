"""LiteLLM's Router: one group, or primary and backup as two groups with fallbacks between them."""

from __future__ import annotations

import importlib
import os
from contextlib import AsyncExitStack
from typing import Any

from tests.benchmarks.library.asking import Given, Kinds, check_events, messages

# Else it asks for its table of prices over the network when imported.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
_FAILOVER = {
    "fallbacks": [{"group0": ["group1"]}],
    "timeout": 1,
    "num_retries": 1,
    "retry_after": 0,
    "allowed_fails": 3,
    "cooldown_time": 5,
}
"""Tuned: by default it tries thrice and the cooldown is shorter than its back-off."""


async def make(stack: AsyncExitStack, given: Given) -> Kinds:
    """Both kinds through `Router.acompletion`."""
    litellm: Any = importlib.import_module("litellm")
    litellm.suppress_debug_info = True
    groups: list[Any] = [
        {
            "model_name": f"group{number}",
            "litellm_params": {
                "model": "openai/pretended",
                "api_base": url,
                "api_key": "pretended",
            },
        }
        for number, url in enumerate(given.urls if given.failover else given.urls[:1])
    ]
    options: dict[str, Any] = _FAILOVER if given.failover else {}
    router = litellm.Router(model_list=groups, **options)

    async def whole(number: int) -> object:
        return await router.acompletion("group0", messages(number), temperature=0.2)

    async def streamed(number: int) -> object:
        answer = await router.acompletion("group0", messages(number), temperature=0.2, stream=True)
        chunks = [chunk async for chunk in answer]
        check_events(len(chunks))
        return chunks

    return {"json": whole, "stream": streamed, "iterate": streamed}
