"""What each kind of backend understands, one row a kind.

Every server here speaks "OpenAI-compatible" with an accent of its own. The accent is data: a row
says how to ask for reasoning, which fields to rename, drop or bring into range, and how a broken
answer can be continued. Fields that no row names are forwarded untouched: they are the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from gateway.errors import ConfigError


class Thinking(StrEnum):
    """How reasoning is turned on and off."""

    QWEN = "qwen"  # top level, by model: see `qwen.switch`
    TEMPLATE = "template"  # chat_template_kwargs.enable_thinking
    FLAG = "flag"  # top-level enable_thinking
    EFFORT = "effort"  # reasoning_effort, "none" is off
    NONE = "none"  # it cannot be


class Continuation(StrEnum):
    """How the text of an interrupted answer is continued."""

    FLAG = "flag"  # continue_final_message: true, add_generation_prompt: false
    PARTIAL = "partial"  # `partial: true` on the last assistant message
    MESSAGE = "message"  # a last assistant message is continued without further ado
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Range:
    """The values a server takes; outside of them it answers 400."""

    low: float = -math.inf
    high: float = math.inf

    def clamp(self, value: object) -> object:
        """The nearest number that is taken; what is no number is left to be refused."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            return value
        return min(max(value, self.low), self.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """One kind of backend.

    Attributes:
        base_url: where such a server listens if nothing else is said, `/v1` included.
        model: the model asked for if none is configured; "" leaves the field out, None means
            that this server must be told.
        thinking: how reasoning is switched.
        budget: the field that caps reasoning tokens, "" if there is none.
        reasoning_in: the field of a past assistant message that holds its reasoning.
        max_tokens: the field that caps the answer, "" leaves it as the caller wrote it.
        renamed: our name of a field -> its own.
        dropped: fields it is known to ignore or refuse, that our mode profiles may set.
        accepted: every other field is refused with a 422, so it is not sent; None takes all.
        ranges: values outside are refused, so they are brought inside.
        usage_option: whether `stream_options.include_usage` is understood.
        continuation: how an interrupted text is continued.
        developer: whether the role `developer` is known; else it becomes `system`.
        completions: whether `/completions` completes a text without a chat template.
        health: path of a cheap liveness check on the server's root, "" if it has none.
    """

    base_url: str
    model: str | None = ""
    thinking: Thinking = Thinking.NONE
    budget: str = ""
    reasoning_in: str = "reasoning_content"
    max_tokens: str = "max_tokens"
    renamed: Mapping[str, str] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    accepted: frozenset[str] | None = None
    ranges: Mapping[str, Range] = field(default_factory=dict)
    usage_option: bool = True
    continuation: Continuation = Continuation.NONE
    developer: bool = False
    completions: bool = False
    health: str = "/health"


_NUCLEUS = Range(0.001, 1.0)  # top_p = 0 is refused; this keeps one token too

_TABLE: Mapping[str, Capabilities] = {
    "dashscope": Capabilities(
        base_url="https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
        model="qwen3.8-max",
        thinking=Thinking.QWEN,
        budget="thinking_budget",
        dropped=frozenset({"min_p"}),
        ranges={
            "temperature": Range(0.0, 1.99),  # [0, 2): 2.0 itself is refused
            "top_p": _NUCLEUS,
            "top_k": Range(0),
            "presence_penalty": Range(-2.0, 2.0),
            "repetition_penalty": Range(0.01),
            "n": Range(1, 4),
            "seed": Range(0, 2**31 - 1),
        },
        continuation=Continuation.PARTIAL,
        health="",  # every probe costs: rely on real traffic
    ),
    "vllm": Capabilities(
        base_url="http://127.0.0.1:8000/v1",
        thinking=Thinking.TEMPLATE,
        budget="thinking_token_budget",
        reasoning_in="reasoning",
        ranges={"top_p": _NUCLEUS},
        continuation=Continuation.FLAG,
        completions=True,
    ),
    "sglang": Capabilities(
        base_url="http://127.0.0.1:30000/v1",
        thinking=Thinking.TEMPLATE,
        ranges={"top_p": _NUCLEUS},
        continuation=Continuation.FLAG,
        health="/ready",  # /health generates a token and takes at least a second
        completions=True,
    ),
    "llama_cpp": Capabilities(
        base_url="http://127.0.0.1:8080/v1",
        thinking=Thinking.TEMPLATE,
        renamed={"repetition_penalty": "repeat_penalty"},
        continuation=Continuation.MESSAGE,
        completions=True,
    ),
    "ollama": Capabilities(
        base_url="http://127.0.0.1:11434/v1",
        model="qwen3",
        thinking=Thinking.EFFORT,
        reasoning_in="reasoning",
        dropped=frozenset({"top_k", "min_p", "repetition_penalty"}),
        health="/api/version",
        completions=True,
    ),
    "lmdeploy": Capabilities(
        base_url="http://127.0.0.1:23333/v1",
        model=None,
        thinking=Thinking.FLAG,
        ranges={"top_p": _NUCLEUS},
        completions=True,
    ),
    "tgi": Capabilities(
        base_url="http://127.0.0.1:8080/v1",
        model="tgi",
        dropped=frozenset({"top_k", "min_p", "repetition_penalty"}),
        ranges={"top_p": Range(0.001, 0.999), "temperature": Range(0.01)},  # both ends are refused
    ),
    "transformers": Capabilities(
        base_url="http://127.0.0.1:8000/v1",
        model=None,
        # What it takes, and what a caller must be told it does not take: an answer that silently
        # ignores a response format is worse than a 422.
        accepted=frozenset(
            {"frequency_penalty", "generation_config", "logit_bias", "max_tokens", "messages"}
            | {"model", "processor", "seed", "stop", "stream", "temperature", "tools", "top_p"}
            | {"audio", "function_call", "functions", "logprobs", "modalities", "n"}
            | {"response_format", "tool_choice", "top_logprobs"}
        ),
        usage_option=False,  # usage rides on its finish chunk unasked
    ),
    "openai": Capabilities(
        base_url="https://api.openai.com/v1",
        model=None,
        max_tokens="",
        developer=True,
        health="",
        completions=True,
    ),
}

KINDS = tuple(_TABLE)
"""The kinds served by `OpenAICompatible`."""


def capabilities(kind: str) -> Capabilities:
    """The row of one kind.

    Raises:
        ConfigError: no such kind; the message lists those there are.
    """
    row = _TABLE.get(kind)
    if row is None:
        raise ConfigError(
            f"unknown backend {kind!r}; use one of {', '.join(map(repr, KINDS))}", key="kind"
        )
    return row
