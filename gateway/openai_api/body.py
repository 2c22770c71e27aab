"""A request's body -> a JSON object of a sane shape, or an error that says what is wrong."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.errors import InvalidRequest
from gateway.openai_api.words import Call

MAX_DEPTH = 100
"""Arrays and objects inside one another. No API of OpenAI's needs a tenth of it, and what is
within may be walked by recursion here and upstream."""

_decode = msgspec.json.Decoder().decode


def read_object(call: Call) -> dict[str, Any]:
    """Read the JSON object in a request's body. Of a key given twice the last one counts.

    Raises:
        InvalidRequest: no JSON (RFC 8259, so no NaN and no lone surrogates), no object, too deep.
    """
    body = call.body
    try:
        fields = _decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {_why(error)}") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("the body must be a JSON object")
    # Counting bytes is cheap, and a body with few brackets cannot be deep.
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _deeper(fields, MAX_DEPTH):
        raise InvalidRequest(f"the body is nested more than {MAX_DEPTH} deep")
    return fields


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


def _deeper(value: Any, depth: int) -> bool:
    """Whether containers are nested more than `depth` deep; level by level, without recursion."""
    level = [value]
    for _ in range(depth):
        level = [
            inner
            for container in level
            for inner in (container.values() if type(container) is dict else container)
            if type(inner) is dict or type(inner) is list
        ]
        if not level:
            return False
    return True
