"""`POST /chat/completions`: whole and streamed."""

from __future__ import annotations

from gateway.openai_api.chat_answer import ChatWriter, completion
from gateway.openai_api.chat_request import parse_chat
from gateway.openai_api.serving import Serving
from gateway.openai_api.words import JSON, Call, Reply, Routes


class Chat:
    """Answers chat completions.

    Args:
        serving: asks the gateway.
    """

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def routes(self) -> Routes:
        """What this file answers."""
        return {("POST", "/chat/completions"): self.chat}

    async def chat(self, call: Call) -> Reply:
        """Answer one chat completion."""
        asked = parse_chat(call)
        how = asked.streaming
        if how.stream:
            writer = ChatWriter(include_usage=how.include_usage)
            return await self._serving.stream(
                call, asked.model, asked.messages, asked.params, writer
            )
        answer, headers = await self._serving.whole(call, asked.model, asked.messages, asked.params)
        return 200, [JSON, *headers], completion(answer)
