"""`POST /completions`: the body -> what `Gateway.generate` is asked, with `raw`."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.errors import InvalidRequest
from gateway.openai_api import fields
from gateway.openai_api.body import read_object
from gateway.openai_api.chat_request import Streaming, take_streaming
from gateway.openai_api.words import Call

MOST_PROMPTS = 32
"""Prompts in one request. Each is a request of its own upstream; LangChain sends 20."""


class CompletionRequest(msgspec.Struct):
    """A parsed legacy completion request.

    Attributes:
        model: as the client named it; "" if it did not.
        prompts: the texts to go on from, one or more.
        params: every other body field, forwarded whole.
        streaming: how the answer is wanted.
    """

    model: str
    prompts: list[str]
    params: dict[str, Any]
    streaming: Streaming


def parse_completion(call: Call) -> CompletionRequest:
    """Read a legacy completion request.

    Raises:
        InvalidRequest: no JSON object, or a field is not what it must be; `param` names it.
    """
    params = fields.known(read_object(call), fields.COMPLETION)
    if "messages" in params:
        raise InvalidRequest(
            "messages are for /chat/completions; here it is prompt", param="prompt"
        )
    prompts = _prompts(params.pop("prompt", None))
    streaming = take_streaming(params)
    if streaming.stream and len(prompts) > 1:
        raise InvalidRequest("a stream takes one prompt; send the others apart", param="prompt")
    return CompletionRequest(params.pop("model", ""), prompts, params, streaming)


def _prompts(prompt: Any) -> list[str]:
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise fields.wrong("prompt", "a string or a list of strings", prompt)
    if len(prompt) > MOST_PROMPTS:
        raise fields.wrong("prompt", f"a list of at most {MOST_PROMPTS} strings", prompt)
    for number, text in enumerate(prompt):
        if isinstance(text, int | list):
            # Modes may have different models, and a token's number means nothing to another one.
            raise InvalidRequest(
                "prompts of token numbers are not taken; send text", param="prompt"
            )
        if not isinstance(text, str):
            raise fields.wrong(f"prompt[{number}]", "a string", text)
    return list(prompt)
