"""The dashboard's routes: the page, its files, the stream of figures and the text for curl."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from importlib import resources
from typing import Any

import pytest

from gateway.config import Config
from gateway.errors import AdmissionRejected
from gateway.gateway import Gateway
from gateway.openai_api.errors import NotFound
from gateway.openai_api.router import Router
from gateway.openai_api.words import Call, Handler, Reply
from gateway.server.dashboard import Dashboard
from gateway.simulator.clock import run
from gateway.telemetry.live import Live

BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
PAGE = resources.files("gateway.server").joinpath("page")
FILES = sorted(file.name for file in PAGE.iterdir())
MODES = {
    name: {"targets": [{"kind": "simulated", "model": f"qwen-{name}"}]}
    for name in ("creative", "balanced", "fast")
}


class Stage:
    """A gateway on simulated targets and virtual time, and its dashboard."""

    def __init__(self, board: Any = None) -> None:
        clock = asyncio.get_running_loop().time
        config = Config.from_dict({"modes": MODES, "feedback": {"path": ":memory:"}})
        self.gateway = Gateway(config, clock=clock)
        self.live = Live(self.gateway.status, clock=clock, board=board)
        self.gateway.listen(self.live)
        self.dashboard = Dashboard(self.gateway, self.live)
        self._router = Router(self.dashboard.routes())

    async def get(self, path: str, method: str = "GET", **headers: str) -> Reply:
        call = Call(
            method, path, {name.replace("_", "-"): value for name, value in headers.items()}
        )
        handler: Handler = self._router.find(call)[1]
        return await handler(call)

    async def text(self) -> str:
        body = (await self.get("/", accept="*/*"))[2]
        assert isinstance(body, bytes)
        return body.decode()

    async def watch(self) -> AsyncIterator[dict[str, Any]]:
        body = (await self.get("/live"))[2]
        assert not isinstance(body, bytes)
        async for frame in body:
            assert frame.startswith(b"data: ")
            assert frame.endswith(b"\n\n")
            yield json.loads(frame[6:])


def play(scenario: Callable[[Stage], Coroutine[Any, Any, None]], board: Any = None) -> None:
    async def whole() -> None:
        stage = Stage(board)
        try:
            await scenario(stage)
        finally:
            stage.dashboard.close()
            await stage.gateway.aclose()

    run(whole)


# -- the page -------------------------------------------------------------------------------------


def test_a_browser_gets_the_page_and_nobody_may_put_anything_into_it() -> None:
    async def scenario(stage: Stage) -> None:
        status, headers, body = await stage.get("/", **BROWSER)
        named = dict(headers)
        assert status == 200
        assert named["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in named["content-security-policy"]
        assert "unsafe" not in named["content-security-policy"]
        assert named["x-content-type-options"] == "nosniff"
        assert named["referrer-policy"] == "no-referrer"
        assert isinstance(body, bytes)
        assert body.startswith(b"<!doctype html>")

    play(scenario)


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_served_and_asked_for_anew_without_being_sent_anew(name: str) -> None:
    async def scenario(stage: Stage) -> None:
        status, headers, body = await stage.get(f"/dashboard/{name}")
        named = dict(headers)
        assert (status, body) == (200, PAGE.joinpath(name).read_bytes())
        assert named["cache-control"] == "no-cache"
        again = await stage.get(f"/dashboard/{name}", if_none_match=f'"x", W/{named["etag"]}')
        assert (again[0], again[2]) == (304, b"")

    play(scenario)


@pytest.mark.parametrize("name", ["nothing.js", "../dashboard.py", "..%2fdashboard.py", "a/b"])
def test_no_other_file_is_served(name: str) -> None:
    async def scenario(stage: Stage) -> None:
        with pytest.raises(NotFound):
            await stage.get(f"/dashboard/{name}")

    play(scenario)


def test_the_page_takes_nothing_for_itself_that_is_not_its_own() -> None:
    async def scenario(stage: Stage) -> None:
        for method in ("GET", "POST"):
            with pytest.raises(NotFound):
                await stage.get("/elsewhere", method)

    play(scenario)


@pytest.mark.parametrize("name", FILES)
def test_the_files_name_no_other_host_and_hold_nothing_inline(name: str) -> None:
    text = PAGE.joinpath(name).read_text(encoding="utf-8")
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "innerHTML" not in text
    assert "eval(" not in text
    if name.endswith(".html"):
        assert not re.findall(r"\son\w+=|style=|<style|<script(?![^>]*src=)", text)
        wanted = re.findall(r'(?:src|href)="/dashboard/([^"]+)"', text)
        assert set(wanted) <= set(FILES)
    assert len(text.splitlines()) <= 300


# -- the text -------------------------------------------------------------------------------------


def test_curl_gets_a_screenful_that_says_how_it_stands() -> None:
    async def scenario(stage: Stage) -> None:
        assert "Every mode answers for itself." in await stage.text()
        assert "nothing has happened yet" in await stage.text()
        stage.gateway.force("creative", "open")
        for number in range(3):
            await stage.gateway.generate(f"prompt {number}", "creative")
        text = await stage.text()
        assert text.startswith("Creative is out, balanced answers for it.\n")
        assert re.search(r"creative +forced open +300 s .*balanced 100%", text)
        assert "3 requests, 3 answered by a lower mode, 0 failed" in text
        assert "creative was forced open by an operator; balanced answers" in text
        assert len(text.splitlines()) < 24
        assert max(map(len, text.splitlines())) <= 110

    play(scenario)


# -- the stream -----------------------------------------------------------------------------------


def test_the_stream_tells_each_second_how_it_stands() -> None:
    async def scenario(stage: Stage) -> None:
        frames = stage.watch()
        first = await anext(frames)
        assert [mode["name"] for mode in first["modes"]] == ["creative", "balanced", "fast"]
        assert first["minute"]["requests"] == 0
        assert first["budget_tokens"] == 10
        assert first["cache"]["enabled"] is True
        await stage.gateway.generate("hello", "fast")
        second = await anext(frames)
        assert second["minute"]["flow"] == {"fast": {"fast": 1}}
        await frames.aclose()

    play(scenario)


def test_an_event_comes_at_once_and_only_once_but_a_late_viewer_sees_the_whole_log() -> None:
    async def scenario(stage: Stage) -> None:
        now = asyncio.get_running_loop().time
        frames = stage.watch()
        await anext(frames)
        stage.gateway.force("creative", "open")
        began = now()
        told = await anext(frames)
        assert now() - began < 0.2
        assert [event["text"] for event in told["events"]] == [
            "creative was forced open by an operator; balanced answers"
        ]
        assert told["modes"][0]["phase"] == "forced_open"
        assert told["modes"][0]["stand_in"] == "balanced"
        assert (await anext(frames))["events"] == []
        late = stage.watch()
        assert len((await anext(late))["events"]) == 1
        for stream in (frames, late):
            await stream.aclose()

    play(scenario)


def test_a_stop_ends_the_streams_at_once_and_takes_no_more() -> None:
    async def scenario(stage: Stage) -> None:
        frames = stage.watch()
        await anext(frames)
        stage.dashboard.close()
        assert [frame async for frame in frames] == []
        assert asyncio.get_running_loop().time() == 0
        with pytest.raises(AdmissionRejected):
            await stage.get("/live")

    play(scenario)


def test_head_of_the_stream_has_no_body() -> None:
    async def scenario(stage: Stage) -> None:
        status, headers, body = await stage.get("/live", "HEAD")
        assert (status, body) == (200, b"")
        assert dict(headers)["content-type"].startswith("text/event-stream")

    play(scenario)


# -- several workers ------------------------------------------------------------------------------


class Wall:
    """A blackboard; several stages of one loop write on it under names of their own."""

    def __init__(self, worker: str, posts: dict[str, dict[str, tuple[bytes, float]]]) -> None:
        self.worker = worker
        self._posts = posts

    def put(self, worker: str, name: str, value: bytes) -> None:
        self._posts.setdefault(name, {})[worker] = (value, asyncio.get_running_loop().time())

    def all(self, name: str) -> dict[str, Any]:
        now = asyncio.get_running_loop().time()
        return {
            worker: Post(value, now - at)
            for worker, (value, at) in self._posts.get(name, {}).items()
        }


class Post:
    def __init__(self, value: bytes, age_s: float) -> None:
        self.value, self.age_s = value, age_s


def test_a_viewer_of_one_worker_sees_them_all_and_without_viewers_nothing_is_put_up() -> None:
    posts: dict[str, dict[str, tuple[bytes, float]]] = {}

    async def scenario(stage: Stage) -> None:
        other = Stage(Wall("b", posts))
        for one in (stage, other):
            one.dashboard.start()
            one.dashboard.start()
        await other.gateway.generate("hello", "fast")
        await asyncio.sleep(10)
        assert posts == {}
        frames = stage.watch()
        await anext(frames)
        await asyncio.sleep(2.5)
        latest = [await anext(frames) for _ in range(3)][-1]
        assert latest["workers"] == 2
        assert latest["minute"]["requests"] == 1
        await frames.aclose()
        other.dashboard.close()
        await other.gateway.aclose()

    play(scenario, Wall("a", posts))


def test_a_snapshot_costs_little_beside_the_second_it_is_for() -> None:
    async def scenario(stage: Stage) -> None:
        for number in range(50):
            await stage.gateway.generate(f"prompt {number}", "fast")
        began = time.perf_counter()
        for _ in range(10):
            await stage.text()
        assert (time.perf_counter() - began) / 10 < 0.05

    play(scenario)
