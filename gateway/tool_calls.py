"""Tool calls from their pieces: by index, by id, or by neither, as servers send them."""

from __future__ import annotations

from typing import Any

import msgspec


class ToolCalls:
    """Tool calls under construction, in order of appearance.

    Pieces of one call share an `index`; servers that leave it out are understood by `id`, and a
    piece with neither belongs to the latest call. A piece that names a function under a new id is
    a new call even if its index is taken (some servers number every call 0), whereas a new id
    alone is not one (LMDeploy gives each piece a fresh id).
    """

    __slots__ = ("_at", "_calls")

    def __init__(self) -> None:
        self._calls: list[dict[str, Any]] = []
        self._at: dict[Any, dict[str, Any]] = {}

    def add(self, piece: dict[str, Any]) -> None:
        """Merge one piece of `delta.tool_calls`."""
        call_id = piece.get("id") if isinstance(piece.get("id"), str) else None
        index = piece.get("index") if isinstance(piece.get("index"), int) else None
        call = self._at.get(call_id if index is None else index)
        if index is None and call is None and not call_id and self._calls:
            call = self._calls[-1]
        if (
            call is None
            or (call_id and call.get("id") and _begins(call, piece))
            or _names_another(call, piece)
        ):
            call = {}
            self._calls.append(call)
        if index is not None:
            self._at[index] = call
        if call_id:
            self._at.setdefault(call_id, call)
            call.setdefault("id", call_id)
        for key, value in piece.items():
            if isinstance(value, dict):
                into = call.setdefault(key, {})
                if isinstance(into, dict):
                    merge_pieces(into, value)
            elif key not in {"index", "id"} and value and not call.get(key):
                call[key] = value

    def finished(self, answer_id: str) -> list[dict[str, Any]]:
        """The calls as strict clients want them: id, type and string arguments are never absent."""
        calls: list[dict[str, Any]] = []
        for position, call in enumerate(self._calls):
            kind = call.get("type") or "function"
            body = {
                key: dict(value) if isinstance(value, dict) else value
                for key, value in call.items()
            }
            body["id"] = call.get("id") or f"call_{answer_id}_{position}"
            body["type"] = kind
            if kind == "function":
                function = body.get("function")
                given = function if isinstance(function, dict) else {}
                body["function"] = {"name": "", "arguments": "", **given}
            calls.append(body)
        return calls


def _begins(call: dict[str, Any], piece: dict[str, Any]) -> bool:
    """Whether a piece with an id opens a call of its own: new id, and it names a function."""
    return piece["id"] != call["id"] and any(
        isinstance(value, dict) and value.get("name") for value in piece.values()
    )


def _names_another(call: dict[str, Any], piece: dict[str, Any]) -> bool:
    """Whether a piece names another function than a call whose arguments have begun: a name comes
    in pieces, but never behind arguments. So are parallel calls told apart that bear neither ids
    nor indexes of their own.
    """
    for key, value in piece.items():
        before = call.get(key)
        if isinstance(value, dict) and value.get("name") and isinstance(before, dict):
            begun = before.get("arguments") or before.get("input")
            if begun and before.get("name") not in (None, "", value["name"]):
                return True
    return False


def merge_pieces(into: dict[str, Any], piece: dict[str, Any], once: tuple[str, ...] = ()) -> None:
    """Add a piece of `{"name", "arguments"}` (or audio): text is concatenated, the rest replaced.

    A name that merely repeats is one name; some servers send it whole with every piece. Arguments
    that come as an object (Ollama) become the JSON text OpenAI promises.
    """
    for key, value in piece.items():
        if value is None:
            continue
        text = value
        if key == "arguments" and not isinstance(value, str):
            text = msgspec.json.encode(value).decode()
        before = into.get(key)
        if not isinstance(text, str) or not isinstance(before, str):
            into[key] = text
        elif key not in once and not (key == "name" and text == before):
            into[key] = before + text
