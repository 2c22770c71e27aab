"""Anything a caller hands in can be sent, or is an InvalidRequest that says why not."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.generation import CacheControl, GenerationRequest
from gateway.validation import MAX_PROMPT_CHARACTERS, build_request, check_messages, new_id


def build(prompt: Any = "hello", **options: Any) -> GenerationRequest:
    return build_request(prompt, **{"mode": "creative", "now": 100.0, "params": {}, **options})


def refused(**options: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as error:
        build(**options)
    assert error.value.http_status == 400
    return error.value


def test_a_string_is_one_user_message() -> None:
    request = build("hello")
    assert request.messages == [{"role": "user", "content": "hello"}]
    assert request.deadline == math.inf
    assert (request.buffered, request.started, request.cache) == (True, 100.0, CacheControl())


def test_messages_are_taken_whole_and_copied() -> None:
    messages = [
        MappingProxyType({"role": "system", "content": "be brief", "name": "x"}),
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "", "tool_call_id": "1"},
    ]
    request = build(messages)
    assert request.messages == [dict(message) for message in messages]
    messages.clear()
    assert len(request.messages) == 4


@pytest.mark.parametrize(
    ("prompt", "param", "said"),
    [
        ("", "prompt", "empty"),
        (" \n\t ", "prompt", "empty"),
        (None, "prompt", "string or a list of messages, got NoneType"),
        (7, "prompt", "got int"),
        (b"hello", "prompt", "got bytes"),
        ({"role": "user"}, "prompt", "got dict"),
        ([], "messages", "at least one"),
        (["hello"], "messages[0]", "must be a dict"),
        ([{"content": "hello"}], "messages[0].role", "no role"),
        ([{"role": "", "content": "hello"}], "messages[0].role", "no role"),
        ([{"role": 3, "content": "hello"}], "messages[0].role", "no role"),
        ([{"role": "user"}], "messages[0].content", "got NoneType"),
        ([{"role": "user", "content": 5}], "messages[0].content", "got int"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content", "list of content parts"),
        ([{"role": "user", "content": ""}], "messages", "all empty"),
        ([{"role": "user", "content": "  "}, {"role": "user", "content": []}], "messages", "empty"),
        ("x" * (MAX_PROMPT_CHARACTERS + 1), "prompt", "at most"),
        ([{"role": "user", "content": "x" * 6_000_000}] * 2, "messages", "12000000 characters"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_wrong_prompt_is_named_with_its_place(prompt: Any, param: str, said: str) -> None:
    error = refused(prompt=prompt)
    assert error.param == param
    assert said in error.message
    assert len(error.message) < 300


@pytest.mark.parametrize(
    "deadline",
    [
        0,
        -1,
        -0.0,
        math.nan,
        math.inf,
        -math.inf,
        "5",
        True,
        1e300,
        10**400,
        10**5000,
        None.__class__,
    ],
    ids=lambda value: str(type(value)),
)
def test_a_wrong_deadline(deadline: Any) -> None:
    error = refused(deadline_s=deadline)
    assert error.param == "deadline"
    assert len(error.message) < 200


def test_a_deadline_is_absolute() -> None:
    assert build(deadline_s=2.5).deadline == 102.5
    assert build(deadline_s=3).deadline == 103.0


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"params": {"model": "x"}}, "model"),
        ({"params": {"stream": True}}, "stream"),
        ({"params": {"messages": []}}, "messages"),
        ({"extra_body": {"model": "x"}}, "model"),
        ({"extra_body": [1]}, "extra_body"),
        ({"on_interrupt": "restart"}, "on_interrupt"),
        ({"on_interrupt": []}, "on_interrupt"),
        ({"tenant": None}, "tenant"),
        ({"tenant": 5}, "tenant"),
        ({"priority": "high"}, "priority"),
        ({"priority": True}, "priority"),
        ({"priority": 0.5}, "priority"),
        ({"allow_degrade": "no"}, "allow_degrade"),
        ({"cache": "no-cache"}, "cache"),
        ({"cache": None}, "cache"),
        ({"cache": CacheControl(max_age_s=-1.0)}, "cache"),
        ({"cache": CacheControl(max_age_s=math.nan)}, "cache"),
        ({"cache": CacheControl(max_age_s="5")}, "cache"),  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_every_other_argument_is_checked(options: dict[str, Any], param: str) -> None:
    assert refused(**options).param == param


def test_fields_named_like_our_arguments_go_in_extra_body() -> None:
    request = build(params={"temperature": 0.5}, extra_body={"priority": 3, "temperature": 0.9})
    assert request.params == {"temperature": 0.9, "priority": 3}
    assert request.priority == 1


def test_cache_words() -> None:
    assert build(cache=True).cache == CacheControl()
    off = build(cache=False).cache
    assert (off.read, off.store, off.stale_if_error) == (False, False, False)
    own = CacheControl(max_age_s=0)
    assert build(cache=own).cache is own


def test_ids_are_unique() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(name.startswith("gen-") for name in ids)


# -- anything at all -------------------------------------------------------------------------------

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary()
)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(
            st.sampled_from(["role", "content", "text", "type", "tool_calls"]) | scalars,
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
relaxed = settings(max_examples=300, derandomize=True, database=None, deadline=None)


@given(anything)
@relaxed
def test_any_prompt_is_taken_or_refused_in_words(prompt: Any) -> None:
    try:
        messages = check_messages(prompt)
    except InvalidRequest as error:
        assert error.param
    else:
        assert messages
        assert all(message["role"] for message in messages)


messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "assistant"]), "content": st.text(max_size=20)}
    ),
    min_size=1,
    max_size=4,
)


@given(messages)
@relaxed
def test_well_formed_messages_are_taken_unless_they_say_nothing(given_: list[Any]) -> None:
    if any(message["content"].strip() for message in given_):
        assert check_messages(given_) == given_
    else:
        with pytest.raises(InvalidRequest):
            check_messages(given_)


@given(anything, anything, anything, anything, anything, anything)
@relaxed
def test_any_arguments_are_taken_or_refused_in_words(
    deadline: Any, cache: Any, tenant: Any, priority: Any, extra_body: Any, on_interrupt: Any
) -> None:
    try:
        request = build(
            deadline_s=deadline,
            cache=cache,
            tenant=tenant,
            priority=priority,
            extra_body=extra_body,
            on_interrupt=on_interrupt,
        )
    except InvalidRequest as error:
        assert error.param
        assert len(error.message) < 300
    else:
        assert request.deadline > 100.0
        assert isinstance(request.cache, CacheControl)


@given(st.booleans(), st.booleans(), st.none() | st.floats(0, 1e9), st.booleans())
@relaxed
def test_any_cache_control_is_taken_as_it_is(
    read: bool, store: bool, max_age_s: float | None, stale: bool
) -> None:
    control = CacheControl(read=read, store=store, max_age_s=max_age_s, stale_if_error=stale)
    assert build(cache=control).cache == control
    assert msgspec.json.encode(control)


@pytest.mark.parametrize("said", [{"refusal": "I will not"}, {"audio": {"id": "audio_1"}}])
def test_what_an_assistant_said_instead_of_text_comes_back_as_it_was(said: dict[str, Any]) -> None:
    history = [{"role": "assistant", "content": None, **said}, {"role": "user", "content": "Why?"}]
    assert check_messages(history) == history


def test_a_prompt_too_long_is_named_as_it_was_given() -> None:
    long = "x" * (MAX_PROMPT_CHARACTERS + 1)
    for prompt, param in ((long, "prompt"), ([{"role": "user", "content": long}], "messages")):
        with pytest.raises(InvalidRequest) as caught:
            check_messages(prompt)
        assert caught.value.param == param
