"""`POST /responses`: the Responses API over the same answers, without its state."""

from __future__ import annotations

from gateway.errors import InvalidRequest
from gateway.openai_api.responses_answer import whole
from gateway.openai_api.responses_request import parse_response
from gateway.openai_api.responses_stream import ResponseWriter
from gateway.openai_api.serving import Serving
from gateway.openai_api.words import JSON, Call, Reply, Routes


class Responses:
    """Answers requests of the Responses API.

    Args:
        serving: asks the gateway.
    """

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def routes(self) -> Routes:
        """What this file answers."""
        return {("POST", "/responses"): self.respond}

    async def respond(self, call: Call) -> Reply:
        """Answer one request."""
        asked = parse_response(call)
        try:
            if asked.stream:
                writer = ResponseWriter(asked.echo, summarize=asked.summarize)
                return await self._serving.stream(
                    call, asked.model, asked.messages, asked.params, writer
                )
            answer, headers = await self._serving.whole(
                call, asked.model, asked.messages, asked.params
            )
        except InvalidRequest as error:
            if (error.param or "").startswith(("messages", "prompt")):
                error.param = "input"  # what it is called here
            raise
        return 200, [JSON, *headers], whole(asked.echo, answer, summarize=asked.summarize)
