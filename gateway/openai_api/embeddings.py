"""`POST /embeddings`: passed through to the targets of one model."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.errors import InvalidRequest
from gateway.openai_api import fields
from gateway.openai_api.answers import usage_of
from gateway.openai_api.body import read_object
from gateway.openai_api.errors import PermissionDenied
from gateway.openai_api.headers import patience_s
from gateway.openai_api.words import JSON, Call, Reply, Routes

_encode = msgspec.json.Encoder().encode


class EmbeddingRoute:
    """Answers requests for vectors.

    Args:
        gateway: who answers.
    """

    def __init__(self, gateway: Any) -> None:
        self._gateway = gateway

    def routes(self) -> Routes:
        """What this file answers."""
        return {("POST", "/embeddings"): self.embed}

    async def embed(self, call: Call) -> Reply:
        """Answer one request for vectors; what the target says passes as the bytes it came in."""
        body = fields.known(read_object(call), fields.EMBEDDING)
        texts = body.pop("input", None)
        if texts is None:
            raise InvalidRequest("input is missing; give a text or a list of them", param="input")
        model, caller = body.pop("model", ""), call.caller
        if caller.modes is not None and model not in caller.modes:
            allowed = ", ".join(sorted(caller.modes))
            raise PermissionDenied(
                f"this key may not ask for {model or 'embeddings'}; it may ask for {allowed}",
                param="model",
            )
        answer = await self._gateway.embed(
            texts,
            model,
            deadline=patience_s(call.headers),
            tenant=caller.tenant,
            key=caller.key,
            trace=call.headers.get("traceparent", ""),
            generation_id=call.take_generation_id(),
            extra_body=body,
        )
        overhead_ms = max(0.0, answer.duration_s - answer.upstream_s) * 1000
        headers = [
            JSON,
            ("x-gateway-id", answer.id),
            ("x-gateway-attempts", str(answer.attempts)),
            ("x-gateway-overhead-ms", f"{overhead_ms:.3f}"),
        ]
        usage = usage_of(answer.usage)
        usage.pop("completion_tokens", None)  # vectors complete nothing
        said = {
            **answer.fields,
            "object": "list",
            "model": answer.model,
            "usage": usage,
            "gateway": {"target": answer.target, "attempts": answer.attempts},
        }
        return 200, headers, _encode(said)
