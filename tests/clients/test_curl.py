"""curl: the wire as it is, without a client that smooths it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import MODES, SAFETY_S, Behind, Service, running, scripted_config

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@pytest.fixture(scope="module")
def service(behind: Behind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    config = scripted_config(behind.brain.base_url, keys=False)
    with running(config, tmp_path_factory.mktemp("curl")) as service:
        yield service


def body(tag: str, *cues: str, **more: Any) -> str:
    prompt = f"Name three woody notes. [[{'; '.join([f'curl.{tag}', *cues])}]]"
    return json.dumps(
        {"model": "creative", "messages": [{"role": "user", "content": prompt}], **more}
    )


def curl(service: Service, data: str | None, path: str = "/chat/completions", *more: str) -> str:
    """Headers and body, as curl -i prints them."""
    command = ["curl", "-sSiN", "--max-time", "20", service.url + path, *more]
    if data is not None:
        command += ["--json", data]
    done = subprocess.run(command, capture_output=True, timeout=SAFETY_S, check=False)
    return done.stdout.decode()


def split(answer: str) -> tuple[int, dict[str, str], str]:
    head, _, text = answer.partition("\r\n\r\n")
    status, *lines = head.split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return int(status.split()[1]), {name.lower(): value for name, value in headers.items()}, text


def test_whole_answer(service: Service, behind: Behind) -> None:
    status, headers, text = split(curl(service, body("whole")))
    answer = json.loads(text)
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"]
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["content"] == behind.said("curl.whole")
    assert answer["model"] == MODES["creative"]


def test_stream_is_data_events_and_nothing_else(service: Service, behind: Behind) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    status, headers, text = split(curl(service, body("stream", **options)))
    assert status == 200
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    events = text.split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    assert events.pop() == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    for chunk in chunks:
        assert {"id", "object", "created", "model", "choices"} <= chunk.keys()
    *_, finish, usage = chunks
    assert (finish["choices"][0]["finish_reason"], finish["choices"][0]["delta"]) == ("stop", {})
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] > 0
    said = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks[:-1])
    assert said == behind.said("curl.stream")


def test_a_broken_stream_ends_in_an_error_and_without_done(service: Service) -> None:
    status, _, text = split(curl(service, body("broken", "*=cut_fin", stream=True)))
    *_, last, end = text.split("\n\n")
    assert (status, end) == (200, "")
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (error["code"], error["type"]) == ("stream_interrupted", "server_error")
    assert "[DONE]" not in text
    assert '"finish_reason":"' not in text


def test_head_and_unknown_path_and_method(service: Service) -> None:
    assert split(curl(service, None, "/models"))[0] == 200
    assert split(curl(service, None, "/nothing"))[0] == 404
    status, headers, text = split(curl(service, None, "/chat/completions"))
    assert (status, headers["allow"]) == (405, "POST")
    assert json.loads(text)["error"]["code"] == "method_not_allowed"


def test_broken_json_is_the_callers_fault(service: Service) -> None:
    status, _, text = split(curl(service, '{"model": "creative", "messages": ['))
    assert status == 400
    assert json.loads(text)["error"]["type"] == "invalid_request_error"


def test_ctrl_c_frees_the_upstream_within_a_second(service: Service, behind: Behind) -> None:
    command = ["curl", "-sN", service.url + "/chat/completions", "--json"]
    asking = subprocess.Popen(
        [*command, body("left", "*=forever", stream=True)], stdout=subprocess.PIPE
    )
    assert asking.stdout is not None
    assert asking.stdout.readline().startswith(b"data: ")
    asking.kill()
    asking.wait(SAFETY_S)
    left_at = time.time()
    asking.stdout.close()
    assert behind.hung_up_at("curl.left") - left_at < 1.0


def test_the_curl_line_of_an_upload_from_a_file(
    service: Service, behind: Behind, tmp_path: Path
) -> None:
    """A long body: curl asks for `100 Continue` before it sends one over a megabyte."""
    file = tmp_path / "body.json"
    prompt = "wood " * 300_000 + "[[curl.upload]]"
    file.write_text(
        json.dumps({"model": "creative", "messages": [{"role": "user", "content": prompt}]})
    )
    answer = curl(service, f"@{file}")
    final = answer.rpartition("HTTP/1.1 200 OK")[2]
    assert json.loads(final.partition("\r\n\r\n")[2])["choices"][0]["finish_reason"] == "stop"
    assert len(behind.asked("curl.upload")) == 1
