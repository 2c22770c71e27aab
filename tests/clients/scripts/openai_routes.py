"""openai-python: the routes beside chat completions; keys and their limits."""

from __future__ import annotations

import json
from typing import Any

import openai
from facts import KEYS, URL, ask, caught, real, scenario
from openai_common import FIND_NOTES, Perfume, aclient, client, create

EMBEDDER = "qwen-embedder"
FUNCTION: Any = {"type": "function", **FIND_NOTES["function"]}


def response_facts(response: Any) -> dict[str, Any]:
    usage = response.usage
    return {
        "text": response.output_text,
        "status": response.status,
        "model": response.model,
        "usage": {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens},
        "kinds": [item.type for item in response.output],
        "calls": [
            {"id": item.call_id, "name": item.name, "arguments": json.loads(item.arguments)}
            for item in response.output
            if item.type == "function_call"
        ],
        "gateway": (response.model_extra or {}).get("gateway"),
    }


@scenario
def completions() -> dict[str, Any]:
    answer = client.completions.create(model="creative", prompt=ask("completions"))
    chunks = list(
        client.completions.create(
            model="creative", prompt=ask("completions.stream"), stream=True, max_tokens=6
        )
    )
    several = client.completions.create(
        model="creative", prompt=[ask("completions.a"), ask("completions.b")]
    )
    return {
        "text": answer.choices[0].text,
        "finish": answer.choices[0].finish_reason,
        "model": answer.model,
        "usage": answer.usage.model_dump() if answer.usage else None,
        "streamed": "".join(choice.text for chunk in chunks for choice in chunk.choices),
        "several": [(choice.index, choice.text) for choice in several.choices],
    }


@scenario
def completions_broken() -> dict[str, Any]:
    def read() -> Any:
        prompt = ask("completions_broken", "*=cut_fin")
        return list(client.completions.create(model="creative", prompt=prompt, stream=True))

    return caught(read)


@scenario
def embeddings() -> dict[str, Any]:
    """The client asks for base64 by itself, and shows floats."""
    texts = ["cedar", "vétiver 香根草"]
    answer = client.embeddings.create(model=EMBEDDER, input=texts)
    plain = client.embeddings.create(model=EMBEDDER, input="cedar", encoding_format="float")
    return {
        "texts": texts,
        "vectors": [item.embedding for item in answer.data],
        "plain": plain.data[0].embedding,
        "model": answer.model,
        "usage": answer.usage.model_dump(),
        "unknown": caught(lambda: client.embeddings.create(model="gpt-nope", input="x")),
    }


@scenario
async def embeddings_async() -> dict[str, Any]:
    async with aclient() as own:
        answer = await own.embeddings.create(model=EMBEDDER, input="cedar")
        return {"vectors": [item.embedding for item in answer.data]}


@scenario
def responses() -> dict[str, Any]:
    return response_facts(client.responses.create(model="creative", input=ask("responses")))


@scenario
def responses_streamed() -> dict[str, Any]:
    with client.responses.stream(model="creative", input=ask("responses_streamed")) as stream:
        events = list(stream)
        final = stream.get_final_response()
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    kinds = [events[0].type, events[-1].type]
    return {**response_facts(final), "deltas": deltas, "first_and_last": kinds}


@scenario
async def responses_async() -> dict[str, Any]:
    async with aclient() as own:
        prompt = ask("responses_async")
        return response_facts(await own.responses.create(model="creative", input=prompt))


@scenario
def responses_tools() -> dict[str, Any]:
    prompt = ask("responses_tools")
    asked: Any = [{"role": "user", "content": prompt}]
    first = client.responses.create(model="creative", input=asked, tools=[FUNCTION])
    with client.responses.stream(
        model="creative", input=ask("responses_tools.stream"), tools=[FUNCTION]
    ) as stream:
        streamed = stream.get_final_response()
    facts = response_facts(first)
    asked += first.output
    asked.append(
        {
            "type": "function_call_output",
            "call_id": facts["calls"][0]["id"],
            "output": "cedar",
        }
    )
    second = client.responses.create(model="creative", input=asked, tools=[FUNCTION])
    return {
        "calls": facts["calls"],
        "streamed": response_facts(streamed)["calls"],
        "text": second.output_text,
    }


@scenario
def responses_structured() -> dict[str, Any]:
    answer = client.responses.parse(
        model="creative", input=ask("responses_structured"), text_format=Perfume
    )
    assert answer.output_parsed is not None
    return {"parsed": answer.output_parsed.model_dump()}


@scenario
def responses_broken() -> dict[str, Any]:
    """A response that breaks off: whatever the client raises or shows, it is not completed."""
    kinds: list[str] = []

    def read() -> Any:
        prompt = ask("responses_broken", "*=cut_fin")
        stream = client.responses.create(model="creative", input=prompt, stream=True)
        kinds.extend(event.type for event in stream)

    return {**caught(read), "kinds": kinds}


@scenario
def models() -> dict[str, Any]:
    listed = [model.id for model in client.models.list()]
    one = client.models.retrieve("creative")
    unknown = caught(lambda: client.models.retrieve("gpt-nope"))
    return {"ids": listed, "one": one.id, "owner": one.owned_by, "unknown": unknown}


@scenario
def keys() -> dict[str, Any]:
    def ask_as(key: str, tag: str, model: str = "fast") -> dict[str, Any]:
        with openai.OpenAI(base_url=URL, api_key=key, max_retries=0) as own:
            messages: Any = [{"role": "user", "content": ask(tag)}]
            return caught(lambda: own.chat.completions.create(model=model, messages=messages))

    return {
        "wrong": ask_as("sk-nobody-has-this-key-at-all", "keys.wrong"),
        "narrow": ask_as(KEYS["narrow"], "keys.narrow"),
        "narrow_creative": ask_as(KEYS["narrow"], "keys.narrow_creative", "creative"),
        "rare": ask_as(KEYS["rare"], "keys.rare"),
        "rare_again": ask_as(KEYS["rare"], "keys.rare_again"),
    }


@scenario
def throttled() -> dict[str, Any]:
    """A wait too long to be worth it: told at once, once. Last, as `fast` then rests."""
    no_lower = {"x-gateway-allow-degrade": "false"}
    return caught(
        lambda: create("throttled", "*=429_retry_after_date", model="fast", extra_headers=no_lower)
    )


@real
def real_response() -> dict[str, Any]:
    prompt = "What is the capital of France? Answer in one sentence."
    with client.responses.stream(model="fast", input=prompt, max_output_tokens=32) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    return {**response_facts(final), "deltas": deltas}


@real
def real_completion() -> dict[str, Any]:
    """A raw text goes on: no chat template makes an assistant of it."""
    answer = client.completions.create(
        model="fast", prompt="The capital of France is", max_tokens=4, temperature=0
    )
    return {"text": answer.choices[0].text, "model": answer.model}
