"""`POST /responses`: the body -> what `Gateway.generate` is asked, and what the answer repeats.

Stateless: nothing is kept, so what refers to something kept is refused, and `store` is answered
with false. Only functions are run, and by the caller, as in a chat.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.errors import InvalidRequest
from gateway.generation import Message
from gateway.openai_api import fields
from gateway.openai_api.body import read_object
from gateway.openai_api.responses_input import messages_of
from gateway.openai_api.words import Call

_KEPT = {
    "previous_response_id": "send the whole conversation as input",
    "conversation": "send the whole conversation as input",
    "prompt": "send the prompt's text as input",
}
# Fields a chat knows by the same name and meaning.
_SAME = ("temperature", "top_p", "user", "service_tier", "prompt_cache_key", "safety_identifier")
_OURS = frozenset(
    {*_KEPT, *_SAME, "input", "instructions", "model", "stream", "stream_options"}
    | {"background", "store", "truncation", "metadata", "max_tool_calls", "include"}
    | {"max_output_tokens", "tools", "tool_choice", "parallel_tool_calls", "text", "reasoning"}
    | {"top_logprobs"}
)
_LOGPROBS = "message.output_text.logprobs"
_CHOICES = ("auto", "none", "required")


class ResponseRequest(msgspec.Struct):
    """A parsed request.

    Attributes:
        model: as the client named it; "" if it did not.
        messages: the conversation as a chat.
        params: every other body field, in a chat's words.
        stream: whether the answer is wanted as events.
        echo: what the answer repeats of the request.
        summarize: whether reasoning is wanted as its summary.
    """

    model: str
    messages: list[Message]
    params: dict[str, Any]
    stream: bool
    echo: dict[str, Any]
    summarize: bool


def parse_response(call: Call) -> ResponseRequest:
    """Read a request of the Responses API.

    Raises:
        InvalidRequest: no JSON object, a field is not what it must be, or it needs state.
    """
    body = fields.known(read_object(call), fields.RESPONSE)
    for name, remedy in _KEPT.items():
        if body.get(name) is not None:
            raise InvalidRequest(f"{name} needs state, and none is kept here; {remedy}", param=name)
    if body.get("background"):
        raise InvalidRequest("answers are not made in the background here", param="background")
    messages = messages_of(body.get("instructions"), body.get("input"))
    tools = _tools(body.get("tools", []))
    tools, choice = _choice(tools, body.get("tool_choice", "auto"))
    reasoning = body.get("reasoning", {})
    params = {name: value for name, value in body.items() if name not in _OURS}
    params.update({name: body[name] for name in _SAME if name in body})
    if "max_output_tokens" in body:
        params["max_completion_tokens"] = body["max_output_tokens"]
    if tools:
        params["tools"] = tools
        if "tool_choice" in body:
            params["tool_choice"] = choice
        if "parallel_tool_calls" in body:
            params["parallel_tool_calls"] = body["parallel_tool_calls"]
    if reasoning.get("effort") is not None:
        params["reasoning_effort"] = _string(reasoning, "effort", "reasoning")
    if "top_logprobs" in body or _LOGPROBS in body.get("include", ()):
        params["logprobs"] = True
        params["top_logprobs"] = body.get("top_logprobs", 0)
    params.update(_format(body.get("text", {})))
    return ResponseRequest(
        model=body.get("model", ""),
        messages=messages,
        params=params,
        stream=body.get("stream", False),
        echo=_echo(body),
        summarize=bool(reasoning.get("summary") or reasoning.get("generate_summary")),
    )


def _tools(tools: list[Any]) -> list[dict[str, Any]]:
    nested = []
    for number, tool in enumerate(tools):
        place = f"tools[{number}]"
        if not isinstance(tool, dict):
            raise fields.wrong(place, "an object", tool)
        if tool.get("type") != "function":
            raise InvalidRequest(
                f"{place}.type must be 'function'; other tools run at OpenAI, not here",
                param=f"{place}.type",
            )
        names = ("name", "description", "parameters", "strict")
        function = {name: tool[name] for name in names if tool.get(name) is not None}
        _string(tool, "name", place)
        nested.append({"type": "function", "function": function})
    fields.check_tools(nested)
    return nested


def _choice(tools: list[dict[str, Any]], choice: Any) -> tuple[list[dict[str, Any]], Any]:
    """Which tools may be called, and which must be."""
    if isinstance(choice, str):
        if choice not in _CHOICES:
            raise fields.wrong("tool_choice", f"one of {', '.join(_CHOICES)}", choice)
        return tools, choice
    if choice.get("type") == "function":
        name = _string(choice, "name", "tool_choice")
        return tools, {"type": "function", "function": {"name": name}}
    if choice.get("type") == "allowed_tools":
        allowed = choice.get("tools")
        if not isinstance(allowed, list):
            raise fields.wrong("tool_choice.tools", "a list", allowed)
        names = [tool.get("name") for tool in allowed if isinstance(tool, dict)]
        kept = [tool for tool in tools if tool["function"]["name"] in names]
        return kept, "required" if choice.get("mode") == "required" else "auto"
    raise fields.wrong("tool_choice.type", "'function' or 'allowed_tools'", choice.get("type"))


def _format(text: dict[str, Any]) -> dict[str, Any]:
    """`text` in a chat's words: `response_format` and `verbosity`."""
    params: dict[str, Any] = {}
    if text.get("verbosity") is not None:
        params["verbosity"] = _string(text, "verbosity", "text")
    wanted = text.get("format")
    if wanted is None:
        return params
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "json_schema":
        names = ("name", "description", "schema", "strict")
        schema = {name: wanted[name] for name in names if wanted.get(name) is not None}
        _string(wanted, "name", "text.format")
        if not isinstance(wanted.get("schema"), dict):
            raise fields.wrong("text.format.schema", "a JSON schema", wanted.get("schema"))
        params["response_format"] = {"type": kind, "json_schema": schema}
    elif kind == "json_object":
        params["response_format"] = {"type": kind}
    elif kind != "text":
        raise fields.wrong("text.format.type", "'text', 'json_object' or 'json_schema'", kind)
    return params


def _string(table: dict[str, Any], name: str, place: str) -> str:
    value = table.get(name)
    if not isinstance(value, str) or not value:
        raise fields.wrong(f"{place}.{name}", "a string", value)
    return value


def _echo(body: dict[str, Any]) -> dict[str, Any]:
    """What of the request every response repeats, defaults filled in."""
    text, reasoning = body.get("text", {}), body.get("reasoning", {})
    function = {"description": None, "parameters": None, "strict": None}
    return {
        "background": False,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "max_tool_calls": body.get("max_tool_calls"),
        "metadata": body.get("metadata", {}),
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
        "previous_response_id": None,
        "prompt_cache_key": body.get("prompt_cache_key"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "safety_identifier": body.get("safety_identifier"),
        "service_tier": body.get("service_tier", "default"),
        "store": False,
        "temperature": body.get("temperature"),
        "text": {"format": {"type": "text"}, **{k: v for k, v in text.items() if v is not None}},
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": [{**function, **tool} for tool in body.get("tools", [])],
        "top_logprobs": body.get("top_logprobs", 0),
        "top_p": body.get("top_p"),
        "truncation": "disabled",
        "user": body.get("user"),
    }
