"""Pieces of tool calls, as servers send them -> as strict clients want them.

The first piece of a call bears `index`, `id`, `type` and the name, later ones only what they add:
one client concatenates a repeated id, another takes it for a new call (openai-python, qwen-agent).
How pieces belong together is told as in `gateway.tool_calls`, where whole calls are made of them.
"""

from __future__ import annotations

from typing import Any

import msgspec

_STAMPS = frozenset({"index", "id", "type"})


class _Call:
    """One call so far."""

    __slots__ = ("begun", "id", "name", "position")

    def __init__(self, position: int, call_id: str | None) -> None:
        self.position = position
        self.id = call_id
        self.name = ""
        self.begun = False  # some of its arguments have come


class ToolDeltas:
    """Puts the pieces of one choice's calls in order.

    Args:
        answer_id: what made-up ids begin with.
    """

    __slots__ = ("_answer_id", "_at", "_calls")

    def __init__(self, answer_id: str) -> None:
        self._answer_id = answer_id
        self._calls: list[_Call] = []
        self._at: dict[int | str, _Call] = {}

    def pieces(self, given: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The pieces of one event; those that add nothing are left out."""
        return [piece for piece in map(self._piece, given) if piece is not None]

    def _piece(self, piece: dict[str, Any]) -> dict[str, Any] | None:
        call_id = piece.get("id") if isinstance(piece.get("id"), str) else None
        index = piece.get("index") if isinstance(piece.get("index"), int) else None
        bodies = {key: dict(value) for key, value in piece.items() if isinstance(value, dict)}
        names = [body["name"] for body in bodies.values() if body.get("name")]
        call = self._find(call_id, index)
        first = (
            call is None
            or bool(names and call_id and call.id and call_id != call.id)
            or bool(call.begun and call.name and any(name != call.name for name in names))
        )
        if first or call is None:
            call = _Call(len(self._calls), call_id)
            self._calls.append(call)
        call.id = call.id or call_id
        if index is not None:
            self._at[index] = call
        if call_id:
            self._at.setdefault(call_id, call)
        if any(body.get("arguments") or body.get("input") for body in bodies.values()):
            call.begun = True
        return self._opening(call, piece, bodies) if first else _going_on(call, bodies)

    def _find(self, call_id: str | None, index: int | None) -> _Call | None:
        if index is not None:
            return self._at.get(index)
        if call_id:
            return self._at.get(call_id)
        return self._calls[-1] if self._calls else None

    def _opening(
        self, call: _Call, piece: dict[str, Any], bodies: dict[str, dict[str, Any]]
    ) -> dict[str, Any]:
        kind = piece.get("type") or "function"
        if kind == "function":
            given = bodies.get("function", {})
            bodies["function"] = {
                **given,
                "name": given.get("name") or "",
                "arguments": _text(given),
            }
            call.name = bodies["function"]["name"]
        elif kind in bodies:
            call.name = bodies[kind].get("name") or ""
        others = {key: value for key, value in piece.items() if key not in _STAMPS}
        call_id = call.id or f"call_{self._answer_id}_{call.position}"
        return {"index": call.position, "id": call_id, "type": kind, **others, **bodies}


def _going_on(call: _Call, bodies: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    adding: dict[str, Any] = {}
    for key, body in bodies.items():
        if key == "function" and body.get("arguments") is not None:
            body["arguments"] = _text(body)
        name = body.get("name")
        if name and name != call.name:  # it comes late, or in pieces
            call.name += name
        else:
            body.pop("name", None)
        body = {name: value for name, value in body.items() if value}  # noqa: PLW2901
        if body:
            adding[key] = body
    return {"index": call.position, **adding} if adding else None


def _text(function: dict[str, Any]) -> str:
    """Arguments as the JSON text OpenAI promises; Ollama sends an object."""
    arguments = function.get("arguments")
    if arguments is None or isinstance(arguments, str):
        return arguments or ""
    return msgspec.json.encode(arguments).decode()
