"""Every client gets every word, token count, tool call and object that the model gave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from brain import AWKWARD
from client import CLIENTS, Client
from servers import MODES, Behind

from gateway.simulator.answers import count_words

Play = Callable[[str], Client]
OPENAI_PYTHON = ["openai2", "openai3"]
TALKERS = [name for name in CLIENTS if name != "instructor"]  # instructor only wants objects
ASYNC = [*OPENAI_PYTHON, "langchain", "pydantic_ai", "llama_index"]

PERFUME = {"title": AWKWARD, "notes": [{"name": AWKWARD, "strength": 7}]}


def check_answer(facts: dict[str, Any], behind: Behind, tag: str, mode: str = "creative") -> None:
    """Word for word what the mode's model said, and who it was."""
    assert facts["text"] == behind.said(tag)
    assert facts["model"] == MODES[mode]


def check_usage(usage: dict[str, Any], behind: Behind, tag: str) -> None:
    """The upstream's own counts."""
    seen = behind.asked(tag)[-1]
    asked = usage.get("prompt_tokens") or usage["input_tokens"]
    answered = usage.get("completion_tokens") or usage["output_tokens"]
    assert (asked, answered) == (count_words(seen.body["messages"]), len(seen.text.split()))
    assert usage.get("total_tokens", asked + answered) == asked + answered


def arguments(facts: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(call["name"], call["arguments"]) for call in facts["calls"]]


@pytest.mark.parametrize("name", CLIENTS)
def test_versions_are_those_of_the_locks(play: Play, name: str) -> None:
    from environments import LOCKS

    locked = {
        line.partition("==")[0]: line.partition("==")[2].strip()
        for lock in LOCKS.glob("*.lock")
        for line in lock.read_text().splitlines()
        if lock.stem == CLIENTS[name].environment
    }
    for package, version in play(name)["versions"].items():
        assert locked.get(package, version) == version
        print(f"{name}: {package} {version}")


@pytest.mark.parametrize("name", TALKERS)
def test_whole_answer(play: Play, behind: Behind, name: str) -> None:
    client = play(name)
    facts = client["whole"]
    check_answer(facts, behind, client.tag("whole"))
    check_usage(facts["usage"], behind, client.tag("whole"))
    assert facts["finish"] == "stop"


@pytest.mark.parametrize("name", TALKERS)
def test_streamed_answer(play: Play, behind: Behind, name: str) -> None:
    client = play(name)
    facts = client["streamed"]
    assert facts["text"] == behind.said(client.tag("streamed"))
    assert facts.get("models", [facts.get("model")]) == [MODES["creative"]]
    assert facts["finish"] in ("stop", ["stop"])
    assert facts["chunks"] >= 8, "it came in one piece"
    usage = facts["usage"]
    check_usage(usage[-1] if isinstance(usage, list) else usage, behind, client.tag("streamed"))


@pytest.mark.parametrize("name", ASYNC)
def test_async_whole_answer(play: Play, behind: Behind, name: str) -> None:
    client = play(name)
    check_answer(client["async_whole"], behind, client.tag("async_whole"))


@pytest.mark.parametrize("name", [name for name in ASYNC if name != "pydantic_ai"])
def test_async_streamed_answer(play: Play, behind: Behind, name: str) -> None:
    client = play(name)  # pydantic-ai streams asynchronously only: its `streamed` is that
    facts = client["async_streamed"]
    assert facts["text"] == behind.said(client.tag("async_streamed"))
    assert facts["chunks"] >= 8


@pytest.mark.parametrize("name", [*OPENAI_PYTHON, "openai_node"])
def test_twenty_streams_at_once_do_not_mix(play: Play, behind: Behind, name: str) -> None:
    client = play(name)
    texts = client["many_at_once"]["texts"]
    assert texts == [behind.said(client.tag(f"many_at_once.{n}")) for n in range(20)]
    assert len(set(texts)) == 20


@pytest.mark.parametrize("name", TALKERS)
def test_tool_call(play: Play, name: str) -> None:
    client = play(name)
    facts = client["tools_whole"]
    assert arguments(facts) == [("find_notes", {"family": AWKWARD, "count": 7})]


@pytest.mark.parametrize("name", TALKERS)
def test_two_tool_calls_streamed(play: Play, name: str) -> None:
    facts = play(name)["tools_streamed"]
    assert arguments(facts) == [("find_notes", {"family": AWKWARD, "count": 3})] * 2
    ids = [call["id"] for call in facts["calls"] if "id" in call]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", ["pydantic_ai", "ai_sdk"])
def test_agents_go_on_with_what_the_tool_said(play: Play, behind: Behind, name: str) -> None:
    client = play(name)
    call, answer = behind.asked(client.tag("tools_whole"))
    assert "tools" in call.body
    assert answer.body["messages"][-1]["role"] == "tool"
    assert "cedar" in str(answer.body["messages"][-1]["content"])
    assert client["tools_whole"]["text"] == answer.text


@pytest.mark.parametrize("name", CLIENTS)
def test_structured_answer(play: Play, name: str) -> None:
    assert _plain(play(name)["structured_whole"]["parsed"]) == PERFUME


@pytest.mark.parametrize("name", [name for name in CLIENTS if name != "llama_index"])
def test_structured_answer_streamed(play: Play, name: str) -> None:
    assert _plain(play(name)["structured_streamed"]["parsed"]) == PERFUME


def _plain(parsed: dict[str, Any]) -> dict[str, Any]:
    """Without the optional field that only openai-python's script asks for."""
    for note in parsed["notes"]:
        note.pop("kind", None)
    return parsed


# -- what instructor adds --------------------------------------------------------------------------


def test_instructor_sees_objects_grow_and_lists_come(play: Play) -> None:
    client = play("instructor")
    assert client["structured_streamed"]["partial"] > 5
    assert client["structured_list"]["notes"] == [{"name": AWKWARD, "strength": 7}]
    assert client["structured_async"]["parsed"] == PERFUME
    assert client["structured_schema"]["parsed"] == PERFUME


def test_structured_answers_ask_upstream_for_a_schema(play: Play, behind: Behind) -> None:
    for name in ("openai3", "openai_node", "ai_sdk"):
        (seen,) = behind.asked(play(name).tag("structured_whole"))
        assert seen.body["response_format"]["type"] == "json_schema"


# -- what openai-python shows of the wire ----------------------------------------------------------


@pytest.mark.parametrize("name", OPENAI_PYTHON)
def test_the_wire_is_exact(play: Play, name: str) -> None:
    whole, streamed = play(name)["whole"], play(name)["streamed"]
    assert {"logprobs", "refusal", "annotations"} <= set(whole["set"])
    assert whole["role"] == streamed["first_role"] == "assistant"
    assert whole["request_id"]
    assert len(streamed["ids"]) == 1
    assert len(streamed["roles"]) == 1
    assert streamed["without_choices"] == [-1]  # the usage chunk comes last
    assert len(streamed["usage"]) == 1


@pytest.mark.parametrize("name", [*OPENAI_PYTHON, "openai_node"])
def test_usage_comes_only_if_asked_for(play: Play, name: str) -> None:
    facts = play(name)["streamed_plain"]
    assert facts["usage"] == []
    assert facts.get("without_choices", []) == []
    assert facts["finish"] == ["stop"]


@pytest.mark.parametrize("name", OPENAI_PYTHON)
def test_facts_stand_in_the_first_and_the_last_chunk(play: Play, name: str) -> None:
    for scenario in ("streamed", "streamed_plain"):
        places = play(name)[scenario]["gateway_at"]
        assert (places[0], places[-1]) == (0, -1)


@pytest.mark.parametrize("name", OPENAI_PYTHON)
def test_unknown_fields_reach_the_upstream(play: Play, behind: Behind, name: str) -> None:
    client = play(name)
    client["extra_fields"]
    (seen,) = behind.asked(client.tag("extra_fields"))
    wanted = {"seed": 7, "top_k": 11, "chat_template_kwargs": {"enable_thinking": False}}
    assert {key: seen.body.get(key) for key in wanted} == wanted


@pytest.mark.parametrize("name", OPENAI_PYTHON)
def test_reasoning_arrives_beside_the_text(play: Play, behind: Behind, name: str) -> None:
    client = play(name)
    facts = client["reasoning"]
    assert facts["whole"] == behind.said(client.tag("reasoning"))
    assert facts["streamed"] == behind.said(client.tag("reasoning.stream"))
    assert facts["finish"] == "length"


@pytest.mark.parametrize("name", OPENAI_PYTHON)
def test_a_conversation_with_a_tool_ends_in_words(play: Play, behind: Behind, name: str) -> None:
    client = play(name)
    check_answer(client["tools_answered"], behind, client.tag("tools_answered"))


@pytest.mark.parametrize("name", [*OPENAI_PYTHON, "openai_node"])
def test_models_are_listed_and_found(play: Play, name: str) -> None:
    facts = play(name)["models"]
    assert facts["ids"][:4] == ["creative", "balanced", "fast", "auto"]
    assert set(MODES.values()) <= set(facts["ids"])
    assert (facts["one"], facts["owner"]) == ("creative", "gateway")
    assert (facts["unknown"]["error"], facts["unknown"]["code"]) == (
        "NotFoundError",
        "model_not_found",
    )
