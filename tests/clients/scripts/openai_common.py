"""What the scripts of openai-python share: clients, a tool, schemas, facts of answers."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
from facts import KEY, URL, ask
from pydantic import BaseModel

client = openai.OpenAI(base_url=URL, api_key=KEY)

FIND_NOTES: Any = {
    "type": "function",
    "function": {
        "name": "find_notes",
        "description": "Find perfume notes.",
        "parameters": {
            "type": "object",
            "properties": {"family": {"type": "string"}, "count": {"type": "integer"}},
            "required": ["family", "count"],
        },
    },
}


class Note(BaseModel):
    name: str
    strength: int
    kind: str | None = None


class Perfume(BaseModel):
    title: str
    notes: list[Note]


class Verdict(BaseModel):
    """All that a small model can be trusted with: without a grammar it would not keep to it."""

    family: Literal["woody", "citrus"]
    strong: bool


def user(prompt: str) -> list[Any]:
    return [{"role": "user", "content": prompt}]


def aclient(**options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=URL, api_key=KEY, **options)


def whole_facts(answer: Any) -> dict[str, Any]:
    choice = answer.choices[0]
    return {
        "text": choice.message.content,
        "role": choice.message.role,
        "finish": choice.finish_reason,
        "model": answer.model,
        "usage": answer.usage.model_dump() if answer.usage else None,
        "gateway": (answer.model_extra or {}).get("gateway"),
        "request_id": answer._request_id,
        "set": sorted(choice.model_fields_set | choice.message.model_fields_set),
        "id": answer.id,
    }


def stream_facts(chunks: list[Any]) -> dict[str, Any]:
    choices = [choice for chunk in chunks for choice in chunk.choices]
    told = [(chunk.model_extra or {}).get("gateway") for chunk in chunks]
    return {
        "text": "".join(choice.delta.content or "" for choice in choices),
        "finish": [choice.finish_reason for choice in choices if choice.finish_reason],
        "roles": [choice.delta.role for choice in choices if choice.delta.role],
        "first_role": chunks[0].choices[0].delta.role,
        "ids": sorted({chunk.id for chunk in chunks}),
        "models": sorted({chunk.model for chunk in chunks}),
        "usage": [chunk.usage.model_dump() for chunk in chunks if chunk.usage],
        "without_choices": [n - len(chunks) for n, c in enumerate(chunks) if not c.choices],
        "chunks": len(chunks),
        "gateway": [facts for facts in told if facts],
        "gateway_at": [n if n == 0 else n - len(chunks) for n, facts in enumerate(told) if facts],
    }


def call_facts(calls: Any) -> list[dict[str, Any]]:
    return [
        {
            "id": call.id,
            "name": call.function.name,
            "arguments": json.loads(call.function.arguments),
        }
        for call in calls
    ]


def create(tag: str, *cues: str, model: str = "creative", **options: Any) -> Any:
    messages = user(ask(tag, *cues))
    return client.chat.completions.create(model=model, messages=messages, **options)
