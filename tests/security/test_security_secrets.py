"""Nothing secret gets out: canaries in every place a secret may lie, and a look at everything the
process says and writes, under load and under faults.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from gateway.policies.keys import key_hash
from gateway.simulator.scripted import Exchange, ScriptedUpstream
from tests.server.live import Live, chat, post

# No prefix that a pattern would know: only knowing the very secret can hide it.
UPSTREAM_KEY = "canaryUpstreamKey81723"
HEADER = "canaryTargetHeader99120"
QUERY = "canaryBaseUrlQuery55231"
ALICE = "canaryAliceKey10293"
ADMIN = "canaryAdminKey77461"
WRONG = "canaryWrongKey38112"
PROMPT = "canaryPromptText40718"
ANSWER = "canaryAnswerText61523"
OTHERS = {
    "authorization": "Basic canaryBasicAuth72613",
    "cookie": "session=canaryCookie83321",
    "x-custom": "canaryCustomHeader12873",
}
ASKED = "canaryAskedQuery51239"

CONFIG = f"""
[modes.creative]
[[modes.creative.targets]]
kind = "vllm"
base_url = "{{url}}"
model = "tells"
api_key_env = "CANARY_KEY"
headers = {{{{ x-extra = "{HEADER}" }}}}
[modes.balanced]
[[modes.balanced.targets]]
kind = "vllm"
base_url = "{{url}}?token={QUERY}"
model = "elsewhere"
[modes.fast]
[[modes.fast.targets]]
kind = "vllm"
base_url = "{{url}}"
model = "fast-model"
api_key_env = "CANARY_KEY"
[server]
admin_key_hash = "{key_hash(ADMIN)}"
[keys.alice]
hash = "{key_hash(ALICE)}"
monthly_tokens = 1000000
"""


def tells_tales(dice: random.Random) -> Any:
    """An upstream that quotes what it was sent, as some do, in all the ways there are to fail."""

    async def play(exchange: Exchange) -> None:
        heard = f"{exchange.path} {exchange.headers.get('x-extra')} and more"
        key = exchange.headers.get("authorization", "").removeprefix("Bearer ")
        match dice.randrange(7):
            case 0:
                exchange.json({"error": {"message": heard, "code": key}}, status=401)
            case 1:
                exchange.json({"error": {"message": key, "type": key}}, status=500)
            case 2:
                exchange.json({"detail": heard}, status=400)
            case 3:
                exchange.document(heard.encode(), "text/plain", status=503)
            case 4:
                exchange.json({"error": {"message": heard, "code": key, "type": key}})
            case 5:
                exchange.head()
                exchange.say(ANSWER)
                exchange.event({"error": {"message": f"{key} {heard}", "code": key}})
                exchange.end()
            case _:
                exchange.head()
                exchange.say(ANSWER)
                exchange.finish()

    return play


async def fine(exchange: Exchange) -> None:
    exchange.head()
    exchange.say(ANSWER)
    exchange.finish()


@pytest.mark.slow
async def test_no_canary_is_seen_anywhere(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream:
        upstream.script("tells", [tells_tales(random.Random(1))])
        upstream.script("fast-model", [fine])
        config = CONFIG.format(url=upstream.base_url)
        async with Live(config, tmp_path, CANARY_KEY=UPSTREAM_KEY) as live:
            seen, answered = await under_load(live)
            bearer = f"authorization: Bearer {ADMIN}"
            head = f"HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{bearer}\r\n\r\n"
            for path in ("/status", "/metrics", "/health", "/v1/models", "/openapi.json", "/"):
                answer = await live.ask(f"GET {path} {head}")
                assert answer.status in (200, 503), path
                seen.append(answer.body)
            client = await live.connect()
            client.send(f"GET /live HTTP/1.1\r\nhost: localhost\r\n{bearer}\r\n\r\n")
            await client.head()
            seen.append(await anext(client.chunks()))
            client.close()
            live.file.write_text(config + "[nonsense]\n", encoding="utf-8")
            seen.append((await live.post("/admin/reload", {}, bearer)).body)
            live.process.terminate()
            await live.ended()
        written = {
            path.name: path.read_bytes()
            for path in tmp_path.rglob("*")
            if path.is_file() and path.name != "config.toml"
        }
        log = "".join(live.log)
    assert log.count('"http_finished"') + log.count('"request_finished"') > 100
    assert ANSWER.encode() in b"".join(answered), "the callers themselves do get their answers"
    assert "usage.sqlite" in written
    secrets = [UPSTREAM_KEY, HEADER, QUERY, ALICE, ADMIN, WRONG, PROMPT, ASKED]
    secrets += [value.rpartition(" ")[2].rpartition("=")[2] for value in OTHERS.values()]
    for name, what in {
        "log": log.encode(),
        "pages and errors": b"".join(seen),
        **written,
    }.items():
        for secret in (*secrets, ANSWER):
            at = what.find(secret.encode())
            assert at < 0, f"{secret} in {name}: {what[max(0, at - 300) : at + 60]!r}"
    for secret in secrets:
        assert secret.encode() not in b"".join(answered), secret


async def under_load(live: Live) -> tuple[list[bytes], list[bytes]]:
    """What came back as errors, and as answers."""
    errors: list[bytes] = []
    answers: list[bytes] = []
    others = [f"{name}: {value}" for name, value in OTHERS.items()]

    async def ask(number: int) -> None:
        body: dict[str, Any] = chat(
            "creative", text=f"{PROMPT} {number}", stream=bool(number % 2), user=PROMPT
        )
        headers = [f"x-api-key: {ALICE}", *others[1:]]
        path = f"/v1/chat/completions?key={ASKED}"
        match number % 10:
            case 7:
                headers = [f"authorization: Bearer {WRONG}"]
            case 8:
                headers = others
            case 9:
                body = {**body, "temperature": PROMPT, "messages": PROMPT}
            case 6:
                path = f"/v1/{ASKED}"
        answer = await live.post(path, body, *headers)
        said = answer.body + repr(answer.headers).encode()
        if answer.status == 200 and b'"error"' not in said:
            answers.append(said)
        elif ANSWER.encode() in said:  # a stream that broke: its beginning is the caller's
            errors.append(said.replace(ANSWER.encode(), b""))
        elif number % 10 == 6:  # the path is told to the one who asked for it
            errors.append(said.replace(ASKED.encode(), b""))
        else:
            errors.append(said)

    for begin in range(0, 200, 20):
        await asyncio.gather(*(ask(number) for number in range(begin, begin + 20)))
    torn = await live.connect()  # a fault of the wire, with a secret in the air
    torn.send(post("/v1/chat/completions", chat("fast", text=PROMPT), f"x-api-key: {ALICE}")[:-3])
    torn.close()
    return errors, answers
