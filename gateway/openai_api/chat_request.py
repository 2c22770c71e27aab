"""`POST /chat/completions`: the body -> what `Gateway.generate` is asked."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.errors import InvalidRequest
from gateway.generation import Message
from gateway.openai_api import fields
from gateway.openai_api.body import read_object
from gateway.openai_api.words import Call


class Streaming(msgspec.Struct, frozen=True):
    """How an answer is wanted.

    Attributes:
        stream: as server-sent events.
        include_usage: with a usage event at the end.
    """

    stream: bool = False
    include_usage: bool = False


_WHOLE = Streaming()


class ChatRequest(msgspec.Struct):
    """A parsed chat completion request.

    Attributes:
        model: as the client named it; "" if it did not.
        messages: the chat messages, unchecked.
        params: every other body field, forwarded whole.
        streaming: how the answer is wanted.
    """

    model: str
    messages: list[Message]
    params: dict[str, Any]
    streaming: Streaming


def parse_chat(call: Call) -> ChatRequest:
    """Read a chat completion request.

    Raises:
        InvalidRequest: no JSON object, or a field is not what it must be; `param` names it.
    """
    params = fields.known(read_object(call), fields.CHAT)
    messages = params.pop("messages", None)
    if messages is None:
        raise InvalidRequest("messages is missing; give a list of them", param="messages")
    if "tools" in params:
        fields.check_tools(params["tools"])
    streaming = take_streaming(params)
    return ChatRequest(params.pop("model", ""), messages, params, streaming)


def take_streaming(params: dict[str, Any]) -> Streaming:
    """Take `stream` and our part of `stream_options` out of the fields.

    What else is in `stream_options` is for the backend; without a stream they say nothing.

    Raises:
        InvalidRequest: `include_usage` is neither true nor false.
    """
    stream = params.pop("stream", False)
    options = params.pop("stream_options", None)
    if not stream:
        return _WHOLE
    if not options:
        return Streaming(stream)
    include = options.get("include_usage")
    if not isinstance(include, bool | None):
        raise fields.wrong("stream_options.include_usage", "true or false", include)
    others = {name: value for name, value in options.items() if name != "include_usage"}
    if others:
        params["stream_options"] = others
    return Streaming(stream, bool(include))
