"""The ladder over functions, and over clients of DashScope's shape."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from lab import Lab

from gateway import Gateway
from gateway.errors import ErrorKind, StreamInterrupted, UpstreamRejected

# Functions.


async def test_a_blocking_function_that_hangs_or_fails(lab: Lab) -> None:
    release = threading.Event()
    broken: list[Any] = []

    def creative(prompt: str) -> Any:
        if not broken:
            return f"creative on {prompt}"
        how = broken[0]
        if how == "hangs":
            release.wait(10)
        if isinstance(how, BaseException):
            raise how
        return how

    def balanced(prompt: str) -> str:
        return f"balanced on {prompt}"

    gateway = lab.adopt(
        Gateway.wrap(
            {"creative": creative, "balanced": balanced},
            clock=lab.clock,
            listeners=[lab.events.append],
            config={"circuit": {"failure_threshold": 100, "failure_ratio": 0.0}},
        )
    )
    assert (await gateway.generate("cedar")).text == "creative on cedar"
    answers = await asyncio.gather(*(gateway.generate(f"note {n}") for n in range(20)))
    assert [answer.text for answer in answers] == [f"creative on note {n}" for n in range(20)]

    expected = [
        (TimeoutError("too slow"), ErrorKind.TIMEOUT),
        (ConnectionError("no route"), ErrorKind.CONNECT),
        (RuntimeError("bug"), ErrorKind.SERVER),
        (SystemExit(1), ErrorKind.SERVER),
        ("", ErrorKind.EMPTY),
        (None, ErrorKind.MALFORMED),
        (42, ErrorKind.MALFORMED),
        ("hangs", ErrorKind.TIMEOUT),
    ]
    for how, kind in expected:
        broken[:] = [how]
        answer = await gateway.generate(f"{how!r}", deadline=1.0)
        assert (answer.mode, answer.text) == ("balanced", f"balanced on {how!r}")
        assert lab.attempts()[-1].kind == kind
    release.set()


async def test_a_function_that_breaks_in_mid_stream(lab: Lab) -> None:
    async def creative(prompt: str) -> AsyncIterator[str]:
        yield "Ce"
        yield "dar"
        raise ConnectionResetError("cut")

    lab.adopt(
        Gateway.wrap({"creative": creative, "balanced": lambda prompt: "oak"}, clock=lab.clock)
    )
    heard = await lab.hear()
    assert isinstance(heard.error, StreamInterrupted)
    assert (heard.error.partial, heard.text) == ("Cedar", "Cedar")
    answer = await lab.gateway.generate(lab.prompt())
    assert (answer.mode, answer.text) == ("balanced", "oak")


# DashScope's own client, by its shape.


def said(text: str, finish: str = "null") -> SimpleNamespace:
    message = SimpleNamespace(role="assistant", content=text)
    output = SimpleNamespace(choices=[SimpleNamespace(message=message, finish_reason=finish)])
    usage = {"input_tokens": 3, "output_tokens": 2}
    return SimpleNamespace(
        status_code=200, code="", message="", request_id="r1", output=output, usage=usage
    )


def refused(status: int, code: str) -> SimpleNamespace:
    return SimpleNamespace(
        status_code=status, code=code, message=code, request_id="r1", output=None, usage=None
    )


GOOD = [said("Ce"), said("dar"), said("", "stop")]


class Generation:
    """What `dashscope.Generation` looks like from outside."""

    responses: list[Any]

    def __init__(self, responses: list[Any]) -> None:
        self.responses = responses
        self.asked: list[dict[str, Any]] = []

    def call(self, **asked: Any) -> Iterator[Any]:
        self.asked.append(asked)
        return iter(self.responses)


class AioGeneration(Generation):
    """And `dashscope.AioGeneration`."""

    async def call(self, **asked: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        self.asked.append(asked)

        async def answer() -> AsyncIterator[Any]:
            for response in self.responses:
                yield response

        return answer()


SHAPES = pytest.mark.parametrize("shape", [Generation, AioGeneration])


@SHAPES
async def test_dashscopes_shape_answers(lab: Lab, shape: type[Generation]) -> None:
    client = shape(GOOD)
    lab.adopt(Gateway.wrap(client, model="qwen-plus", clock=lab.clock))
    answer = await lab.gateway.generate(lab.prompt())
    assert (answer.text, answer.finish_reason, answer.mode) == ("Cedar", "stop", "creative")
    assert answer.usage.total_tokens == 5
    asked = client.asked[-1]
    assert (asked["model"], asked["stream"], asked["incremental_output"]) == (
        "qwen-plus",
        True,
        True,
    )


@SHAPES
@pytest.mark.parametrize(
    ("responses", "kind", "outcome"),
    [
        ([refused(429, "Throttling.RateQuota")], ErrorKind.RATE, "ignored"),
        ([refused(500, "InternalError")], ErrorKind.SERVER, "failure"),
        ([refused(401, "InvalidApiKey")], ErrorKind.AUTH, "ignored"),
        ([refused(400, "Arrearage")], ErrorKind.BILLING, "ignored"),
        (GOOD[:2], ErrorKind.INTERRUPTED, "failure"),
        ([*GOOD[:2], refused(500, "InternalError")], ErrorKind.SERVER, "failure"),
        ([said("Throttling", "error_finish")], ErrorKind.SERVER, "failure"),
        ([said("", "stop")], ErrorKind.EMPTY, "failure"),
        ([], ErrorKind.EMPTY, "failure"),
    ],
)
async def test_dashscopes_shape_fails(
    lab: Lab, shape: type[Generation], responses: list[Any], kind: ErrorKind, outcome: str
) -> None:
    lab.adopt(
        Gateway.wrap(
            {"creative": shape(responses), "balanced": shape(GOOD)},
            clock=lab.clock,
            listeners=[lab.events.append],
        )
    )
    answer = await lab.gateway.generate(lab.prompt())
    assert (answer.mode, answer.text, answer.degraded) == ("balanced", "Cedar", True)
    assert (lab.kinds(), {a.outcome for a in lab.attempts()}) == ({kind}, {outcome})


@SHAPES
async def test_dashscopes_filter_is_not_walked_around(lab: Lab, shape: type[Generation]) -> None:
    filtered = shape([refused(400, "DataInspectionFailed")])
    lab.adopt(Gateway.wrap({"creative": filtered, "balanced": shape(GOOD)}, clock=lab.clock))
    with pytest.raises(UpstreamRejected) as caught:
        await lab.gateway.generate(lab.prompt())
    assert caught.value.kind is ErrorKind.CONTENT
