"""The routes beside chat completions, and keys: legacy completions, embeddings, responses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from brain import AWKWARD, vector_of
from client import Client
from servers import EMBEDDER, MODES, Behind

Play = Callable[[str], Client]
OPENAI_PYTHON = ["openai2", "openai3"]
RESPONDERS = [*OPENAI_PYTHON, "openai_node", "langchain"]


# -- legacy completions ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*OPENAI_PYTHON, "openai_node", "langchain", "ai_sdk"])
def test_a_text_goes_on(play: Play, behind: Behind, name: str) -> None:
    client = play(name)
    facts = client["completions"]
    assert facts["text"] == behind.said(client.tag("completions"))
    assert facts["streamed"] == behind.said(client.tag("completions.stream"))
    (seen,) = behind.asked(client.tag("completions"))
    assert "messages" not in seen.body


@pytest.mark.parametrize("name", OPENAI_PYTHON)
def test_several_prompts_keep_their_order(play: Play, behind: Behind, name: str) -> None:
    client = play(name)
    said = [behind.said(client.tag(f"completions.{part}")) for part in ("a", "b")]
    assert said[0] != said[1]
    assert client["completions"]["several"] == [[0, said[0]], [1, said[1]]]
    assert (client["completions"]["finish"], client["completions"]["model"]) == (
        "stop",
        MODES["creative"],
    )


@pytest.mark.parametrize("name", OPENAI_PYTHON)
def test_a_text_that_breaks_off_raises(play: Play, name: str) -> None:
    assert "APIError" in play(name)["completions_broken"]["bases"]


# -- embeddings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*OPENAI_PYTHON, "openai_node", "langchain", "ai_sdk"])
def test_vectors_arrive_to_the_last_bit(play: Play, name: str) -> None:
    facts = play(name)["embeddings"]
    assert facts["vectors"] == [vector_of(text) for text in facts["texts"]]
    assert facts.get("model", EMBEDDER) == EMBEDDER


@pytest.mark.parametrize("name", OPENAI_PYTHON)
def test_vectors_plain_and_async(play: Play, name: str) -> None:
    assert play(name)["embeddings"]["plain"] == vector_of("cedar")
    assert play(name)["embeddings_async"]["vectors"] == [vector_of("cedar")]
    assert play(name)["embeddings"]["usage"] == {"prompt_tokens": 2, "total_tokens": 2}
    unknown = play(name)["embeddings"]["unknown"]
    assert (unknown["error"], unknown["code"]) == ("NotFoundError", "model_not_found")


# -- responses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*RESPONDERS, "pydantic_ai"])
def test_response(play: Play, behind: Behind, name: str) -> None:
    client = play(name)
    facts = client["responses"]
    seen = behind.asked(client.tag("responses"))[-1]
    assert facts["text"] == seen.text
    if "usage" in facts:
        assert facts["usage"]["output_tokens"] == len(seen.text.split())
    assert facts.get("model", MODES["creative"]) == MODES["creative"]
    assert facts.get("status", "completed") == "completed"


@pytest.mark.parametrize("name", RESPONDERS)
def test_response_streamed(play: Play, behind: Behind, name: str) -> None:
    client = play(name)
    facts = client["responses_streamed"]
    assert (
        facts["text"] == "".join(facts["deltas"]) == behind.said(client.tag("responses_streamed"))
    )
    assert len(facts["deltas"]) >= 8


@pytest.mark.parametrize("name", RESPONDERS)
def test_response_with_a_function_call(play: Play, name: str) -> None:
    facts = play(name)["responses_tools"]
    call = {"name": "find_notes", "arguments": {"family": AWKWARD, "count": 7}}
    for calls in (facts["calls"], facts.get("streamed", facts["calls"])):
        assert [{key: one[key] for key in call} for one in calls] == [call]


@pytest.mark.parametrize("name", OPENAI_PYTHON)
def test_response_details(play: Play, behind: Behind, name: str) -> None:
    client = play(name)
    assert client["responses_streamed"]["first_and_last"] == [
        "response.created",
        "response.completed",
    ]
    assert client["responses_tools"]["text"] == behind.said(client.tag("responses_tools"))
    assert client["responses_async"]["text"] == behind.said(client.tag("responses_async"))
    parsed = client["responses_structured"]["parsed"]
    assert (parsed["title"], parsed["notes"][0]["strength"]) == (AWKWARD, 7)


@pytest.mark.parametrize("name", OPENAI_PYTHON)
def test_a_response_that_breaks_off_is_never_completed(play: Play, name: str) -> None:
    facts = play(name)["responses_broken"]
    assert "response.completed" not in facts["kinds"]
    assert facts["error"] is not None or "response.failed" in facts["kinds"], facts


# -- keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("openai2", "AuthenticationError"),
        ("openai3", "AuthenticationError"),
        ("openai_node", "AuthenticationError"),
        ("langchain", "AuthenticationError"),
        ("pydantic_ai", "ModelHTTPError"),
        ("ai_sdk", "APICallError"),
    ],
)
def test_a_wrong_key_stays_outside(play: Play, behind: Behind, name: str, wanted: str) -> None:
    client = play(name)
    facts = client["keys"]["wrong"]
    assert wanted in facts["bases"]
    assert facts["status"] == 401
    assert "sk-nobody" not in facts["message"]
    assert behind.asked(client.tag("keys.wrong")) == []


@pytest.mark.parametrize("name", OPENAI_PYTHON)
def test_a_key_may_what_it_may(play: Play, name: str) -> None:
    facts: dict[str, Any] = play(name)["keys"]
    assert facts["narrow"]["error"] is None
    refused = facts["narrow_creative"]
    assert (refused["error"], refused["status"]) == ("PermissionDeniedError", 403)


@pytest.mark.parametrize("name", OPENAI_PYTHON)
def test_a_key_at_its_limit_is_told_when_to_come_back(play: Play, name: str) -> None:
    facts: dict[str, Any] = play(name)["keys"]
    assert facts["rare"]["error"] is None
    limited = facts["rare_again"]
    assert (limited["error"], limited["status"]) == ("RateLimitError", 429)
    assert 1 <= int(limited["headers"]["retry-after"]) <= 60
    assert limited["headers"]["x-ratelimit-limit-requests"] == "1"
    assert limited["headers"]["x-ratelimit-remaining-requests"] == "0"
