"""A scripted upstream that minds what it is asked: tools are called, schemas filled, faults played.

Scripts of clients run in processes of their own, so they say in the prompt what shall happen to it:

    Name three woods. [[openai2.cut; creative=cut_fin,answer; *=answer]]

is the request `openai2.cut`; its first attempt at the model `creative` plays `cut_fin`, later ones
and those of other models a good answer. Plays are the names of `FAULTS` and of `PLAYS` here.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import struct
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.simulator.answers import numbered_words
from gateway.simulator.scripted import Exchange, ScriptedUpstream
from gateway.simulator.scripted.catalogue import plays

AWKWARD: Final = 'vétiver "香根草"\n\t\\ 🌲'
"""What strings of tool calls and structured answers say, where the prompt quotes nothing."""

_NOTE = re.compile(r"\[\[(.*?)\]\]")
_QUOTED = re.compile(r"'([^']+)'")


@dataclass(slots=True)
class Seen:
    """One request as it came in.

    Attributes:
        tag: which one it is, by the prompt.
        model: asked for.
        body, headers: as sent by the gateway.
        text: the text of a good answer to it.
        at: Unix time it came.
        hung_up_at: Unix time its client hung up before the answer's end; None if it did not.
    """

    tag: str
    model: str
    body: dict[str, Any]
    headers: dict[str, str]
    text: str
    at: float
    hung_up_at: float | None = None


class Brain(ScriptedUpstream):
    """The upstream; `seen` lists what it was asked, in order."""

    def __init__(self) -> None:
        super().__init__(pace_s=0.002)
        self.seen: list[Seen] = []

    def asked(self, tag: str) -> list[Seen]:
        """The requests of one tag, in order."""
        return [seen for seen in self.seen if seen.tag == tag]

    async def answer(self, exchange: Exchange) -> None:
        """Play what the prompt says."""
        if exchange.path.endswith("/embeddings"):
            _embed(exchange)
            return
        if not exchange.path.endswith("/completions"):
            await super().answer(exchange)
            return
        prompt = _prompt(exchange.body)
        if not exchange.is_chat:  # its words follow from the text that goes on
            exchange.tokens = numbered_words([exchange.model, prompt], len(exchange.tokens))
        tag, cues = _note(prompt)
        text = "".join(exchange.tokens)
        before = sum(seen.model == exchange.model for seen in self.asked(tag)) if tag else 0
        seen = Seen(tag, exchange.model, exchange.body, exchange.headers, text, time.time())
        self.seen.append(seen)
        script = cues.get(exchange.model) or cues.get("*") or ["answer"]
        play = script[min(before, len(script) - 1)]
        try:
            await (PLAYS.get(play) or plays(play, stream=exchange.stream))(exchange)
        except asyncio.CancelledError:
            seen.hung_up_at = time.time()
            self.changed()
            raise


async def answer(exchange: Exchange) -> None:
    """A good answer: a tool call, JSON or words, as the request wants."""
    body, prompt = exchange.body, _prompt(exchange.body)
    if not exchange.is_chat:
        _go_on(exchange)
        return
    tool = _tool_wanted(body)
    form = body.get("response_format") or {}
    if tool is not None:
        await _say_calls(exchange, [tool["function"]] * (1 + ("twice" in prompt)), prompt)
    elif form.get("type") == "json_schema":
        _say_text(exchange, _json(fill(form["json_schema"]["schema"], prompt)))
    elif form.get("type") == "json_object":
        keys = _QUOTED.findall(prompt) or ["answer"]
        _say_text(exchange, _json(dict.fromkeys(keys, AWKWARD)))
    else:
        _say_text(exchange, *exchange.tokens)


async def forever(exchange: Exchange) -> None:
    """One token after the other, until the client has had enough."""
    exchange.head()
    exchange.role()
    while True:
        exchange.say("on and ")
        await exchange.pause()


async def cut_call(exchange: Exchange) -> None:
    """A tool call that breaks off within its arguments."""
    functions = [tool["function"] for tool in exchange.body["tools"]]
    exchange.cut_at(1500)
    await _say_calls(exchange, functions, _prompt(exchange.body))


PLAYS: Final[Mapping[str, Callable[[Exchange], Coroutine[Any, Any, None]]]] = {
    "answer": answer,
    "forever": forever,
    "cut_call": cut_call,
}


def fill(schema: Mapping[str, Any], prompt: str, root: Mapping[str, Any] | None = None) -> Any:
    """A value that a JSON schema allows: numbers and quoted words come from the prompt."""
    root = root or schema
    if "$ref" in schema:
        node: Any = root
        for step in str(schema["$ref"]).removeprefix("#/").split("/"):
            node = node[step]
        return fill(node, prompt, root)
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            options = [option for option in schema[several] if option.get("type") != "null"]
            return fill(options[0], prompt, root)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    return _fill_type(schema, prompt, root)


def _fill_type(schema: Mapping[str, Any], prompt: str, root: Mapping[str, Any]) -> Any:
    plain = _NOTE.sub("", prompt)
    match schema.get("type", "object"):
        case "object":
            properties = schema.get("properties") or {}
            return {name: fill(of, prompt, root) for name, of in properties.items()}
        case "array":
            return [fill(schema.get("items") or {}, prompt, root)]
        case "integer" | "number":
            return int((re.findall(r"\d+", plain) or ["7"])[0])
        case "boolean":
            return True
        case _:
            return (_QUOTED.findall(plain) or [AWKWARD])[0]


def _tool_wanted(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """The tool to call: the one that is demanded, else the first, once; then words follow."""
    tools: list[dict[str, Any]] = body.get("tools") or []
    choice = body.get("tool_choice")
    if not tools or choice == "none":
        return None
    if isinstance(choice, dict):
        name = choice["function"]["name"]
        return next(tool for tool in tools if tool["function"]["name"] == name)
    if body["messages"][-1]["role"] == "tool":
        return tools[-1] if choice == "required" else None
    return tools[0]


async def _say_calls(exchange: Exchange, functions: list[dict[str, Any]], prompt: str) -> None:
    calls = [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {
                "name": function["name"],
                "arguments": _json(fill(function.get("parameters") or {}, prompt)),
            },
        }
        for number, function in enumerate(functions)
    ]
    if not exchange.stream:
        message = {"content": None, "tool_calls": calls}
        exchange.json(exchange.completion(message, finish_reason="tool_calls"))
        return
    exchange.head()
    exchange.role()
    for index, call in enumerate(calls):
        whole: Any = call["function"]
        begin = {**call, "index": index, "function": {"name": whole["name"], "arguments": ""}}
        exchange.event(exchange.chunk({"tool_calls": [begin]}))
        for piece in _pieces(whole["arguments"]):
            more = {"index": index, "function": {"arguments": piece}}
            exchange.event(exchange.chunk({"tool_calls": [more]}))
            await exchange.pause()
    exchange.finish("tool_calls")


def _say_text(exchange: Exchange, *tokens: str) -> None:
    if not exchange.stream:
        exchange.json(exchange.completion({"content": "".join(tokens)}))
        return
    exchange.head()
    exchange.role()
    for token in tokens:
        exchange.say(*(_pieces(token) if len(tokens) == 1 else [token]))
    exchange.finish()


def _go_on(exchange: Exchange) -> None:
    """A legacy completion: the text goes on."""
    about = {"id": "cmpl-scripted", "object": "text_completion", "created": 1790000000}
    about["model"] = exchange.model
    choice = {"index": 0, "text": "", "finish_reason": None, "logprobs": None}
    if not exchange.stream:
        choice |= {"text": "".join(exchange.tokens), "finish_reason": "stop"}
        exchange.json(about | {"choices": [choice], "usage": exchange.usage()})
        return
    exchange.head()
    for token in exchange.tokens:
        exchange.event(about | {"choices": [choice | {"text": token}]})
    exchange.event(about | {"choices": [choice | {"finish_reason": "stop"}]})
    if (exchange.body.get("stream_options") or {}).get("include_usage"):
        exchange.event(about | {"choices": [], "usage": exchange.usage()})
    exchange.write(b"data: [DONE]\n\n")
    exchange.end()


def vector_of(text: str) -> list[float]:
    """What a text is embedded as: numbers that a float of 32 bits holds exactly."""
    return [len(text) / 8, sum(map(ord, text)) % 1024 / 4, -0.5]


def _embed(exchange: Exchange) -> None:
    texts = exchange.body["input"]
    texts = [texts] if isinstance(texts, str) else texts
    vectors: list[Any] = [vector_of(text) for text in texts]
    if exchange.body.get("encoding_format") == "base64":
        packed = [struct.pack(f"<{len(vector)}f", *vector) for vector in vectors]
        vectors = [base64.b64encode(vector).decode() for vector in packed]
    data = [{"object": "embedding", "index": n, "embedding": v} for n, v in enumerate(vectors)]
    usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
    exchange.json({"object": "list", "data": data, "model": exchange.model, "usage": usage})


def _pieces(text: str, length: int = 7) -> list[str]:
    return [text[start : start + length] for start in range(0, len(text), length)]


def _prompt(body: Mapping[str, Any]) -> str:
    """The latest thing the user said."""
    if isinstance(body.get("prompt"), str):
        return str(body["prompt"])
    for message in reversed(body.get("messages") or []):
        if message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, list):
                content = " ".join(str(part.get("text", "")) for part in content)
            return str(content)
    return ""


def _note(prompt: str) -> tuple[str, dict[str, list[str]]]:
    found = _NOTE.search(prompt)
    if found is None:
        return "", {}
    tag, *cues = (part.strip() for part in found[1].split(";"))
    pairs = (cue.partition("=") for cue in cues)
    return tag, {model: script.split(",") for model, _, script in pairs}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
