"""What goes wrong arrives as the client's own typed exception, and nothing broken looks whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from client import CLIENTS, Client
from servers import MODES, Behind

Play = Callable[[str], Client]
OPENAI = ["openai2", "openai3", "openai_node"]
EVERY_MODEL = list(MODES.values())

# How each client calls it.
TYPED = {
    "too_long": {
        "langchain": "ContextOverflowError",
        "pydantic_ai": "ModelContextWindowExceededError",
        "ai_sdk": "APICallError",
        "": "BadRequestError",
    },
    "unknown_model": {
        "pydantic_ai": "ModelNotFoundError",
        "ai_sdk": "APICallError",
        "": "NotFoundError",
    },
    "all_failed": {
        "pydantic_ai": "ModelUnavailableError",
        "ai_sdk": "APICallError",
        "": "InternalServerError",
    },
    "impatient": {"pydantic_ai": "ModelServerError", "": "InternalServerError"},
    "broken": {"pydantic_ai": "ModelServerError", "ai_sdk": "part", "": "APIError"},
}


def check_error(facts: dict[str, Any], name: str, what: str, status: int, code: str) -> None:
    wanted = TYPED[what].get(name, TYPED[what][""])
    assert wanted in facts["bases"], facts
    assert facts["status"] == status
    assert code in (facts["code"] or facts["message"])


@pytest.mark.parametrize("name", CLIENTS)
def test_a_prompt_too_long_for_every_mode(play: Play, behind: Behind, name: str) -> None:
    client = play(name)
    check_error(client["too_long"], name, "too_long", 400, "context_length_exceeded")
    asked = [seen.model for seen in behind.asked(client.tag("too_long"))]
    assert asked == EVERY_MODEL, "the client asked again"


def test_langchain_knows_an_overflow_in_a_stream_too(play: Play) -> None:
    assert "ContextOverflowError" in play("langchain")["too_long_streamed"]["bases"]


@pytest.mark.parametrize("name", CLIENTS)
def test_an_unknown_model(play: Play, behind: Behind, name: str) -> None:
    client = play(name)
    check_error(client["unknown_model"], name, "unknown_model", 404, "model_not_found")
    assert behind.asked(client.tag("unknown_model")) == []


@pytest.mark.parametrize("name", CLIENTS)
def test_when_every_mode_failed_nobody_asks_again(play: Play, behind: Behind, name: str) -> None:
    """`x-should-retry: false`: the retries of OpenAI's clients would multiply an outage."""
    client = play(name)
    facts = client["all_failed"]
    check_error(facts, name, "all_failed", 503, "all_modes_failed")
    # LlamaIndex has a loop of its own around openai's client, which heeds no header: three rounds.
    times = 3 if name == "llama_index" else 1
    assert [seen.model for seen in behind.asked(client.tag("all_failed"))] == EVERY_MODEL * times
    if facts["headers"]:
        assert facts["headers"]["x-should-retry"] == "false"
        assert facts["headers"]["x-request-id"]


@pytest.mark.parametrize("name", ["openai2", "openai3"])
def test_the_same_before_a_stream_begins(play: Play, behind: Behind, name: str) -> None:
    client = play(name)
    check_error(client["all_failed_streamed"], name, "all_failed", 503, "all_modes_failed")
    asked = behind.asked(client.tag("all_failed_streamed"))
    assert [seen.model for seen in asked] == EVERY_MODEL


@pytest.mark.parametrize("name", CLIENTS)
def test_a_broken_stream_raises_and_never_looks_whole(play: Play, name: str) -> None:
    for fault, facts in play(name)["broken_streams"].items():
        wanted = TYPED["broken"].get(name, TYPED["broken"][""])
        assert wanted in facts.get("bases", [facts["error"]]), (fault, facts)
        assert "the answer broke off" in facts["message"], fault
        assert facts["finish"] in ([], ["error"]), fault
        assert facts["text"].count("-") == (0 if name == "instructor" else 3), fault


@pytest.mark.parametrize("name", ["openai2", "openai3", "langchain"])
def test_a_broken_stream_raises_in_async_code_too(play: Play, name: str) -> None:
    facts = play(name)["broken_async"]
    assert "APIError" in facts["bases"]
    assert facts["text"].count("-") == 3


def test_half_an_object_is_no_object(play: Play) -> None:
    """instructor got half a tool call: it raises, however many partial objects it showed."""
    facts = play("instructor")["broken_streams"]["cut_call"]
    assert (facts["outer"], facts["error"]) == ("InstructorRetryException", "APIError")


@pytest.mark.parametrize("name", OPENAI)
def test_a_rate_limit_says_when_to_come_back(play: Play, behind: Behind, name: str) -> None:
    client = play(name)
    facts = client["throttled"]
    assert (facts["error"], facts["status"]) == ("RateLimitError", 429)
    assert (facts["code"], facts["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    assert facts["headers"]["retry-after"] == "3"
    assert 2000 < int(facts["headers"]["retry-after-ms"]) <= 3000


@pytest.mark.parametrize(
    "name", [name for name in CLIENTS if name not in ("instructor", "llama_index")]
)
def test_a_short_retry_after_is_waited_for(play: Play, behind: Behind, name: str) -> None:
    """The client waits as told, by itself, and then has its answer."""
    client = play(name)
    facts = client["throttled_shortly"]
    first, second = behind.asked(client.tag("throttled_shortly"))
    assert second.at - first.at >= 1.5
    assert facts["took_s"] < 4
    assert (facts["text"], facts["model"]) == (second.text, MODES["fast"])


@pytest.mark.parametrize("name", ["openai2", "openai3"])
def test_a_bad_request_names_the_parameter(play: Play, name: str) -> None:
    facts = play(name)["bad_request"]
    assert (facts["error"], facts["status"], facts["param"]) == ("BadRequestError", 400, "messages")


@pytest.mark.parametrize("name", ["openai2", "openai3"])
def test_no_lower_mode_where_it_is_forbidden(play: Play, behind: Behind, name: str) -> None:
    client = play(name)
    facts = client["no_degrade"]
    assert (facts["error"], facts["status"]) == ("InternalServerError", 502)
    assert [seen.model for seen in behind.asked(client.tag("no_degrade"))] == [MODES["creative"]]


@pytest.mark.parametrize(
    "name", [name for name in CLIENTS if name not in ("ai_sdk", "llama_index")]
)
def test_a_client_in_a_hurry_hears_in_time(play: Play, behind: Behind, name: str) -> None:
    """OpenAI's clients say how long they wait: the gateway answers a little before that, or the
    error were the client's own time-out, and it would ask again.
    """
    client = play(name)
    check_error(client["impatient"], name, "impatient", 504, "deadline_exceeded")
    asked = behind.asked(client.tag("impatient"))
    assert [seen.model for seen in asked] == EVERY_MODEL, "the client asked again"
