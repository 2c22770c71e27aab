"""Qwen as data: how each mode asks it, what each model can do.

Sampling and timeouts follow the model cards and Alibaba's own client; a value here is applied only
where the caller left the field unset, and `capabilities` drops what a backend does not know.
Thinking and sampling flip together: the same checkpoint wants other temperatures when it thinks.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any

_FAST: dict[str, Any] = {
    "thinking": False,
    "first_token_s": 5.0,
    "deadline_s": 30.0,
    "sampling": {
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "presence_penalty": 0.0,
        "max_tokens": 1024,
    },
}
_BALANCED: dict[str, Any] = {
    "thinking": False,
    "first_token_s": 12.0,
    "deadline_s": 120.0,
    "sampling": {
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "presence_penalty": 1.0,
        "max_tokens": 4096,
    },
}
_CREATIVE: dict[str, Any] = {
    "thinking": False,
    "first_token_s": 12.0,
    "deadline_s": 180.0,
    "sampling": {
        "temperature": 1.0,
        "top_p": 0.95,
        "top_k": 40,
        "presence_penalty": 1.5,
        "max_tokens": 8192,
    },
}
# Reasoning tokens count against max_tokens, so the budget leaves room for the answer.
_PRECISE: dict[str, Any] = {
    "thinking": True,
    "first_token_s": 60.0,
    "deadline_s": 600.0,
    "sampling": {
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "presence_penalty": 0.0,
        "max_tokens": 32768,
        "thinking_budget": 8192,
    },
}
_DEEP: dict[str, Any] = {
    "thinking": True,
    "first_token_s": 120.0,
    "deadline_s": 1200.0,
    "sampling": {
        "temperature": 1.0,
        "top_p": 0.95,
        "top_k": 20,
        "presence_penalty": 0.0,
        "max_tokens": 81920,
        "thinking_budget": 32768,
    },
}


def _frozen(table: dict[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType({**table, "sampling": MappingProxyType(table["sampling"])})


PROFILES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "fast": _frozen(_FAST),
        "balanced": _frozen(_BALANCED),
        "creative": _frozen(_CREATIVE),
        "precise": _frozen(_PRECISE),
        "code": _frozen(_PRECISE),
        "deep": _frozen(_DEEP),
    }
)


def profile(mode_name: str) -> Mapping[str, Any] | None:
    """How a mode of this name naturally asks Qwen, None if the name says nothing.

    Keys are `ModeOptions`' own: `thinking`, `first_token_s`, `deadline_s` and `sampling`.
    """
    return PROFILES.get(mode_name)


class Switch(StrEnum):
    """How DashScope lets a model's reasoning be turned on and off."""

    FLAG = "flag"  # `enable_thinking: bool`, optional `thinking_budget`
    EFFORT = "effort"  # `reasoning_effort`, where "none" is off; refuses a budget beside it
    ALWAYS = "always"  # thinks whatever is asked; asking it not to is a 400
    NONE = "none"  # cannot think, or is not a Qwen and chokes on Qwen's fields


# First match wins; matched against the lower-case id without an owner such as `Qwen/`.
# (prefix, part of the id, switch)
_SWITCHES: tuple[tuple[str, str, Switch], ...] = (
    ("qwq", "", Switch.ALWAYS),
    ("qvq", "", Switch.ALWAYS),
    ("qwen", "-thinking", Switch.ALWAYS),
    ("qwen", "-instruct", Switch.NONE),
    ("qwen", "-coder", Switch.NONE),
    ("qwen1", "", Switch.NONE),
    ("qwen2", "", Switch.NONE),
    ("qwen3.8-max", "", Switch.EFFORT),
    ("qwen", "", Switch.FLAG),
)

# (input tokens, most output tokens) as hosted by Alibaba; first prefix that matches.
_HOSTED: tuple[tuple[str, int, int], ...] = (
    ("qwen3.8-", 991_808, 131_072),
    ("qwen3.7-", 991_808, 65_536),
    ("qwen3.6-", 991_808, 65_536),
    ("qwen3.5-", 991_808, 65_536),
    ("qwen3-max", 258_048, 65_536),
    ("qwen3-coder-", 997_952, 65_536),
    ("qwen3-next-", 262_144, 65_536),
    ("qwen-plus", 997_952, 32_768),
    ("qwen-flash", 997_952, 32_768),
    ("qwen-turbo", 129_024, 16_384),
    ("qwq-plus", 98_304, 8_192),
)


def _id(model: str) -> str:
    return model.rsplit("/", 1)[-1].lower()


def is_qwen(model: str) -> bool:
    """Whether a model id names a Qwen, whoever serves it."""
    return _id(model).startswith(("qwen", "qwq", "qvq"))


def switch(model: str) -> Switch:
    """How this model's reasoning is turned on and off on DashScope."""
    name = _id(model)
    for prefix, part, how in _SWITCHES:
        if name.startswith(prefix) and part in name:
            return how
    return Switch.NONE


def stream_only(model: str) -> bool:
    """Whether DashScope answers this model only as a stream (400 otherwise)."""
    return switch(model) is Switch.ALWAYS or "-omni" in _id(model)


def effort(budget: int | None) -> str:
    """The `reasoning_effort` that comes nearest to a budget of reasoning tokens."""
    if budget is None:
        return "medium"
    for limit, word in ((2048, "low"), (8192, "medium"), (24_576, "high")):
        if budget <= limit:
            return word
    return "xhigh"


def context_window(model: str) -> int | None:
    """Tokens a model reads as Alibaba hosts it, None if unknown.

    The same weights elsewhere have whatever window their server was started with.
    """
    name = _id(model)
    return next((window for prefix, window, _ in _HOSTED if name.startswith(prefix)), None)


def output_cap(model: str) -> int | None:
    """The most `max_tokens` DashScope takes for this model (400 above), None if unknown."""
    name = _id(model)
    return next((cap for prefix, _, cap in _HOSTED if name.startswith(prefix)), None)
