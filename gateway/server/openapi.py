"""`GET /openapi.json`: the routes in the words of OpenAPI 3.1; a test compares with the router."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, Final, NamedTuple

import msgspec

from gateway import __version__
from gateway.openai_api.words import JSON, Call, Reply, Routes
from gateway.server.openapi_schemas import SCHEMAS, Schema, ref

_HTML, _TEXT, _EVENTS = "text/html", "text/plain", "text/event-stream"
_JSON = "application/json"


class Operation(NamedTuple):
    """One route.

    Attributes:
        path: as clients should ask for it.
        summary: what it does, in a sentence.
        takes: the schema of its body.
        gives: the schema of its answer, or media types where it is no JSON.
        streams: whether the answer may come as server-sent events.
        also: further answers that are no errors in the envelope, by status.
    """

    path: str
    summary: str
    takes: str = ""
    gives: str | tuple[str, ...] = ()
    streams: bool = False
    also: tuple[tuple[int, str], ...] = ()


OPERATIONS: Final[dict[tuple[str, str], Operation]] = {
    ("POST", "/chat/completions"): Operation(
        "/v1/chat/completions",
        "Answer a conversation, from the best mode at or below the one asked for that can.",
        takes="ChatRequest",
        gives="ChatCompletion",
        streams=True,
    ),
    ("POST", "/completions"): Operation(
        "/v1/completions",
        "Continue a text.",
        takes="CompletionRequest",
        gives="Completion",
        streams=True,
    ),
    ("POST", "/embeddings"): Operation(
        "/v1/embeddings",
        "Turn texts into vectors, from any target of the same model.",
        takes="EmbeddingRequest",
        gives="Embeddings",
    ),
    ("POST", "/responses"): Operation(
        "/v1/responses",
        "Answer by OpenAI's newer API, without keeping state.",
        takes="ResponseRequest",
        gives="Response",
        streams=True,
    ),
    ("GET", "/models"): Operation(
        "/v1/models", "List modes, aliases and concrete models.", gives="Models"
    ),
    ("GET", "/models/"): Operation(
        "/v1/models/{model}", "Describe one; its name may contain slashes.", gives="Model"
    ),
    ("POST", "/feedback"): Operation(
        "/v1/feedback", "Rate an answer, 1 (worst) to 5 (best).", takes="Feedback", gives="Done"
    ),
    ("GET", "/livez"): Operation("/livez", "Does the event loop turn?", gives="Done"),
    ("GET", "/health/liveness"): Operation("/health/liveness", "The same.", gives="Done"),
    ("GET", "/readyz"): Operation(
        "/readyz", "Should it be sent traffic?", gives="Ready", also=((503, "Ready"),)
    ),
    ("GET", "/health/readiness"): Operation(
        "/health/readiness", "The same.", gives="Ready", also=((503, "Ready"),)
    ),
    ("GET", "/health"): Operation(
        "/health", "A summary for people.", gives="Health", also=((503, "Health"),)
    ),
    ("GET", "/status"): Operation(
        "/status", "Circuits, limits, budgets, cache and queue.", gives="Status"
    ),
    ("GET", "/metrics"): Operation("/metrics", "Metrics for Prometheus.", gives=(_TEXT,)),
    ("GET", "/"): Operation(
        "/", "The dashboard; a screenful of text for curl.", gives=(_HTML, _TEXT)
    ),
    ("GET", "/dashboard/"): Operation(
        "/dashboard/{file}",
        "A file of the dashboard.",
        gives=(_HTML, "text/css", "text/javascript", "image/svg+xml"),
    ),
    ("GET", "/live"): Operation(
        "/live", "The dashboard's figures, as they change.", gives=(_EVENTS,)
    ),
    ("GET", "/openapi.json"): Operation("/openapi.json", "This document.", gives=(_JSON,)),
    ("POST", "/admin/force"): Operation(
        "/admin/force",
        "Hold a mode open or closed, or give it back to its circuit. Takes the admin key.",
        takes="Force",
        gives="Modes",
    ),
    ("POST", "/admin/reload"): Operation(
        "/admin/reload",
        "Read the configuration file again; a broken one changes nothing. Takes the admin key.",
        gives="Reloaded",
    ),
}
"""What each route of the router does."""


def routes() -> Routes:
    """What this file answers."""
    return {("GET", "/openapi.json"): _answer}


async def _answer(call: Call) -> Reply:
    return 200, [JSON], _encoded()


@cache
def _encoded() -> bytes:
    return msgspec.json.encode(document(OPERATIONS))


def document(described: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The document, of these routes."""
    paths: dict[str, dict[str, Any]] = {}
    for method, route in described:
        operation = OPERATIONS[method, route]
        paths.setdefault(operation.path, {})[method.lower()] = _operation(method, operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "downshift-gateway",
            "version": __version__,
            "description": "OpenAI's API over a ladder of modes that downshifts when one fails.",
        },
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(method: str, operation: Operation) -> dict[str, Any]:
    parameter = operation.path.partition("{")[2]
    name = "_".join(part.strip("{}") for part in operation.path.split("/") if part)
    described: dict[str, Any] = {
        "operationId": f"{method.lower()}_{name or 'dashboard_page'}",
        "summary": operation.summary,
        "responses": {
            "200": {"description": "Done.", "content": _content(operation)},
            **{
                str(status): _json("What is not well.", ref(schema))
                for status, schema in operation.also
            },
            "default": _json("What went wrong, in OpenAI's envelope.", ref("Error")),
        },
    }
    if parameter:
        described["parameters"] = [
            {
                "name": parameter.rstrip("}"),
                "in": "path",
                "required": True,
                "schema": {"type": "string", "minLength": 1},
            }
        ]
    if operation.takes:
        schema = ref(operation.takes)
        described["requestBody"] = {"required": True, "content": {_JSON: {"schema": schema}}}
    return described


def _content(operation: Operation) -> dict[str, Any]:
    if isinstance(operation.gives, str):
        content: dict[str, Any] = {_JSON: {"schema": ref(operation.gives)}}
    else:
        content = {media: {} for media in operation.gives}
    if operation.streams:
        content[_EVENTS] = {}
    return content


def _json(description: str, schema: Schema) -> dict[str, Any]:
    return {"description": description, "content": {_JSON: {"schema": schema}}}
