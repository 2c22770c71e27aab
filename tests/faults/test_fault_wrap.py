"""The ladder over clients that exist: the real openai package, functions, DashScope's shape.

The same truths as over our own wire: whole answers or honest errors, never a cut one for whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest
from lab import Lab

from gateway import Gateway
from gateway.errors import (
    AllModesFailed,
    ConfigError,
    ErrorKind,
    StreamInterrupted,
    UpstreamRejected,
)
from gateway.simulator.scripted import FAULTS

KEY = "sk-never-shown"
MODELS = {"creative": "creative", "balanced": "balanced"}
SDKS = pytest.mark.parametrize("sdk", [openai.AsyncOpenAI, openai.OpenAI])


def client_of(sdk: type[Any], url: str) -> Any:
    """A client of the package. Not to verify saves it the loading of certificates, each time."""
    http = httpx.AsyncClient if sdk is openai.AsyncOpenAI else httpx.Client
    return sdk(base_url=url, api_key=KEY, http_client=http(verify=False))


@asynccontextmanager
async def wrapped(lab: Lab, sdk: type[Any], **config: Any) -> AsyncIterator[Gateway]:
    """Creative and balanced, each behind a client of the openai package."""
    servers = {"creative": lab.primary, "balanced": lab.standby}
    clients = {mode: sdk(base_url=server.base_url, api_key=KEY) for mode, server in servers.items()}
    gateway = Gateway.wrap(
        clients, model=MODELS, config=config, clock=lab.clock, listeners=[lab.events.append]
    )
    try:
        yield lab.adopt(gateway)
        await lab.check_at_rest()
        await gateway.aclose()
    finally:
        for client in clients.values():
            closing = client.close()
            if closing is not None:
                await closing


@SDKS
async def test_each_mode_has_a_client_a_model_and_its_own_sampling(
    lab: Lab, sdk: type[Any]
) -> None:
    async with wrapped(lab, sdk):
        assert (await lab.ask()).mode == "creative"
        assert (await lab.hear(mode="balanced")).error is None
        creative, balanced = (
            lab.server(mode).stats(mode).bodies[-1] for mode in ("creative", "balanced")
        )
        assert (creative["model"], balanced["model"]) == ("creative", "balanced")
        assert creative["stream"] and balanced["stream"]
        assert creative["temperature"] > balanced["temperature"]


@SDKS
async def test_one_client_serves_every_mode(lab: Lab, sdk: type[Any]) -> None:
    client = client_of(sdk, lab.primary.base_url)
    gateway = lab.adopt(
        Gateway.wrap(client, model="creative", config={"cache": {"enabled": False}})
    )
    assert gateway.modes == ["creative", "balanced", "fast"]
    for mode in gateway.modes:
        answer = await gateway.generate("hello", mode)
        assert (answer.mode, answer.text) == (mode, lab.says("creative", "hello"))
    temperatures = [body["temperature"] for body in lab.primary.stats("creative").bodies]
    assert temperatures[0] > temperatures[1]
    await gateway.aclose()
    closing = client.close()
    if closing is not None:
        await closing


def test_models_are_told_or_asked_for() -> None:
    client = client_of(openai.OpenAI, "http://127.0.0.1:1/v1")
    with pytest.raises(ConfigError, match="pass model="):
        Gateway.wrap(client)
    with pytest.raises(ConfigError, match="no client for slow"):
        Gateway.wrap({"creative": client}, model={"creative": "a", "slow": "b"})
    gateway = Gateway.wrap(client, model={"best": "qwen3-max", "good": "qwen-plus"})
    assert gateway.modes == ["best", "good"]
    assert [mode["targets"][0]["model"] for mode in gateway.status()["modes"].values()] == [
        "qwen3-max",
        "qwen-plus",
    ]
    client.close()


WALKS = {
    "500": 2,
    "504_html": 1,
    "reset": 2,
    "close": 2,
    "429_burst": 1,
    "503_loading": 1,
    "401": 1,
    "404_vllm": 1,
    "402": 1,
    "error_in_200": 1,
    "error_after_role": 1,
    "cut_after_role": 1,
    "empty": 1,
    "html": 1,
    "cut_fin": 1,
    "cut_rst": 1,
    "cut_clean": 1,
    "cut_mid_event": 1,
    "error_mid_stream": 1,
    "error_finish": 1,
    "malformed_event": 1,
    "dashscope_error_event": 1,
}


@SDKS
@pytest.mark.parametrize("fault", WALKS)
async def test_whoever_wants_one_piece_gets_a_whole_one(
    lab: Lab, sdk: type[Any], fault: str
) -> None:
    async with wrapped(lab, sdk):
        lab.script("creative", fault)
        answer = await lab.ask()
        assert (answer.mode, answer.finish_reason) == ("balanced", "stop")
        assert lab.requests() == WALKS[fault], "the package's own retries are off"
        counts = FAULTS[fault].kind in IGNORED
        assert {a.outcome for a in lab.attempts()} == {"ignored" if counts else "failure"}
        assert lab.cached_entries() == 1
        assert KEY not in repr(lab.events)


IGNORED = {
    ErrorKind.BURST,
    ErrorKind.LOADING,
    ErrorKind.AUTH,
    ErrorKind.MODEL,
    ErrorKind.BILLING,
}


@SDKS
@pytest.mark.parametrize("fault", [fault for fault in WALKS if FAULTS[fault].tokens])
async def test_a_stream_that_breaks_says_so_and_shows_no_more_than_came(
    lab: Lab, sdk: type[Any], fault: str
) -> None:
    async with wrapped(lab, sdk):
        lab.script("creative", fault)
        prompt = lab.prompt()
        heard = await lab.hear(prompt)
        assert isinstance(heard.error, StreamInterrupted)
        assert heard.error.partial == heard.text
        assert lab.says("creative", prompt).startswith(heard.text)
        assert len(heard.text.split()) == FAULTS[fault].tokens
        assert lab.cached_entries() == 0
        assert [attempt.outcome for attempt in lab.attempts()] == ["failure"]


@SDKS
@pytest.mark.parametrize("fault", ["400_content_openai", "422_fastapi"])
async def test_the_callers_own_mistake_is_raised_at_once(
    lab: Lab, sdk: type[Any], fault: str
) -> None:
    async with wrapped(lab, sdk):
        lab.script("creative", fault)
        with pytest.raises(UpstreamRejected) as caught:
            await lab.ask()
        assert caught.value.kind is FAULTS[fault].kind
        assert caught.value.status == FAULTS[fault].status
        assert (lab.requests("creative"), lab.requests("balanced")) == (1, 0)


@SDKS
async def test_three_failures_open_the_circuit_of_a_client(lab: Lab, sdk: type[Any]) -> None:
    async with wrapped(lab, sdk):
        await lab.fail(3, "cut_after_role")
        assert lab.phase() == "open"
        assert (await lab.ask()).reason == "circuit_open"
        assert lab.requests() == 3
        lab.script("creative", "ok")
        lab.clock.skip(300.0)
        assert (await lab.ask()).mode == "creative"


async def test_silence_of_a_client_leaves_balanced_its_share(lab: Lab) -> None:
    async with wrapped(lab, openai.AsyncOpenAI):
        lab.script("creative", "silent")
        assert (await lab.ask(deadline=1.0)).mode == "balanced"
        await lab.until_hung_up()


@pytest.mark.parametrize("play", ["silent", "headers_then_silence", "one_token_then_stall"])
@pytest.mark.parametrize("caller", ["whole", "stream"])
async def test_a_caller_who_goes_closes_the_clients_connection(
    lab: Lab, caller: str, play: str
) -> None:
    async with wrapped(lab, openai.AsyncOpenAI):
        lab.script("creative", [play, "ok"])
        call: Any = lab.ask() if caller == "whole" else lab.hear()
        asking = asyncio.create_task(call)
        await lab.until_asked()
        asking.cancel()
        await asyncio.wait([asking])
        await lab.until_hung_up()
        assert (await lab.ask()).mode == "creative"


async def test_a_blocking_client_lets_go_at_its_next_token(lab: Lab) -> None:
    async with wrapped(lab, openai.OpenAI):
        lab.primary.pace_s = 0.05
        lab.script("creative", ["drip", "ok"])
        async with lab.reading() as stream:
            await anext(aiter(stream))
        await lab.until_hung_up()
        assert (await lab.ask()).mode == "creative"


# The package on both sides: in front, through `gateway.transport()`, before failing upstreams.


@asynccontextmanager
async def in_front(lab: Lab) -> AsyncIterator[openai.AsyncOpenAI]:
    http = httpx.AsyncClient(transport=lab.gateway.transport())
    async with openai.AsyncOpenAI(
        http_client=http, base_url="http://gateway/v1", api_key="unused", max_retries=0
    ) as client:
        yield client


def question(lab: Lab) -> list[Any]:
    return [{"role": "user", "content": lab.prompt()}]


async def test_a_package_in_front_gets_whole_answers_or_its_own_errors(lab: Lab) -> None:
    lab.start()
    async with in_front(lab) as client:
        create = client.chat.completions.create
        lab.script("creative", "cut_fin")
        whole = await create(model="creative", messages=question(lab))
        assert (whole.model, whole.choices[0].finish_reason) == ("balanced", "stop")

        seen = []
        with pytest.raises(openai.APIError) as caught:
            async for chunk in await create(model="creative", messages=question(lab), stream=True):
                seen += [choice.delta.content or "" for choice in chunk.choices]
                assert not any(choice.finish_reason for choice in chunk.choices)
        assert len("".join(seen).split()) == 3
        assert caught.value.code == "stream_interrupted"

        lab.script("creative", "400_content_openai")
        with pytest.raises(openai.BadRequestError) as refusal:
            await create(model="creative", messages=question(lab))
        assert refusal.value.code == "content_filter"

        for server in (lab.primary, lab.standby):
            await server.refuse()
        with pytest.raises(openai.InternalServerError) as down:
            await create(model="creative", messages=question(lab), stream=True)
        assert (down.value.status_code, down.value.code) == (503, AllModesFailed.code)


async def test_a_package_in_front_that_hangs_up_frees_everything(lab: Lab) -> None:
    lab.start(each={"max_in_flight": 1})
    async with in_front(lab) as client:
        create = client.chat.completions.create
        lab.script("creative", "one_token_then_stall")
        stream = await create(model="creative", messages=question(lab), stream=True)
        await anext(aiter(stream))
        await stream.close()
        await lab.until_hung_up()
        lab.script("creative", "silent")
        asking = asyncio.create_task(create(model="creative", messages=question(lab)))
        await lab.until_asked(times=2)
        asking.cancel()
        await asyncio.wait([asking])
        await lab.until_hung_up(times=2)
        lab.script("creative", "ok")
        whole = await create(model="creative", messages=question(lab))
        assert whole.model == "creative"
