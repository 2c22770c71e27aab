"""What the fields of a request may be: types and bounds that every backend agrees on.

A field no table names is the backend's own business and passes as it is. A known field that is
null is a field left out, as OpenAI has it: the mode's own default then applies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.errors import InvalidRequest

MOST_STOPS = 64
MOST_TOOLS = 1024


@dataclass(frozen=True, slots=True)
class Rule:
    """What one field may be.

    Attributes:
        expected: in words, for the error.
        fits: whether a value is that.
        kind: a value of exactly this type is; None if more must be known.
    """

    expected: str
    fits: Callable[[Any], bool]
    kind: type | None = None


def known(fields: dict[str, Any], rules: Mapping[str, Rule]) -> dict[str, Any]:
    """The same fields, each known one checked and those that are null taken out.

    Raises:
        InvalidRequest: names the first field that is not what it must be.
    """
    nulls = []
    for name, value in fields.items():
        if name in rules:
            rule = rules[name]
            if value is None:
                nulls.append(name)
            elif type(value) is not rule.kind and not rule.fits(value):
                raise wrong(name, rule.expected, value)
    for name in nulls:
        del fields[name]
    return fields


def wrong(name: str, expected: str, value: Any) -> InvalidRequest:
    """The error for a value that is not what it must be; never quotes it."""
    return InvalidRequest(f"{name} must be {expected}, got {_said(value)}", param=name)


def check_tools(tools: list[Any]) -> None:
    """Every tool is an object that says its type, and a function its name.

    Raises:
        InvalidRequest: names the tool and the field.
    """
    for number, tool in enumerate(tools):
        place = f"tools[{number}]"
        if not isinstance(tool, dict):
            raise wrong(place, "an object", tool)
        if not isinstance(tool.get("type"), str):
            raise wrong(f"{place}.type", "a string such as 'function'", tool.get("type"))
        if tool["type"] != "function":
            continue
        function = tool.get("function")
        if not isinstance(function, dict):
            raise wrong(f"{place}.function", "an object", function)
        if not (isinstance(function.get("name"), str) and function["name"]):
            raise wrong(f"{place}.function.name", "a string", function.get("name"))
        parameters = function.get("parameters")
        if not isinstance(parameters, dict | None):
            raise wrong(f"{place}.function.parameters", "a JSON schema", parameters)


def _said(value: Any) -> str:
    if isinstance(value, str):
        return f"a string of {len(value)} characters" if value else "an empty string"
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "nothing"
    if isinstance(value, int | float):
        return f"{value:.6g}" if abs(value) < 1e15 else "a huge number"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "an object"


def _number(low: float = float("-inf"), high: float = float("inf")) -> Rule:
    bounds = f" of at least {low:g}" if high == float("inf") else f" from {low:g} to {high:g}"
    any_number = low == float("-inf") and high == float("inf")
    return Rule(
        "a number" if any_number else f"a number{bounds}",
        lambda v: (
            (type(v) is float or (isinstance(v, int | float) and not isinstance(v, bool)))
            and low <= v <= high
        ),
    )


def _integer(low: float = float("-inf"), high: float = float("inf")) -> Rule:
    rule = _number(low, high)
    # 5.0 is a whole number in JSON, but not every backend's parser knows that.
    return Rule(
        rule.expected.replace("a number", "a whole number"),
        lambda v: isinstance(v, int) and rule.fits(v),
    )


def _is_stop(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) <= MOST_STOPS and all(isinstance(text, str) for text in value)
    return isinstance(value, str)


def _is_format(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("type"), str)


_BOOLEAN = Rule("true or false", lambda v: isinstance(v, bool), bool)
_STRING = Rule("a string", lambda v: isinstance(v, str), str)
_OBJECT = Rule("an object", lambda v: isinstance(v, dict), dict)
_LIST = Rule("a list", lambda v: isinstance(v, list), list)
_NUMBER = _number()
_TOKENS = _integer(1, 2**31 - 1)

STREAM = {"stream": _BOOLEAN, "stream_options": _OBJECT, "model": _STRING}

SAMPLING: Mapping[str, Rule] = {
    "temperature": _number(0),
    "top_p": _number(0, 1),
    "top_k": _integer(-1),  # vLLM: -1 looks at all
    "min_p": _number(0, 1),
    "presence_penalty": _NUMBER,
    "frequency_penalty": _NUMBER,
    "repetition_penalty": _NUMBER,
    "max_tokens": _TOKENS,
    "n": _integer(1, 128),
    "seed": _integer(-(2**63), 2**64 - 1),
    "stop": Rule(f"a string or a list of at most {MOST_STOPS} strings", _is_stop),
    "logit_bias": _OBJECT,
    "user": _STRING,
    "metadata": _OBJECT,
    "service_tier": _STRING,
    "max_completion_tokens": _TOKENS,
}
"""Fields that chats and legacy completions share."""

CHAT: Mapping[str, Rule] = {
    **STREAM,
    **SAMPLING,
    "messages": _LIST,
    "logprobs": _BOOLEAN,
    "top_logprobs": _integer(0, 100),
    "tools": Rule(
        f"a list of at most {MOST_TOOLS}", lambda v: isinstance(v, list) and len(v) <= MOST_TOOLS
    ),
    "tool_choice": Rule("a string or an object", lambda v: isinstance(v, str | dict)),
    "parallel_tool_calls": _BOOLEAN,
    "functions": _LIST,
    "function_call": Rule("a string or an object", lambda v: isinstance(v, str | dict)),
    "response_format": Rule("an object with a type", _is_format),
    "reasoning_effort": _STRING,
    "verbosity": _STRING,
    "modalities": _LIST,
    "audio": _OBJECT,
    "prediction": _OBJECT,
    "web_search_options": _OBJECT,
    "store": _BOOLEAN,
    "prompt_cache_key": _STRING,
    "safety_identifier": _STRING,
    "enable_thinking": _BOOLEAN,
    "thinking_budget": _integer(0),
    "chat_template_kwargs": _OBJECT,
}

COMPLETION: Mapping[str, Rule] = {
    **STREAM,
    **SAMPLING,
    "max_tokens": _integer(0, 2**31 - 1),  # with `echo`, 0 scores a text
    "logprobs": _integer(0, 100),
    "echo": _BOOLEAN,
    "suffix": _STRING,
    "best_of": _integer(1, 128),
}

EMBEDDING: Mapping[str, Rule] = {
    "model": _STRING,
    "dimensions": _integer(1, 2**31 - 1),
    "encoding_format": Rule("'float' or 'base64'", lambda v: v in ("float", "base64")),
    "user": _STRING,
}

RESPONSE: Mapping[str, Rule] = {
    **STREAM,
    "temperature": SAMPLING["temperature"],
    "top_p": SAMPLING["top_p"],
    "user": _STRING,
    "metadata": _OBJECT,
    "service_tier": _STRING,
    "instructions": _STRING,
    "max_output_tokens": _TOKENS,
    "max_tool_calls": _integer(1),
    "top_logprobs": _integer(0, 20),
    "tools": CHAT["tools"],
    "tool_choice": CHAT["tool_choice"],
    "parallel_tool_calls": _BOOLEAN,
    "text": _OBJECT,
    "reasoning": _OBJECT,
    "include": Rule(
        "a list of strings",
        lambda v: isinstance(v, list) and all(isinstance(name, str) for name in v),
    ),
    "truncation": Rule("'auto' or 'disabled'", lambda v: v in ("auto", "disabled")),
    "store": _BOOLEAN,
    "background": _BOOLEAN,
    "prompt_cache_key": _STRING,
    "safety_identifier": _STRING,
}
