"""Web pages of other origins: which of them may call, and what they are told."""

from __future__ import annotations

import pytest

from gateway.openai_api.words import Call
from gateway.server.cors import CORS

HERE = "https://app.example"


def asked(origin: str | None = HERE, method: str = "POST", **headers: str) -> Call:
    named = {} if origin is None else {"origin": origin}
    question = {"access-control-request-method": method} if method else {}
    return Call("OPTIONS", "/chat/completions", {**named, **question, **headers})


def test_a_page_that_may_is_told_what_it_may() -> None:
    call = asked(**{"access-control-request-headers": "authorization, x-mine"})
    reply = CORS([HERE]).preflight(call)
    assert reply is not None
    status, headers, body = reply
    told = dict(headers)
    assert (status, body) == (200, b"OK")
    assert told["access-control-allow-origin"] == HERE
    assert told["access-control-allow-methods"] == "GET, POST"
    assert told["access-control-allow-headers"] == "authorization, x-mine"
    assert told["vary"] == "Origin"  # or a cache would hand one page's leave to another


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (asked("https://evil.example"), b"Disallowed CORS origin"),
        (asked(method="DELETE"), b"Disallowed CORS method"),
        (asked("null", "PUT"), b"Disallowed CORS origin, method"),
    ],
)
def test_one_that_may_not_is_told_why(call: Call, why: bytes) -> None:
    reply = CORS([HERE]).preflight(call)
    assert reply is not None
    assert (reply[0], reply[2]) == (400, why)
    assert ("access-control-allow-origin" in dict(reply[1])) is (call.headers["origin"] == HERE)


def test_what_is_no_question_of_a_browsers_goes_its_way() -> None:
    cors = CORS([HERE])
    assert cors.preflight(asked(method="")) is None
    assert cors.preflight(asked(None)) is None
    assert cors.preflight(Call("POST", "/x", asked().headers)) is None


def test_an_answer_says_who_may_read_it() -> None:
    cors = CORS([HERE])
    assert cors.headers(asked(None)) == []
    assert dict(cors.headers(asked()))["access-control-allow-origin"] == HERE
    assert "access-control-allow-origin" not in dict(cors.headers(asked("https://evil.example")))
    assert dict(CORS(["*"]).headers(asked("https://any")))["access-control-allow-origin"] == "*"
