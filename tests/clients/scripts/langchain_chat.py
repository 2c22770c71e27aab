"""LangChain's ChatOpenAI: chains, streams, tools, structured output, its typed errors."""

from __future__ import annotations

import time
from typing import Any

import langchain_core
import langchain_openai
from facts import KEY, URL, ask, caught, error_facts, play_all, real, scenario
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel


class Note(BaseModel):
    """A perfume note."""

    name: str
    strength: int


class Perfume(BaseModel):
    """A perfume."""

    title: str
    notes: list[Note]


@tool
def find_notes(family: str, count: int) -> str:
    """Find perfume notes."""
    return "cedar"


def model(name: str = "creative", **options: Any) -> ChatOpenAI:
    options = {"stream_usage": True, "use_responses_api": False, **options}
    return ChatOpenAI(model=name, base_url=URL, **{"api_key": KEY, **options})


def message_facts(message: AIMessage) -> dict[str, Any]:
    about = message.response_metadata
    return {
        "text": message.text,
        "finish": about.get("finish_reason"),
        "model": about.get("model_name"),
        "usage": message.usage_metadata,
        "id": message.id,
        "calls": [
            {"id": call["id"], "name": call["name"], "arguments": call["args"]}
            for call in message.tool_calls
        ],
        "invalid": message.invalid_tool_calls,
        "headers": about.get("headers"),
    }


def joined(chunks: list[Any]) -> dict[str, Any]:
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert isinstance(whole, AIMessageChunk)
    return {**message_facts(whole), "chunks": len(chunks)}


@scenario
def versions() -> dict[str, Any]:
    return {"langchain-openai": langchain_openai.__version__, "core": langchain_core.__version__}


@scenario
def whole() -> dict[str, Any]:
    return message_facts(model().invoke(ask("whole")))


@scenario
def streamed() -> dict[str, Any]:
    return joined(list(model().stream(ask("streamed"))))


@scenario
async def async_whole() -> dict[str, Any]:
    return message_facts(await model().ainvoke(ask("async_whole")))


@scenario
async def async_streamed() -> dict[str, Any]:
    return joined([chunk async for chunk in model().astream(ask("async_streamed"))])


@scenario
def tools_whole() -> dict[str, Any]:
    return message_facts(model().bind_tools([find_notes]).invoke(ask("tools_whole")))


@scenario
def tools_streamed() -> dict[str, Any]:
    prompt = ask("tools_streamed", say="Find 3 notes, twice.")
    return joined(list(model().bind_tools([find_notes]).stream(prompt)))


@scenario
def structured_whole() -> dict[str, Any]:
    parsed = model().with_structured_output(Perfume).invoke(ask("structured_whole"))
    assert isinstance(parsed, Perfume)
    return {"parsed": parsed.model_dump()}


@scenario
def structured_streamed() -> dict[str, Any]:
    chain = model().with_structured_output(Perfume, method="function_calling")
    *_, parsed = chain.stream(ask("structured_streamed"))
    assert isinstance(parsed, Perfume)
    return {"parsed": parsed.model_dump()}


@scenario
def responses() -> dict[str, Any]:
    """The same model over the Responses API."""
    answer = model(use_responses_api=True).invoke(ask("responses"))
    return {"text": answer.text, "usage": answer.usage_metadata}


@scenario
def responses_streamed() -> dict[str, Any]:
    chunks = list(model(use_responses_api=True).stream(ask("responses_streamed")))
    texts = [chunk.text for chunk in chunks if chunk.text]
    return {"text": "".join(texts), "deltas": texts}


@scenario
def responses_tools() -> dict[str, Any]:
    asking = model(use_responses_api=True).bind_tools([find_notes])
    return message_facts(asking.invoke(ask("responses_tools")))


@scenario
def completions() -> dict[str, Any]:
    text = OpenAI(model="creative", base_url=URL, api_key=KEY)
    return {
        "text": text.invoke(ask("completions")),
        "streamed": "".join(text.stream(ask("completions.stream"))),
    }


@scenario
def embeddings() -> dict[str, Any]:
    """LangChain would send token numbers; checking the length here is for OpenAI's models only."""
    embedder = OpenAIEmbeddings(
        model="qwen-embedder", base_url=URL, api_key=KEY, check_embedding_ctx_length=False
    )
    texts = ["cedar", "vétiver 香根草"]
    return {"texts": texts, "vectors": embedder.embed_documents(texts)}


@scenario
def keys() -> dict[str, Any]:
    stranger = model(api_key="sk-nobody-has-this-key-at-all")
    return {"wrong": caught(lambda: stranger.invoke(ask("keys.wrong")))}


@scenario
def too_long() -> dict[str, Any]:
    return caught(lambda: model().invoke(ask("too_long", "*=400_context_vllm")))


@scenario
def too_long_streamed() -> dict[str, Any]:
    def call() -> Any:
        return list(model().stream(ask("too_long_streamed", "*=400_context_openai")))

    return caught(call)


@scenario
def unknown_model() -> dict[str, Any]:
    return caught(lambda: model("gpt-nope").invoke(ask("unknown_model")))


@scenario
def throttled_shortly() -> dict[str, Any]:
    began = time.monotonic()
    no_lower = {"x-gateway-allow-degrade": "false"}
    patient = model("fast", timeout=10.0, default_headers=no_lower)
    answer = patient.invoke(ask("throttled_shortly", "*=429_retry_after_ms,answer"))
    return {**message_facts(answer), "took_s": time.monotonic() - began}


@scenario
def all_failed() -> dict[str, Any]:
    return caught(lambda: model().invoke(ask("all_failed", "*=html")))


@scenario
def broken_streams() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for fault in ("cut_fin", "error_mid_stream"):
        text = ""
        try:
            for chunk in model().stream(ask(f"broken.{fault}", f"*={fault}")):
                text += chunk.text
        except Exception as error:
            found[fault] = error_facts(error, text=text, finish=[])
    return found


@scenario
async def broken_async() -> dict[str, Any]:
    text = ""
    try:
        async for chunk in model().astream(ask("broken_async", "*=cut_fin")):
            text += chunk.text
    except Exception as error:
        return error_facts(error, text=text, finish=[])
    return {"error": None, "text": text}


@scenario
def downshift() -> dict[str, Any]:
    asking = model(include_response_headers=True)
    return message_facts(asking.invoke(ask("downshift", "qwen-large=html")))


@scenario
def impatient() -> dict[str, Any]:
    return caught(lambda: model(timeout=1.5).invoke(ask("impatient", "*=silent")))


@scenario
def left_stream() -> dict[str, Any]:
    stream = model().stream(ask("left_stream", "*=forever"))
    for number, _ in enumerate(stream):
        if number == 3:
            break
    stream.close()
    return {"left_at": time.time()}


@scenario
async def left_async() -> dict[str, Any]:
    stream = model().astream(ask("left_async", "*=forever"))
    seen = 0
    async for _ in stream:
        seen += 1
        if seen == 3:
            break
    await stream.aclose()
    return {"left_at": time.time()}


@real
def real_text() -> dict[str, Any]:
    prompt = "What is the capital of France? Answer in one sentence."
    fresh = {"cache-control": "no-cache"}
    return {
        "whole": message_facts(model().invoke(prompt)),
        "streamed": joined(list(model(default_headers=fresh).stream(prompt))),
    }


play_all()
