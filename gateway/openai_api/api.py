"""OpenAI's API over a gateway: what `Gateway.transport()` and the server have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.errors import GatewayError
from gateway.openai_api.chat import Chat
from gateway.openai_api.completions import Completions
from gateway.openai_api.embeddings import EmbeddingRoute
from gateway.openai_api.errors import error_reply
from gateway.openai_api.models import Models
from gateway.openai_api.responses import Responses
from gateway.openai_api.router import Router
from gateway.openai_api.serving import Serving
from gateway.openai_api.words import Call, Reply, Routes


class OpenAIAPI:
    """Every route of OpenAI's that the gateway answers.

    Args:
        gateway: who answers.
        default_mode: what `auto` and an empty `model` stand for; None is the best mode.
        strict_models: False lets a `model` nobody knows stand for the default mode, too.
        headers_s: see `Serving`.
    """

    def __init__(
        self,
        gateway: Any,
        default_mode: str | None = None,
        *,
        strict_models: bool = False,
        headers_s: float | None = None,
    ) -> None:
        models = Models(gateway, default_mode, strict=strict_models)
        serving = Serving(gateway, models, headers_s)
        self.routes: Routes = {
            **models.routes(),
            **Chat(serving).routes(),
            **Completions(serving).routes(),
            **Responses(serving).routes(),
            **EmbeddingRoute(gateway).routes(),
        }
        self._router = Router(self.routes)

    async def handle(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> Reply:
        """Answer one request of this process. Never raises for what a client can do wrong."""
        path, _, query = path.partition("?")
        path = "/" + path.rpartition("/v1/")[2].strip("/")
        call = Call(method, path, headers, body, query)
        try:
            _, handler = self._router.find(call)
            return await handler(call)
        except GatewayError as error:
            return error_reply(error)
