"""What a wrapped client returned or yielded, as chunks: text, OpenAI's shapes, DashScope's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.errors import ErrorKind, UpstreamUnavailable
from gateway.generation import Choice, Chunk, Delta
from gateway.providers.decoding import chunk_of, is_error
from gateway.providers.dialects import parse_error, parse_event_error

_DEPTH = 12  # levels of an answer that are turned into plain data; real ones have about six


def chunk_from(item: Any, *, kind: str, target: str) -> Chunk:
    """Make a chunk of whatever a client hands out.

    Args:
        item: text; a mapping or an object in the shape of OpenAI's completion or chunk; a response
            of dashscope's `Generation`; or a `Chunk`.
        kind: the backend's kind as far as it is known.
        target: the target's name, for errors.

    Raises:
        UpstreamError: it is an error, or nothing that is understood (kind MALFORMED).
    """
    if isinstance(item, str):
        return text_chunk(item)
    if isinstance(item, Chunk):
        return item
    data = _plain(item)
    if isinstance(data, dict):
        if "status_code" in data and "output" in data:
            return _from_dashscope(data, target=target)
        if is_error(data):
            raise parse_event_error(data, kind=kind, target=target)
        if isinstance(data.get("choices"), list):
            return chunk_of(data)
    raise UpstreamUnavailable(
        f"{target} returned {type(item).__name__}; return text, an iterator of texts, or a "
        "completion in OpenAI's shape",
        kind=ErrorKind.MALFORMED,
        target=target,
    )


def text_chunk(text: str, *, finish_reason: str | None = None) -> Chunk:
    """Text as a chunk."""
    return Chunk([Choice(Delta(content=text), finish_reason=finish_reason)])


def _from_dashscope(data: dict[str, Any], *, target: str) -> Chunk:
    """DashScope's own shape: `status_code, code, message, output.choices[].message, usage`."""
    status = data["status_code"]
    if status != 200:
        body = {"code": data.get("code"), "message": data.get("message")}
        raise parse_error(
            int(status) if isinstance(status, int) else 0,
            {},
            msgspec.json.encode(body),
            kind="dashscope",
            target=target,
        )
    output = data["output"] if isinstance(data["output"], dict) else {}
    choices = output.get("choices") or [
        {"message": {"content": output.get("text")}, "finish_reason": output.get("finish_reason")}
    ]
    for choice in choices:
        if isinstance(choice, dict) and choice.get("finish_reason") == "null":
            choice["finish_reason"] = None  # its word for "not yet"
    usage = data.get("usage")
    if isinstance(usage, dict) and "input_tokens" in usage:
        read, written = usage.get("input_tokens") or 0, usage.get("output_tokens") or 0
        usage = {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": usage.get("total_tokens") or read + written,
            **usage,
        }
    event = {"choices": choices, "usage": usage, "id": data.get("request_id")}
    if is_error(event):
        raise parse_event_error(event, kind="dashscope", target=target)
    return chunk_of(event)


def _plain(item: Any, depth: int = _DEPTH) -> Any:
    """An SDK's objects as dicts and lists: by their own `model_dump`, or by their attributes."""
    if item is None or isinstance(item, str | int | float | bool) or depth == 0:
        return item
    if isinstance(item, Mapping):
        return {str(key): _plain(value, depth - 1) for key, value in item.items()}
    if isinstance(item, list | tuple):
        return [_plain(value, depth - 1) for value in item]
    dump = getattr(item, "model_dump", None)
    if callable(dump):
        return dump(exclude_unset=True)
    fields = getattr(item, "__dict__", None)
    if not fields:
        return item
    return {
        name: _plain(value, depth - 1) for name, value in fields.items() if not name.startswith("_")
    }
