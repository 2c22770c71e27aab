"""instructor: typed answers by tools and by schema, partial ones as they stream, lists."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

import instructor
import openai
from facts import KEY, URL, ask, error_facts, play_all, scenario
from pydantic import BaseModel


class Note(BaseModel):
    name: str
    strength: int


class Perfume(BaseModel):
    title: str
    notes: list[Note]


def client(mode: instructor.Mode) -> instructor.Instructor:
    return instructor.from_openai(openai.OpenAI(base_url=URL, api_key=KEY), mode=mode)


by_tools = client(instructor.Mode.TOOLS)
by_schema = client(instructor.Mode.JSON_SCHEMA)


def user(prompt: str) -> list[Any]:
    return [{"role": "user", "content": prompt}]


def create(tag: str, *cues: str, by: Any = by_tools, model: str = "creative", **more: Any) -> Any:
    messages = user(ask(tag, *cues))
    return by.create(model=model, response_model=Perfume, messages=messages, max_retries=0, **more)


@scenario
def versions() -> dict[str, Any]:
    return {"instructor": version("instructor"), "openai": openai.__version__}


@scenario
def structured_whole() -> dict[str, Any]:
    return {"parsed": create("structured_whole").model_dump()}


@scenario
def structured_schema() -> dict[str, Any]:
    perfume, completion = by_schema.create_with_completion(
        model="creative", response_model=Perfume, messages=user(ask("structured_schema"))
    )
    facts = (completion.model_extra or {}).get("gateway")
    return {"parsed": perfume.model_dump(), "model": completion.model, "gateway": facts}


@scenario
def structured_streamed() -> dict[str, Any]:
    """Partial objects: each holds what has come so far."""
    partial = by_tools.create_partial(
        model="creative", response_model=Perfume, messages=user(ask("structured_streamed"))
    )
    seen = [perfume.model_dump() for perfume in partial]
    return {"parsed": seen[-1], "partial": len(seen), "first": seen[0]}


@scenario
def structured_list() -> dict[str, Any]:
    notes = by_tools.create_iterable(
        model="creative", response_model=Note, messages=user(ask("structured_list"))
    )
    return {"notes": [note.model_dump() for note in notes]}


@scenario
async def structured_async() -> dict[str, Any]:
    async with openai.AsyncOpenAI(base_url=URL, api_key=KEY) as own:
        asking = instructor.from_openai(own, mode=instructor.Mode.TOOLS)
        perfume = await asking.create(
            model="creative", response_model=Perfume, messages=user(ask("structured_async"))
        )
        return {"parsed": perfume.model_dump()}


@scenario
def too_long() -> dict[str, Any]:
    return _inner(caught_raw(lambda: create("too_long", "*=400_context_vllm")))


@scenario
def unknown_model() -> dict[str, Any]:
    return _inner(caught_raw(lambda: create("unknown_model", model="gpt-nope")))


@scenario
def all_failed() -> dict[str, Any]:
    return _inner(caught_raw(lambda: create("all_failed", "*=html")))


@scenario
def impatient() -> dict[str, Any]:
    began = time.monotonic()
    error = caught_raw(lambda: create("impatient", "*=silent", timeout=1.5))
    return {**_inner(error), "took_s": time.monotonic() - began}


@scenario
def broken_streams() -> dict[str, Any]:
    """A tool call that breaks off is no answer."""
    messages = user(ask("broken.cut", "*=cut_call"))
    seen: list[Any] = []

    def read() -> None:
        seen.extend(
            by_tools.create_partial(
                model="creative", response_model=Perfume, messages=messages, max_retries=0
            )
        )

    error = caught_raw(read)
    return {"cut_call": {**_inner(error), "text": "", "finish": [], "partial": len(seen)}}


@scenario
def downshift() -> dict[str, Any]:
    perfume, completion = by_tools.create_with_completion(
        model="creative", response_model=Perfume, messages=user(ask("downshift", "qwen-large=html"))
    )
    facts = (completion.model_extra or {}).get("gateway")
    return {"parsed": perfume.model_dump(), "model": completion.model, "gateway": facts}


def caught_raw(call: Any) -> BaseException:
    """What a call raises."""
    try:
        answer = call()
    except Exception as error:
        return error
    raise AssertionError(f"it answered: {answer!r}")


def _inner(error: BaseException) -> dict[str, Any]:
    """openai's error inside instructor's own."""
    outer = type(error).__name__
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, openai.APIError):
        last = getattr(seen, "last_exception", None) or seen.__cause__ or seen.__context__
        seen = last if isinstance(last, BaseException) else None
    return {**error_facts(seen or error), "outer": outer}


play_all()
