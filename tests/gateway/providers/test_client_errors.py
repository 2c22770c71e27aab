"""What clients raise, by shape: built-in errors, httpx's, and the real openai package's."""

from __future__ import annotations

import ssl
from types import SimpleNamespace

import httpx
import openai
import pytest

from gateway.errors import ErrorKind, StreamInterrupted, UpstreamError, UpstreamTimeout
from gateway.providers.client_errors import upstream_error

REQUEST = httpx.Request("POST", "http://host/v1/chat/completions")


def meaning(error: BaseException, *, begun: bool = False) -> UpstreamError:
    found = upstream_error(error, kind="openai", target="client/m", begun=begun)
    assert found.target == "client/m"
    return found


def answered(status: int, body: object, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, json=body, headers=named, request=REQUEST)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimeoutError(), ErrorKind.TIMEOUT),
        (httpx.ReadTimeout("x"), ErrorKind.TIMEOUT),
        (openai.APITimeoutError(REQUEST), ErrorKind.TIMEOUT),
        (ConnectionRefusedError("x"), ErrorKind.CONNECT),
        (OSError("no route"), ErrorKind.CONNECT),
        (ssl.SSLError("bad certificate"), ErrorKind.CONNECT),
        (httpx.ConnectError("x"), ErrorKind.CONNECT),
        (openai.APIConnectionError(request=REQUEST), ErrorKind.CONNECT),
        (ValueError("x"), ErrorKind.SERVER),
        (KeyError("x"), ErrorKind.SERVER),
    ],
)
def test_exceptions_have_kinds(error: BaseException, kind: ErrorKind) -> None:
    assert meaning(error).kind is kind


def test_a_timeout_says_which_clock() -> None:
    connect, total = meaning(httpx.ConnectTimeout("x")), meaning(TimeoutError())
    assert isinstance(connect, UpstreamTimeout)
    assert isinstance(total, UpstreamTimeout)
    assert (connect.phase, total.phase) == ("connect", "total")


@pytest.mark.parametrize(
    "error", [httpx.RemoteProtocolError("x"), ConnectionResetError(), httpx.ReadError("x")]
)
def test_a_connection_lost_midway_is_an_interruption(error: Exception) -> None:
    assert isinstance(meaning(error, begun=True), StreamInterrupted)
    assert meaning(error).kind is ErrorKind.CONNECT


def test_openais_status_errors_are_read_like_answers() -> None:
    body = {"error": {"message": "Too fast", "code": "rate_limit_exceeded", "type": "x"}}
    response = answered(429, body, retry_after="3")
    error = meaning(openai.RateLimitError("Too fast", response=response, body=body["error"]))
    assert (error.kind, error.status, error.retry_after) == (ErrorKind.RATE, 429, 3.0)
    assert error.upstream_code == "rate_limit_exceeded"
    assert "Too fast" in str(error)

    overflow = {"message": "maximum context length is 8", "code": 400}
    response = answered(400, overflow)
    error = meaning(openai.BadRequestError("x", response=response, body=overflow))
    assert error.kind is ErrorKind.CONTEXT


def test_an_error_event_in_openais_stream_is_read_like_one() -> None:
    body = {"message": "Requests rate limit exceeded", "code": "Throttling.RateQuota"}
    assert meaning(openai.APIError("x", REQUEST, body=body)).kind is ErrorKind.RATE
    body = {"message": "engine died", "code": "500"}
    assert meaning(openai.APIError("x", REQUEST, body=body)).kind is ErrorKind.SERVER


def test_httpx_status_errors_are_read_too() -> None:
    response = answered(503, {"error": {"message": "Loading model", "code": 503}})
    error = meaning(httpx.HTTPStatusError("x", request=REQUEST, response=response))
    assert error.kind is ErrorKind.LOADING
    unread = httpx.Response(500, stream=httpx.ByteStream(b"x"), request=REQUEST)
    error = meaning(httpx.HTTPStatusError("words", request=REQUEST, response=unread))
    assert (error.kind, error.status) == (ErrorKind.SERVER, 500)


def test_any_shape_of_status_error_will_do() -> None:
    class Odd(Exception):
        status_code = 401
        response = SimpleNamespace(headers=None)
        body = "go away"

    error = meaning(Odd())
    assert (error.kind, error.status) == (ErrorKind.AUTH, 401)
    assert "go away" in str(error)


def test_our_own_errors_stay_themselves_and_no_credential_is_repeated() -> None:
    own = StreamInterrupted("x", target="client/m")
    assert meaning(own) is own
    assert "abcdef123" not in str(meaning(ValueError("bad key sk-abcdef123456")))
