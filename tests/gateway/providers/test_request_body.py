"""The same call, written down for each kind of backend."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import ErrorKind, UpstreamRejected
from gateway.generation import Message
from gateway.providers import qwen
from gateway.providers.base import Call
from gateway.providers.capabilities import KINDS, Continuation, capabilities
from gateway.providers.repairs import Lessons
from gateway.providers.request_body import Accent, Speaker

USER: Message = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def body(
    kind: str,
    *messages: Message,
    model: str = "qwen3",
    stream: bool = True,
    thinking: bool | None = None,
    prefix: str = "",
    lessons: Lessons | None = None,
    **params: Any,
) -> dict[str, Any]:
    call = Call(list(messages) or [USER], params, thinking=thinking, prefix=prefix)
    before = copy.deepcopy(call)
    accent = Accent(capabilities(kind), model, lessons or Lessons())
    written = accent.body(call, stream=stream)
    assert call == before, "the call is another mode's too"
    return written


@pytest.mark.parametrize("kind", KINDS)
def test_what_every_backend_gets(kind: str) -> None:
    written = body(kind, temperature=0.5, seed=7)
    assert written["messages"] == [USER]
    assert written["model"] == "qwen3"
    assert written["stream"] is True
    assert (written["temperature"], written["seed"]) == (0.5, 7)
    assert "model" not in body(kind, model="")


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"transformers"}))
def test_a_callers_fields_pass_untouched(kind: str) -> None:
    fields: dict[str, Any] = {
        "tools": [TOOL],
        "tool_choice": "auto",
        "response_format": {"type": "json_schema", "json_schema": {"name": "x"}},
        "logprobs": True,
        "top_logprobs": 2,
        "n": 2,
        "brand_new_field": {"a": [1]},
    }
    written = body(kind, **fields)
    assert {name: written[name] for name in fields} == fields


def test_usage_is_asked_for_where_that_is_understood() -> None:
    assert body("vllm")["stream_options"] == {"include_usage": True}
    theirs = {"include_usage": False, "other": 1}
    assert body("vllm", stream_options=theirs)["stream_options"] == {
        "include_usage": True,
        "other": 1,
    }
    assert "stream_options" not in body("transformers")
    assert "stream_options" not in body("openai", stream=False, stream_options={"a": 1})


def test_fields_are_renamed_dropped_and_brought_into_range() -> None:
    assert body("llama_cpp", repetition_penalty=1.1)["repeat_penalty"] == 1.1
    ollama = body("ollama", top_k=20, min_p=0.1, repetition_penalty=1.1, top_p=0.9)
    assert not {"top_k", "min_p", "repetition_penalty"} & ollama.keys()
    assert ollama["top_p"] == 0.9
    dashscope = body("dashscope", temperature=2.0, top_p=0, n=9, seed=-1, min_p=0.1, top_k=20)
    assert 1.9 < dashscope["temperature"] < 2
    assert 0 < dashscope["top_p"] < 0.01
    assert (dashscope["n"], dashscope["seed"], dashscope["top_k"]) == (4, 0, 20)
    assert "min_p" not in dashscope
    assert body("vllm", temperature=2.0)["temperature"] == 2.0
    assert body("dashscope", temperature="hot")["temperature"] == "hot"


def test_transformers_gets_no_field_it_would_refuse_but_every_promise_asked_for() -> None:
    written = body(
        "transformers",
        top_k=20,
        presence_penalty=1,
        user="u",
        max_completion_tokens=9,
        response_format={"type": "json_object"},
    )
    assert written.keys() == {"messages", "model", "stream", "max_tokens", "response_format"}


def test_the_length_is_capped_once_in_the_field_the_backend_knows() -> None:
    """`max_tokens` is the profile's, `max_completion_tokens` the caller's."""
    both: dict[str, Any] = {"max_tokens": 1024, "max_completion_tokens": 50}
    assert body("vllm", **both)["max_tokens"] == 50
    assert "max_completion_tokens" not in body("vllm", **both)
    openai = body("openai", **both)
    assert openai["max_completion_tokens"] == 50
    assert "max_tokens" not in openai
    assert body("openai", max_tokens=7)["max_tokens"] == 7
    capped = Lessons(max_tokens=100)
    assert body("dashscope", lessons=capped, max_tokens=1024)["max_tokens"] == 100
    assert body("dashscope", lessons=capped, max_completion_tokens=1024)["max_tokens"] == 100
    assert body("dashscope", lessons=capped, max_tokens=64)["max_tokens"] == 64
    refused = Lessons(refused=frozenset({"max_tokens"}))
    moved = body("openai", lessons=refused, max_tokens=64)
    assert moved["max_completion_tokens"] == 64
    assert "max_tokens" not in moved


@pytest.mark.parametrize(
    ("kind", "model", "on", "off"),
    [
        ("dashscope", "qwen3.7-plus", {"enable_thinking": True}, {"enable_thinking": False}),
        ("dashscope", "qwen3.8-max", {"reasoning_effort": "medium"}, {"reasoning_effort": "none"}),
        ("dashscope", "qwq-plus", {}, {}),
        ("dashscope", "qwen3-coder-plus", {}, {}),
        ("dashscope", "deepseek-v4", {}, {}),
        (
            "vllm",
            "qwen3",
            {"chat_template_kwargs": {"enable_thinking": True}},
            {"chat_template_kwargs": {"enable_thinking": False}},
        ),
        ("lmdeploy", "qwen3", {"enable_thinking": True}, {"enable_thinking": False}),
        ("ollama", "qwen3", {"reasoning_effort": "medium"}, {"reasoning_effort": "none"}),
        ("tgi", "qwen3", {}, {}),
        ("transformers", "qwen3", {}, {}),
        ("openai", "gpt-9", {}, {}),
    ],
)
def test_reasoning_is_switched_each_backends_own_way(
    kind: str, model: str, on: dict[str, Any], off: dict[str, Any]
) -> None:
    plain = body(kind, model=model).keys()
    for thinking, expected in ((True, on), (False, off)):
        written = body(kind, model=model, thinking=thinking)
        assert {name: written[name] for name in written.keys() - plain} == expected


def test_reasoning_budgets_are_translated_or_left_out() -> None:
    def budget(kind: str, model: str = "qwen3", thinking: bool = True) -> dict[str, Any]:
        written = body(kind, model=model, thinking=thinking, thinking_budget=8192)
        return {name: value for name, value in written.items() if "budget" in name}

    assert budget("dashscope", "qwen3.7-plus") == {"thinking_budget": 8192}
    assert budget("dashscope", "qwen3.8-max") == {}, "refused beside an effort"
    assert budget("dashscope", "deepseek-v4") == {}
    assert budget("vllm") == {"thinking_token_budget": 8192}
    assert budget("vllm", thinking=False) == {}
    assert budget("sglang") == budget("llama_cpp") == budget("ollama") == {}
    deep = body("dashscope", model="qwen3.8-max", thinking=True, thinking_budget=32_768)
    assert deep["reasoning_effort"] == "xhigh"


def test_the_callers_own_wish_goes_before_the_modes_on_any_backend() -> None:
    assert body("vllm", thinking=False, enable_thinking=True)["chat_template_kwargs"] == {
        "enable_thinking": True
    }
    assert "enable_thinking" not in body("vllm", thinking=False, enable_thinking=True)
    written = body("sglang", thinking=False, reasoning_effort="low")
    assert written["reasoning_effort"] == "low"
    assert written["chat_template_kwargs"] == {"enable_thinking": True}
    kwargs = {"enable_thinking": False, "other": 1}
    assert (
        body("vllm", thinking=True, chat_template_kwargs=kwargs)["chat_template_kwargs"] == kwargs
    )
    max_ = body("dashscope", model="qwen3.8-max", thinking=False, reasoning_effort="high")
    assert max_["reasoning_effort"] == "high"
    openai = body("openai", reasoning_effort="low", enable_thinking=True, thinking=False)
    assert (openai["reasoning_effort"], openai["enable_thinking"]) == ("low", True)


@pytest.mark.parametrize(
    "promise",
    [
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        {"tools": [TOOL], "tool_choice": "required"},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
    ],
)
def test_dashscope_does_not_think_where_that_would_be_refused(promise: dict[str, Any]) -> None:
    written = body("dashscope", model="qwen3.7-plus", thinking=True, **promise)
    assert written["enable_thinking"] is False
    assert {name: written[name] for name in promise} == promise
    relaxed: dict[str, Any] = {
        "response_format": {"type": "text"},
        "tools": [TOOL],
        "tool_choice": "auto",
    }
    assert body("dashscope", model="qwen3.7-plus", thinking=True, **relaxed)["enable_thinking"]


def test_a_model_that_always_thinks_is_not_asked_to_stop() -> None:
    stubborn = Lessons(always_thinks=True)
    asked: list[dict[str, Any]] = [{}, {"enable_thinking": False}]
    for params in asked:
        written = body("dashscope", model="qwen3-x", thinking=False, lessons=stubborn, **params)
        assert "enable_thinking" not in written


SYSTEM: Message = {"role": "system", "content": "Be kind."}
DEVELOPER: Message = {"role": "developer", "content": "Be brief."}


def test_qwens_template_gets_one_system_message_in_front() -> None:
    expected = [{"role": "system", "content": "Be kind.\n\nBe brief."}, USER]
    assert body("vllm", SYSTEM, USER, DEVELOPER)["messages"] == expected
    assert body("dashscope", SYSTEM, DEVELOPER, USER, model="x")["messages"] == expected
    late = body("llama_cpp", USER, SYSTEM, model="Qwen/Qwen3.5-9B")["messages"]
    assert late == [SYSTEM, USER]
    parts: Message = {"role": "system", "content": [{"type": "text", "text": "Parts."}]}
    merged = body("vllm", parts, USER, SYSTEM)["messages"][0]["content"]
    assert merged == [{"type": "text", "text": "Parts."}, {"type": "text", "text": "Be kind."}]


def test_other_models_keep_their_system_messages_where_they_are() -> None:
    messages = body("llama_cpp", SYSTEM, USER, DEVELOPER, model="smollm2")["messages"]
    assert messages == [SYSTEM, USER, {"role": "system", "content": "Be brief."}]
    assert body("openai", SYSTEM, DEVELOPER, USER, model="gpt-9")["messages"][1] == DEVELOPER


def test_past_reasoning_goes_by_the_name_it_has_there() -> None:
    ours: Message = {"role": "assistant", "content": "x", "reasoning_content": "hm"}
    theirs: Message = {"role": "assistant", "content": "x", "reasoning": "hm"}
    for kind, expected in (("vllm", theirs), ("ollama", theirs), ("sglang", ours)):
        for given_message in (ours, theirs):
            assert body(kind, USER, given_message, USER)["messages"][1] == expected


def test_untouched_messages_are_not_copied() -> None:
    call = Call([SYSTEM, USER], {})
    assert Accent(capabilities("vllm"), "qwen3").body(call, stream=True)["messages"] is (
        call.messages
    )


def test_an_interrupted_text_is_continued_each_backends_own_way() -> None:
    begun: Message = {"role": "assistant", "content": "Once upon"}
    for kind in ("vllm", "sglang"):
        written = body(kind, prefix="Once upon", thinking=True)
        assert written["messages"] == [USER, begun]
        assert written["continue_final_message"] is True
        assert written["add_generation_prompt"] is False
        assert written["chat_template_kwargs"]["enable_thinking"] is False
    dashscope = body("dashscope", prefix="Once upon", model="qwen3.7-plus", thinking=True)
    assert dashscope["messages"][-1] == {**begun, "partial": True}
    assert dashscope["enable_thinking"] is False
    llama = body("llama_cpp", prefix="Once upon")
    assert llama["messages"][-1] == begun
    assert "continue_final_message" not in llama
    assert llama["chat_template_kwargs"] == {"enable_thinking": False}
    opened: Message = {"role": "assistant", "content": "Once "}
    assert body("vllm", USER, opened, prefix="upon")["messages"] == [USER, begun]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.sampled_from(["qwen3.8-max", "qwen3.7-plus", "qwq-plus", "smollm2", ""]),
    st.sampled_from([None, True, False]),
    st.sampled_from(sorted(qwen.PROFILES)),
    st.booleans(),
    st.booleans(),
)
def test_every_profile_can_be_sent_to_every_backend(
    kind: str, model: str, thinking: bool | None, profile: str, stream: bool, prefix: bool
) -> None:
    row = capabilities(kind)
    text = "begun" if prefix and row.continuation is not Continuation.NONE else ""
    sampling = dict(qwen.PROFILES[profile]["sampling"])
    written = body(kind, model=model, thinking=thinking, prefix=text, stream=stream, **sampling)
    assert not row.dropped & written.keys()
    assert row.accepted is None or written.keys() <= row.accepted
    for name, limits in row.ranges.items():
        if name in written:
            assert limits.low <= written[name] <= limits.high
    assert not {"reasoning_effort", "thinking_budget"} <= written.keys()


def refusal(message: str, kind: ErrorKind = ErrorKind.REQUEST) -> UpstreamRejected:
    return UpstreamRejected(f"t answered 400: {message}", kind=kind, status=400)


class Refusing:
    """Refuses as long as a field is in the body; counts how often it is asked."""

    def __init__(self, field: str, message: str) -> None:
        self.field, self.message, self.asked = field, message, 0

    async def __call__(self, call: Call, accent: Accent) -> dict[str, Any]:
        self.asked += 1
        written = accent.body(call, stream=accent.lessons.stream_only)
        if self.field in written:
            raise refusal(self.message)
        return written


async def test_a_lesson_is_learnt_once_and_kept() -> None:
    speaker = Speaker(Accent(capabilities("openai"), "gpt-9"))
    server = Refusing("top_k", "Unrecognized request argument supplied: top_k")
    call = Call([USER], {"top_k": 20, "temperature": 1})
    assert (await speaker.ask(server, call))["temperature"] == 1
    assert server.asked == 2
    assert "top_k" not in await speaker.ask(server, call)
    assert server.asked == 3


async def test_two_limits_are_learnt_in_one_call() -> None:
    speaker = Speaker(Accent(capabilities("openai"), "gpt-9"))
    limits = {"top_k": "Unknown parameter: 'top_k'.", "min_p": "Unknown parameter: 'min_p'."}

    async def server(call: Call, accent: Accent) -> dict[str, Any]:
        written = accent.body(call, stream=True)
        for field, message in limits.items():
            if field in written:
                raise refusal(message)
        return written

    assert await speaker.ask(server, Call([USER], {"top_k": 1, "min_p": 0.1}))
    assert speaker.accent.lessons.refused == {"top_k", "min_p"}


async def test_a_refusal_that_teaches_nothing_is_raised_at_once() -> None:
    speaker = Speaker(Accent(capabilities("openai"), "gpt-9"))
    server = Refusing("foo", "Unrecognized request argument supplied: foo")
    with pytest.raises(UpstreamRejected, match="foo"):
        await speaker.ask(server, Call([USER], {"foo": 1}))
    assert server.asked == 1, "a caller's own field is the caller's to hear about"


async def test_a_refusal_that_mending_does_not_help_is_raised_after_one_more_try() -> None:
    speaker = Speaker(Accent(capabilities("dashscope"), "qwen3.7-plus"))
    server = Refusing(
        "messages", "The value of the enable_thinking parameter is restricted to True"
    )
    with pytest.raises(UpstreamRejected):
        await speaker.ask(server, Call([USER], {}, thinking=False))
    assert server.asked == 2
