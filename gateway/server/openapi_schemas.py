"""What goes in and comes out, as JSON Schema: the vocabulary of `openapi.py`.

Requests name what the gateway itself reads; any other field is passed on, so they are open.
"""

from __future__ import annotations

from typing import Any, Final

Schema = dict[str, Any]

TEXT: Final[Schema] = {"type": "string"}
NUMBER: Final[Schema] = {"type": "number"}
INTEGER: Final[Schema] = {"type": "integer"}
BOOLEAN: Final[Schema] = {"type": "boolean"}
ANY: Final[Schema] = {}


def ref(name: str) -> Schema:
    """The schema of that name."""
    return {"$ref": f"#/components/schemas/{name}"}


def maybe(schema: Schema) -> Schema:
    """That, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def listed(schema: Schema) -> Schema:
    """A list of it."""
    return {"type": "array", "items": schema}


def table(schema: Schema) -> Schema:
    """An object whose values are all of that kind."""
    return {"type": "object", "additionalProperties": schema}


def obj(required: str = "", **properties: Schema) -> Schema:
    """An open object; `required` names fields, separated by spaces."""
    schema: Schema = {"type": "object", "properties": properties}
    return {**schema, "required": required.split()} if required else schema


_MODEL: Final = {**TEXT, "description": "A mode, `auto`, an alias, or a concrete model."}
_STREAM: Final = {
    "stream": maybe(BOOLEAN),
    "stream_options": maybe(obj(include_usage=maybe(BOOLEAN))),
}
_SAMPLING: Final[dict[str, Schema]] = {
    "temperature": maybe({**NUMBER, "minimum": 0, "maximum": 2}),
    "top_p": maybe({**NUMBER, "minimum": 0, "maximum": 1}),
    "max_tokens": maybe({**INTEGER, "minimum": 1}),
    "stop": maybe({"anyOf": [TEXT, listed(TEXT)]}),
    "seed": maybe(INTEGER),
}
_MESSAGE: Final = obj(
    "role",
    role={"type": "string", "examples": ["user"]},
    content=maybe({"anyOf": [TEXT, listed({"type": "object"})]}),
    name=TEXT,
    tool_calls=ANY,
)
_CHOICE: Final = obj(
    "index message finish_reason logprobs",
    index=INTEGER,
    message=obj("role content refusal annotations", role=TEXT, content=maybe(TEXT)),
    finish_reason=maybe(TEXT),
)
_TARGET: Final = obj(
    "name model in_flight resting_s budget_tokens",
    name=TEXT,
    model=TEXT,
    in_flight=INTEGER,
    resting_s=NUMBER,
    budget_tokens=NUMBER,
)
_STANDING: Final = obj(
    "phase downshifted until_s ttl_s in_flight targets",
    phase={"enum": ["closed", "open", "probing", "recovering", "forced_open", "forced_closed"]},
    downshifted=BOOLEAN,
    until_s=maybe(NUMBER),
    ttl_s=NUMBER,
    in_flight=obj("native downshifted", native=INTEGER, downshifted=INTEGER),
    targets=listed(_TARGET),
)
_CONFIG: Final = {"source": maybe(TEXT), "last_reload": TEXT, "on_trial": BOOLEAN}

SCHEMAS: Final[dict[str, Schema]] = {
    "Error": obj(
        "error",
        error=obj(
            "message type param code",
            message=TEXT,
            type=TEXT,
            param=maybe(TEXT),
            code=TEXT,
            causes=table(TEXT),
        ),
    ),
    "Usage": obj(
        "prompt_tokens total_tokens",
        prompt_tokens=INTEGER,
        completion_tokens=INTEGER,
        total_tokens=INTEGER,
    ),
    "Served": obj(
        "requested_mode mode degraded reason cached attempts",
        requested_mode=TEXT,
        mode=TEXT,
        target=TEXT,
        degraded=BOOLEAN,
        reason=maybe(TEXT),
        until_s=maybe(NUMBER),
        cached=BOOLEAN,
        stale=BOOLEAN,
        age_s=NUMBER,
        attempts=INTEGER,
    ),
    "ChatRequest": obj(
        "messages",
        model=_MODEL,
        messages={**listed(_MESSAGE), "minItems": 1},
        tools=maybe(listed(ANY)),
        **_STREAM,
        **_SAMPLING,
    ),
    "ChatCompletion": obj(
        "id object created model choices usage gateway",
        id=TEXT,
        object={"const": "chat.completion"},
        created=INTEGER,
        model=TEXT,
        choices=listed(_CHOICE),
        usage=ref("Usage"),
        gateway=ref("Served"),
    ),
    "CompletionRequest": obj(
        "prompt",
        model=_MODEL,
        prompt={"anyOf": [TEXT, listed(TEXT)]},
        **_STREAM,
        **_SAMPLING,
    ),
    "Completion": obj(
        "id object created model choices usage",
        id=TEXT,
        object={"const": "text_completion"},
        created=INTEGER,
        model=TEXT,
        choices=listed(obj("index text finish_reason logprobs", index=INTEGER, text=TEXT)),
        usage=ref("Usage"),
    ),
    "EmbeddingRequest": obj(
        "input", model=TEXT, input={"anyOf": [TEXT, listed(TEXT)]}, dimensions=maybe(INTEGER)
    ),
    "Embeddings": obj(
        "object data model usage",
        object={"const": "list"},
        data=listed(obj("embedding index")),
        model=TEXT,
        usage=ref("Usage"),
    ),
    "ResponseRequest": obj(
        "input",
        model=_MODEL,
        input={"anyOf": [TEXT, listed(ANY)]},
        instructions=maybe(TEXT),
        tools=maybe(listed(ANY)),
        stream=maybe(BOOLEAN),
        temperature=_SAMPLING["temperature"],
        max_output_tokens=_SAMPLING["max_tokens"],
    ),
    "Response": obj(
        "id object model output status",
        id=TEXT,
        object={"const": "response"},
        model=TEXT,
        output=listed(ANY),
        status=TEXT,
    ),
    "Model": obj(
        "id object created owned_by",
        id=TEXT,
        object={"const": "model"},
        created=INTEGER,
        owned_by=TEXT,
    ),
    "Models": obj("object data", object={"const": "list"}, data=listed(ref("Model"))),
    "Feedback": obj(
        "generation_id rating",
        generation_id={**TEXT, "description": "The answer's `id`."},
        rating={**NUMBER, "minimum": 1, "maximum": 5},
        user_id=TEXT,
        comment=TEXT,
    ),
    "Done": obj("status", status=TEXT),
    "Ready": obj("status reason", status=TEXT, reason=TEXT),
    "Health": obj(
        "status reason modes",
        status={"enum": ["ok", "degraded", "unavailable"]},
        reason=TEXT,
        modes=table(TEXT),
    ),
    "Modes": table(_STANDING),
    "Status": obj(
        "modes cache queued in_flight config",
        modes=ref("Modes"),
        cache=obj("enabled", enabled=BOOLEAN),
        queued=INTEGER,
        in_flight=INTEGER,
        config=obj("source last_reload on_trial", **_CONFIG),
    ),
    "Force": obj("mode how", mode=TEXT, how={"enum": ["open", "closed", "auto"]}),
    "Reloaded": obj(
        "source last_reload on_trial restart_needed",
        **_CONFIG,
        restart_needed={
            **listed(TEXT),
            "description": "Keys of `[server]` that take effect at the next start.",
        },
    ),
}
