"""How a client that already exists wants to be called: its shape, found when it is wrapped."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from gateway.errors import ConfigError
from gateway.generation import Message
from gateway.providers.base import Call
from gateway.providers.capabilities import capabilities
from gateway.providers.request_body import Accent


class Shape(Protocol):
    """One way of calling a client.

    Attributes:
        function: what is called.
        kind: the backend's kind as far as it is known, see `capabilities`.
        model: the model asked for.
        streams: whether pieces come as they are made, as far as that can be told beforehand.
    """

    function: Callable[..., Any]
    kind: str
    model: str
    streams: bool

    def arguments(self, call: Call, accent: Accent) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments for one call."""
        ...


def shape_of(client: Any, model: str) -> Shape:
    """Find out how a client is called.

    Raises:
        ConfigError: it has no shape that is known; the message lists those that are.
    """
    create = getattr(getattr(getattr(client, "chat", None), "completions", None), "create", None)
    if callable(create):
        return _OpenAIShape(client, model)
    if callable(getattr(client, "call", None)):
        return _DashScopeShape(client, model)
    if callable(client):
        return _CallableShape(client, model)
    raise ConfigError(
        f"cannot wrap {type(client).__name__}; give a callable `prompt -> str`, a client with "
        "`chat.completions.create`, or dashscope's `Generation`"
    )


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it does not block: a coroutine function or an asynchronous generator's."""
    inner = inspect.unwrap(function)
    return any(
        inspect.iscoroutinefunction(found) or inspect.isasyncgenfunction(found)
        for found in (function, inner, getattr(inner, "__call__", None))  # noqa: B004
    )


class _OpenAIShape:
    """`client.chat.completions.create(...)`, as openai's `AsyncOpenAI` and `OpenAI` have it.

    The client's own retries are turned off where it has that switch: two layers of retries
    multiply under an outage, and the gateway's are budgeted (B8).
    """

    streams = True

    def __init__(self, client: Any, model: str) -> None:
        address = str(getattr(client, "base_url", ""))
        self.kind = "dashscope" if "aliyuncs.com" in address else "openai"
        self.model = model or capabilities(self.kind).model or ""
        if not self.model:
            raise ConfigError(
                "a client in OpenAI's shape must be told which: pass model='...'", key="model"
            )
        options = getattr(client, "with_options", None)
        if callable(options) and hasattr(client, "max_retries"):
            client = options(max_retries=0)
        self.function = client.chat.completions.create
        self._keywords = _keywords(self.function)

    def arguments(self, call: Call, accent: Accent) -> tuple[list[Any], dict[str, Any]]:
        """What the method names goes by name, every other field into `extra_body`."""
        body = accent.body(call, stream=True)
        named = {name: body.pop(name) for name in list(body) if self._keywords.take(name)}
        if body:
            named["extra_body"] = {**(named.get("extra_body") or {}), **body}
        if call.request_id and "extra_headers" in self._keywords.names:
            named["extra_headers"] = {"x-request-id": call.request_id}
        return [], named


class _DashScopeShape:
    """`Generation.call(...)` or `AioGeneration.call(...)`, as Alibaba's dashscope has them."""

    kind = "dashscope"
    streams = True

    def __init__(self, client: Any, model: str) -> None:
        self.function = client.call
        self.model = model or capabilities(self.kind).model or ""

    def arguments(self, call: Call, accent: Accent) -> tuple[list[Any], dict[str, Any]]:
        body = accent.body(call, stream=True)
        body.pop("stream_options", None)  # its own API always tells the usage
        return [], {**body, "result_format": "message", "incremental_output": True}


class _CallableShape:
    """Any function: of `messages` if it takes them, else of a prompt.

    Body fields (`temperature`, ...) are passed to a function that names them or takes `**kwargs`.
    """

    kind = "openai"

    def __init__(self, function: Any, model: str) -> None:
        self.function = function
        self.model = model or str(getattr(function, "model", "") or "")
        inner = inspect.unwrap(function)
        called = getattr(inner, "__call__", None)  # noqa: B004
        self.streams = any(
            inspect.isasyncgenfunction(found) or inspect.isgeneratorfunction(found)
            for found in (inner, called)
        )
        self._keywords = _keywords(function)
        self._takes_messages = "messages" in self._keywords.names
        self._check()

    def _check(self) -> None:
        try:
            signature = inspect.signature(self.function)
        except (TypeError, ValueError):  # a built-in tells nothing about itself
            return
        try:
            if self._takes_messages:
                signature.bind(messages=[])
            else:
                signature.bind("")
        except TypeError as error:
            raise ConfigError(
                f"cannot call {_name(self.function)} with a prompt or with messages=: {error}"
            ) from None

    def arguments(self, call: Call, accent: Accent) -> tuple[list[Any], dict[str, Any]]:
        fields = {name: value for name, value in call.params.items() if self._keywords.take(name)}
        if self._takes_messages:
            return [], {**fields, "messages": call.messages}
        return [prompt_of(call.messages)], fields


def prompt_of(messages: list[Message]) -> str:
    """Messages as one text: a lone message's own words, else a transcript."""
    texts = [(str(message.get("role", "user")), _words(message)) for message in messages]
    if len(texts) == 1:
        return texts[0][1]
    return "\n\n".join(f"{role}: {words}" for role, words in texts)


def _words(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


class _Keywords(NamedTuple):
    """What a function takes by keyword."""

    names: frozenset[str]
    any: bool  # it has **kwargs

    def take(self, name: str) -> bool:
        return self.any or name in self.names


def _keywords(function: Callable[..., Any]) -> _Keywords:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return _Keywords(frozenset(), any=False)
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = frozenset(parameter.name for parameter in parameters if parameter.kind in by_name)
    return _Keywords(names, any=any(part.kind is part.VAR_KEYWORD for part in parameters))


def _name(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__name__))
