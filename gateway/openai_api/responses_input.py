"""`input` items of the Responses API -> chat messages.

What a chat says in one assistant message (reasoning, text, tool calls) is several items here; items
of one turn become one message again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gateway.errors import InvalidRequest
from gateway.generation import Message
from gateway.openai_api.fields import wrong

_ROLES = ("user", "assistant", "system", "developer")
_CALL = ("call_id", "name", "arguments")


def messages_of(instructions: str | None, given: Any) -> list[Message]:
    """The messages that `instructions` and `input` stand for.

    Raises:
        InvalidRequest: an item is not what it must be, or needs what only OpenAI keeps.
    """
    conversation = _Conversation()
    if instructions:
        conversation.messages.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        conversation.messages.append({"role": "user", "content": given})
    elif isinstance(given, list) and given:
        for number, item in enumerate(given):
            conversation.add(item, f"input[{number}]")
    else:
        raise wrong("input", "a string or a list of items", given)
    return conversation.messages


class _Conversation:
    """Messages so far, and the assistant's turn under way."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._turn: Message | None = None
        self._reasoning = ""

    def add(self, item: Any, place: str) -> None:
        if not isinstance(item, dict):
            raise wrong(place, "an object", item)
        kind = item.get("type", "message")
        add = _ITEMS.get(kind) if isinstance(kind, str) else None
        if add is None:
            known = ", ".join(_ITEMS)
            raise InvalidRequest(
                f"{place}.type must be one of {known}; nothing else is kept or run here",
                param=f"{place}.type",
            )
        add(self, item, place)

    def message(self, item: dict[str, Any], place: str) -> None:
        role = item.get("role")
        if role not in _ROLES:
            raise wrong(f"{place}.role", f"one of {', '.join(_ROLES)}", role)
        content = item.get("content")
        if role != "assistant":
            self._turn, self._reasoning = None, ""
            self.messages.append({"role": role, "content": _content(content, f"{place}.content")})
            return
        said = _content(content, f"{place}.content", assistant=True)
        turn = self._turn
        if turn is None or turn.get("content"):
            turn = self._begin_turn()
        turn.update(said)

    def function_call(self, item: dict[str, Any], place: str) -> None:
        for name in _CALL:
            if not isinstance(item.get(name), str):
                raise wrong(f"{place}.{name}", "a string", item.get(name))
        turn = self._turn or self._begin_turn()
        function = {"name": item["name"], "arguments": item["arguments"]}
        call = {"id": item["call_id"], "type": "function", "function": function}
        turn.setdefault("tool_calls", []).append(call)

    def function_call_output(self, item: dict[str, Any], place: str) -> None:
        if not isinstance(item.get("call_id"), str):
            raise wrong(f"{place}.call_id", "a string", item.get("call_id"))
        self._turn, self._reasoning = None, ""
        output = _content(item.get("output"), f"{place}.output")
        message = {"role": "tool", "tool_call_id": item["call_id"], "content": output}
        self.messages.append(message)

    def reasoning(self, item: dict[str, Any], place: str) -> None:
        parts = item.get("content") or item.get("summary") or []
        if not isinstance(parts, list):
            raise wrong(f"{place}.summary", "a list", parts)
        texts = [part.get("text") for part in parts if isinstance(part, dict)]
        said = [text for text in (self._reasoning, *texts) if text and isinstance(text, str)]
        self._reasoning = "\n\n".join(said)
        self._turn = None

    def _begin_turn(self) -> Message:
        turn: Message = {"role": "assistant", "content": None}
        if self._reasoning:
            turn["reasoning_content"], self._reasoning = self._reasoning, ""
        self.messages.append(turn)
        self._turn = turn
        return turn


_ITEMS: Mapping[str, Callable[[_Conversation, dict[str, Any], str], None]] = {
    "message": _Conversation.message,
    "function_call": _Conversation.function_call,
    "function_call_output": _Conversation.function_call_output,
    "reasoning": _Conversation.reasoning,
}


def _content(content: Any, place: str, *, assistant: bool = False) -> Any:
    """A message's content; of the assistant's, the fields its text and refusal become."""
    if isinstance(content, str):
        return {"content": content} if assistant else content
    if not isinstance(content, list):
        raise wrong(place, "a string or a list of parts", content)
    parts = [_part(part, f"{place}[{number}]") for number, part in enumerate(content)]
    if not assistant:
        # Plain text stays plain: not every chat template takes parts.
        alone = parts[0] if len(parts) == 1 and parts[0]["type"] == "text" else None
        return alone["text"] if alone else parts
    said: Message = {"content": "".join(p["text"] for p in parts if p["type"] == "text")}
    refusals = [part["refusal"] for part in parts if part["type"] == "refusal"]
    if refusals:
        said["refusal"] = "".join(refusals)
    return said


def _part(part: Any, place: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    make = _PARTS.get(kind) if isinstance(kind, str) else None
    if make is None:
        raise wrong(f"{place}.type", f"one of {', '.join(_PARTS)}", kind)
    return make(part, place)


def _text(part: dict[str, Any], place: str) -> dict[str, Any]:
    return {"type": "text", "text": _string(part, "text", place)}


def _refusal(part: dict[str, Any], place: str) -> dict[str, Any]:
    return {"type": "refusal", "refusal": _string(part, "refusal", place)}


def _image(part: dict[str, Any], place: str) -> dict[str, Any]:
    image = {"url": _string(part, "image_url", place)}
    if isinstance(part.get("detail"), str):
        image["detail"] = part["detail"]
    return {"type": "image_url", "image_url": image}


def _file(part: dict[str, Any], place: str) -> dict[str, Any]:
    file = {"file_data": _string(part, "file_data", place)}
    if isinstance(part.get("filename"), str):
        file["filename"] = part["filename"]
    return {"type": "file", "file": file}


def _audio(part: dict[str, Any], place: str) -> dict[str, Any]:
    audio = part.get("input_audio")
    if not isinstance(audio, dict):
        raise wrong(f"{place}.input_audio", "an object", audio)
    return {"type": "input_audio", "input_audio": audio}


def _string(part: dict[str, Any], name: str, place: str) -> str:
    if not isinstance(part.get(name), str):
        note = "; files kept by OpenAI cannot be reached from here" if part.get("file_id") else ""
        error = wrong(f"{place}.{name}", f"a string{note}", part.get(name))
        raise error
    return str(part[name])


_PARTS: Mapping[str, Callable[[dict[str, Any], str], dict[str, Any]]] = {
    "input_text": _text,
    "output_text": _text,
    "text": _text,
    "refusal": _refusal,
    "input_image": _image,
    "input_file": _file,
    "input_audio": _audio,
}
