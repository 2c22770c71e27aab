"""LlamaIndex's OpenAILike: chat, streams, tools, typed answers."""

from __future__ import annotations

import gc
import time
from importlib.metadata import version
from typing import Any

from facts import KEY, URL, ask, caught, error_facts, play_all, real, scenario
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


class Note(BaseModel):
    name: str
    strength: int


class Perfume(BaseModel):
    title: str
    notes: list[Note]


def llm(model: str = "creative", **options: Any) -> OpenAILike:
    return OpenAILike(
        model=model,
        api_base=URL,
        api_key=KEY,
        is_chat_model=True,
        is_function_calling_model=True,
        context_window=32768,
        **options,
    )


def user(prompt: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=prompt)]


def response_facts(response: Any) -> dict[str, Any]:
    raw = response.raw
    return {
        "text": response.message.content,
        "model": raw.model,
        "usage": raw.usage.model_dump() if raw.usage else None,
        "finish": raw.choices[0].finish_reason if raw.choices else None,
        "gateway": (raw.model_extra or {}).get("gateway"),
        "id": raw.id,
    }


def find_notes(family: str, count: int) -> str:
    """Find perfume notes."""
    return "cedar"


TOOL = FunctionTool.from_defaults(find_notes)


def call_facts(model: OpenAILike, response: Any) -> list[dict[str, Any]]:
    calls = model.get_tool_calls_from_response(response, error_on_no_tool_call=False)
    return [{"id": c.tool_id, "name": c.tool_name, "arguments": c.tool_kwargs} for c in calls]


@scenario
def versions() -> dict[str, Any]:
    return {"llama-index-llms-openai-like": version("llama-index-llms-openai-like")}


@scenario
def whole() -> dict[str, Any]:
    return response_facts(llm().chat(user(ask("whole"))))


@scenario
def streamed() -> dict[str, Any]:
    more = {"stream_options": {"include_usage": True}}
    chunks = list(llm(additional_kwargs=more).stream_chat(user(ask("streamed"))))
    deltas = "".join(chunk.delta or "" for chunk in chunks)
    finish = [c.raw.choices[0].finish_reason for c in chunks if c.raw.choices]
    return {
        **response_facts(chunks[-1]),
        "deltas": deltas,
        "finish": next(f for f in finish if f),
        "chunks": len(chunks),
    }


@scenario
async def async_whole() -> dict[str, Any]:
    return response_facts(await llm().achat(user(ask("async_whole"))))


@scenario
async def async_streamed() -> dict[str, Any]:
    stream = await llm().astream_chat(user(ask("async_streamed")))
    chunks = [chunk async for chunk in stream]
    return {**response_facts(chunks[-1]), "chunks": len(chunks)}


@scenario
def tools_whole() -> dict[str, Any]:
    model = llm()
    response = model.chat_with_tools([TOOL], user_msg=ask("tools_whole"))
    return {"calls": call_facts(model, response)}


@scenario
def tools_streamed() -> dict[str, Any]:
    model = llm()
    prompt = ask("tools_streamed", say="Find 3 notes, twice.")
    *_, last = model.stream_chat_with_tools([TOOL], user_msg=prompt)
    return {"calls": call_facts(model, last)}


@scenario
def structured_whole() -> dict[str, Any]:
    typed = llm().as_structured_llm(Perfume)
    return {"parsed": typed.chat(user(ask("structured_whole"))).raw.model_dump()}


@scenario
def too_long() -> dict[str, Any]:
    return caught(lambda: llm(max_retries=0).chat(user(ask("too_long", "*=400_context_vllm"))))


@scenario
def unknown_model() -> dict[str, Any]:
    return caught(lambda: llm("gpt-nope", max_retries=0).chat(user(ask("unknown_model"))))


@scenario
def all_failed() -> dict[str, Any]:
    return caught(lambda: llm().chat(user(ask("all_failed", "*=html"))))


@scenario
def broken_streams() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for fault in ("cut_fin", "error_mid_stream"):
        text = ""
        try:
            for chunk in llm(max_retries=0).stream_chat(user(ask(f"broken.{fault}", f"*={fault}"))):
                text += chunk.delta or ""
        except Exception as error:
            found[fault] = error_facts(error, text=text, finish=[])
    return found


@scenario
def downshift() -> dict[str, Any]:
    return response_facts(llm().chat(user(ask("downshift", "qwen-large=html"))))


@scenario
def left_stream() -> dict[str, Any]:
    stream = llm().stream_chat(user(ask("left_stream", "*=forever")))
    for number, _ in enumerate(stream):
        if number == 3:
            break
    stream.close()
    del stream
    gc.collect()  # LlamaIndex drops the response without closing it: its cycle must be collected
    return {"left_at": time.time()}


@real
def real_text() -> dict[str, Any]:
    prompt = user("What is the capital of France? Answer in one sentence.")
    fresh = {"cache-control": "no-cache"}
    chunks = list(llm(default_headers=fresh).stream_chat(prompt))
    return {
        "whole": response_facts(llm().chat(prompt)),
        "streamed": {**response_facts(chunks[-1]), "chunks": len(chunks)},
    }


play_all()
