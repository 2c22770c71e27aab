"""`POST /completions`, the legacy route: a text goes on where it ends, without a chat template."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.generation import Generation
from gateway.openai_api.completions_answer import CompletionWriter, text_completion
from gateway.openai_api.completions_request import parse_completion
from gateway.openai_api.headers import Headers
from gateway.openai_api.serving import Serving
from gateway.openai_api.words import JSON, Call, Reply, Routes


class Completions:
    """Answers legacy completions.

    Args:
        serving: asks the gateway.
    """

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def routes(self) -> Routes:
        """What this file answers."""
        return {("POST", "/completions"): self.complete}

    async def complete(self, call: Call) -> Reply:
        """Answer one legacy completion."""
        asked = parse_completion(call)
        how = asked.streaming
        if how.stream:
            writer = CompletionWriter(include_usage=how.include_usage)
            return await self._serving.stream(
                call, asked.model, asked.prompts[0], asked.params, writer, raw=True
            )
        answers = await self._each(call, asked.model, asked.prompts, asked.params)
        return 200, [JSON, *answers[0][1]], text_completion([answer for answer, _ in answers])

    async def _each(
        self, call: Call, model: str, prompts: list[str], params: dict[str, Any]
    ) -> list[tuple[Generation, Headers]]:
        """One answer a prompt, in their order; the first failure is that of all."""
        asking = [self._serving.whole(call, model, prompt, params, raw=True) for prompt in prompts]
        if len(asking) == 1:
            return [await asking[0]]
        tasks = [asyncio.ensure_future(ask) for ask in asking]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
