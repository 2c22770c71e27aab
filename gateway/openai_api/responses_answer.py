"""Our answers -> the Responses API's objects: items, usage, the response itself."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.generation import Generation, Served, Usage
from gateway.openai_api.answers import created, detail, facts
from gateway.openai_api.errors import error_fields, status_of

_encode = msgspec.json.Encoder().encode


def response(
    echo: dict[str, Any],
    generation_id: str,
    *,
    status: str,
    served: Served | None,
    output: list[dict[str, Any]],
    created_at: int = 0,
    usage: Usage | None = None,
    why: str | None = None,
    error: BaseException | None = None,
) -> dict[str, Any]:
    """A response object, at any point of its life.

    Args:
        echo: what it repeats of the request.
        generation_id: what `feedback` refers to; the response's own id begins with `resp_`.
        status: in_progress, completed, incomplete or failed.
        served: who answers, None if nobody did.
        output: the items so far.
        created_at: Unix seconds.
        usage: token counts, at the end.
        why: why it is incomplete.
        error: why it failed.
    """
    made = {
        **echo,
        "id": f"resp_{generation_id}",
        "object": "response",
        "created_at": created_at or created(),
        "completed_at": created() if status == "completed" else None,
        "status": status,
        "error": _error(error) if error else None,
        "incomplete_details": {"reason": why} if why else None,
        "model": served.model if served else "",
        "output": output,
        "usage": usage_of(usage) if usage else None,
    }
    if served is not None:
        made["gateway"] = facts(served)
    return made


def whole(echo: dict[str, Any], generation: Generation, *, summarize: bool) -> bytes:
    """A whole answer."""
    why = incomplete(generation.finish_reason)
    status = "incomplete" if why else "completed"
    return _encode(
        response(
            echo,
            generation.id,
            status=status,
            served=generation.served,
            output=_output(generation, status, summarize=summarize),
            created_at=created(generation.created),
            usage=generation.usage,
            why=why,
        )
    )


def incomplete(finish_reason: str | None) -> str | None:
    """Why an answer with this finish reason is incomplete, None if it is not."""
    return {"length": "max_output_tokens", "content_filter": "content_filter"}.get(
        finish_reason or ""
    )


def usage_of(usage: Usage) -> dict[str, Any]:
    """Token counts under the names they have here."""
    cached = detail(usage, "prompt_tokens_details", "cached_tokens")
    reasoning = detail(usage, "completion_tokens_details", "reasoning_tokens")
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": usage.total_tokens,
    }


def reasoning_item(item_id: str, text: str, status: str, *, summarize: bool) -> dict[str, Any]:
    """Reasoning: as its summary where one was asked for, else as it is."""
    summary = [{"type": "summary_text", "text": text}] if summarize and text else []
    content = [{"type": "reasoning_text", "text": text}] if text and not summarize else []
    item = {"id": item_id, "type": "reasoning", "status": status, "summary": summary}
    return item if summarize else {**item, "content": content}


def message_item(item_id: str, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
    """A message."""
    message = {"id": item_id, "type": "message", "role": "assistant"}
    return {**message, "status": status, "content": content}


def text_part(
    text: str, annotations: list[Any] | None = None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A message's text."""
    return {
        "type": "output_text",
        "text": text,
        "annotations": [_annotation(a) for a in annotations or () if isinstance(a, dict)],
        "logprobs": logprobs_of(logprobs),
    }


def refusal_part(text: str) -> dict[str, Any]:
    """A message's refusal."""
    return {"type": "refusal", "refusal": text}


def call_item(item_id: str, call_id: str, name: str, arguments: str, status: str) -> dict[str, Any]:
    """A function call."""
    call = {"id": item_id, "type": "function_call", "status": status, "call_id": call_id}
    return {**call, "name": name, "arguments": arguments}


def logprobs_of(logprobs: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A chat's token records with the keys strict clients want."""
    return [
        {**_token(token), "top_logprobs": [_token(top) for top in _records(token, "top_logprobs")]}
        for token in _records(logprobs or {}, "content")
    ]


def _records(of: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The objects of a list; of anything else none, for it comes from upstream as it is."""
    given = of.get(name)
    return [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []


def _token(token: dict[str, Any]) -> dict[str, Any]:
    bytes_ = token.get("bytes") or list(str(token.get("token", "")).encode())
    return {"token": token.get("token", ""), "logprob": token.get("logprob"), "bytes": bytes_}


def _annotation(annotation: dict[str, Any]) -> dict[str, Any]:
    """A chat nests what is flat here."""
    inner = annotation.get(str(annotation.get("type")))
    flat = {"type": annotation.get("type"), **inner} if isinstance(inner, dict) else annotation
    return dict(flat)


def _output(generation: Generation, status: str, *, summarize: bool) -> list[dict[str, Any]]:
    """The items of a whole answer: reasoning, message, function calls."""
    own, message = generation.id, generation.message
    output = []
    if generation.reasoning:
        text = generation.reasoning
        output.append(reasoning_item(f"rs_{own}_0", text, status, summarize=summarize))
    content = []
    if generation.text:
        logprobs = generation.choices[0].get("logprobs")
        content.append(text_part(generation.text, message.get("annotations"), logprobs))
    if message.get("refusal"):
        content.append(refusal_part(message["refusal"]))
    if content:
        output.append(message_item(f"msg_{own}_{len(output)}", content, status))
    for call in generation.tool_calls:
        function = call.get("function", {})
        item_id = f"fc_{own}_{len(output)}"
        name, arguments = function.get("name", ""), function.get("arguments", "")
        output.append(call_item(item_id, call["id"], name, arguments, status))
    return output


def _error(error: BaseException) -> dict[str, Any]:
    """One of the few codes there are here; the words say the rest."""
    said = error_fields(error)
    status = status_of(error)
    code = "rate_limit_exceeded" if status == 429 else "server_error"
    return {"code": "invalid_prompt" if status == 400 else code, "message": said["message"]}
