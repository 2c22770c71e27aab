"""Who may call: keys, the admin key, and without any keys this machine only."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.clock import ManualClock
from gateway.config import Config
from gateway.errors import ConfigError, GatewayError
from gateway.openai_api.errors import error_reply
from gateway.openai_api.words import ANYONE, Call, Caller
from gateway.policies.keys import expiry, key_hash
from gateway.server.access import OPEN, Access, check_exposure, is_loopback

ALICE, BOB, ADMIN = "sk-dsg-alice-alice-alice-alice", "sk-dsg-bob-bob-bob-bob-bob", "sk-dsg-admin"
CHAT = "/chat/completions"
HERE = {"host": "127.0.0.1:8080"}


def config(*, server: dict[str, Any] | None = None, **keys: dict[str, Any]) -> Config:
    return Config.from_dict(
        {
            "modes": {"best": {"targets": [{"kind": "simulated"}]}},
            "keys": keys,
            "server": server or {},
        }
    )


KEYLESS = config()
KEYED = config(
    alice={"hash": key_hash(ALICE), "tenant": "acme", "modes": ["best"], "priority": 0},
    bob={"hash": key_hash(BOB), "expires": "2027-01-31"},
)
STEERED = config(server={"admin_key_hash": key_hash(ADMIN)}, alice={"hash": key_hash(ALICE)})
CLOCK = ManualClock(expiry("2027-01-31") - 1)


def call(
    headers: dict[str, str] | None = None, *, peer: str = "192.0.2.1", body: bytes = b""
) -> Call:
    return Call("POST", CHAT, headers or {}, body=body, peer=peer)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def check(of: Config, asked: Call, route: str = CHAT) -> Caller:
    return Access(of, CLOCK).check(asked, route, of)


def refusal(of: Config, asked: Call, route: str = CHAT) -> tuple[int, dict[str, str], str]:
    with pytest.raises(GatewayError) as caught:
        check(of, asked, route)
    status, headers, body = error_reply(caught.value)
    return status, dict(headers), body.decode()


# -- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {ALICE}"},
        {"authorization": f"bearer {ALICE}"},
        {"authorization": f"BEARER   {ALICE} "},
        {"x-api-key": ALICE},
        {"authorization": "Basic abc", "x-api-key": ALICE},
    ],
)
def test_a_key_names_its_caller(headers: dict[str, str]) -> None:
    assert check(KEYED, call(headers)) == Caller(
        key="alice", tenant="acme", modes=frozenset({"best"}), priority=0
    )


def test_a_key_without_more_is_its_own_tenant_and_may_ask_for_all() -> None:
    assert check(KEYED, call(bearer(BOB))) == Caller(key="bob", tenant="bob", modes=None)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("sk-dsg-mallory"),
        bearer(""),
        bearer(ALICE[:-1]),
        bearer(ALICE + "x"),
        {"authorization": ALICE},
        {"authorization": f"Basic {ALICE}"},
        {"x-api-key": "sk-dsg-mallory"},
        bearer("\xff\u20ac" * 9),
        bearer(key_hash(ALICE)),
        bearer(key_hash(ALICE).removeprefix("sha256:")),
    ],
)
def test_no_key_and_a_wrong_key_are_refused_in_the_same_words(headers: dict[str, str]) -> None:
    status, said, body = refusal(KEYED, call(headers, peer="127.0.0.1"))
    assert (status, said["www-authenticate"], said["x-should-retry"]) == (401, "Bearer", "false")
    assert '"code":"invalid_api_key"' in body
    assert body == refusal(KEYED, call())[2]
    assert "mallory" not in body


def test_an_expired_key_says_so_from_the_end_of_its_last_day() -> None:
    assert check(KEYED, call(bearer(BOB))).key == "bob"
    access = Access(KEYED, lambda: expiry("2027-01-31"))
    with pytest.raises(GatewayError, match="bob expired on 2027-01-31") as caught:
        access.check(call(bearer(BOB)), CHAT, KEYED)
    assert caught.value.http_status == 401
    assert BOB not in str(caught.value)


@pytest.mark.parametrize(
    ("expires", "unix_s"),
    [
        ("2027-01-31", 1801440000),
        ("2027-01-31T12:00:00", 1801396800),
        ("2027-01-31T12:00:00Z", 1801396800),
        ("2027-01-31T14:00:00+02:00", 1801396800),
        ("", float("inf")),
    ],
)
def test_dates_end_with_their_day_and_times_are_utc(expires: str, unix_s: float) -> None:
    assert expiry(expires) == unix_s


@pytest.mark.parametrize("route", sorted(OPEN))
def test_health_is_open(route: str) -> None:
    assert check(KEYED, call(), route) is ANYONE
    assert check(KEYLESS, call(), route) is ANYONE


def test_the_page_is_open_and_its_figures_are_not() -> None:
    assert check(KEYED, call({"accept": "text/html,*/*"}), "/") is ANYONE
    for route in ("/", "/live", "/status", "/metrics", "/models", "/feedback"):
        assert refusal(KEYED, call({"accept": "*/*"}), route)[0] == 401
        assert check(KEYED, call(bearer(ALICE)), route).key == "alice"


def test_metrics_may_be_opened() -> None:
    of = config(server={"open_metrics": True}, alice={"hash": key_hash(ALICE)})
    assert check(of, call(), "/metrics") is ANYONE
    assert refusal(of, call(), "/status")[0] == 401


def test_keys_follow_the_configuration_in_force() -> None:
    access = Access(KEYLESS, CLOCK)
    assert access.check(call(HERE, peer="127.0.0.1"), CHAT, KEYLESS) is ANYONE
    assert access.check(call(bearer(ALICE)), CHAT, KEYED).key == "alice"
    with pytest.raises(GatewayError, match="API key"):
        access.check(call(bearer(BOB)), CHAT, STEERED)


# -- the admin key --------------------------------------------------------------------------------


def test_the_admin_key_opens_everything() -> None:
    for route in ("/admin/force", "/admin/reload", "/status", "/metrics", CHAT):
        caller = check(STEERED, call(bearer(ADMIN)), route)
        assert (caller.key, caller.tenant, caller.modes) == ("admin", "admin", None)


def test_an_ordinary_key_does_not_steer() -> None:
    status, _, body = refusal(STEERED, call(bearer(ALICE)), "/admin/force")
    assert (status, '"code":"permission_denied"' in body) == (403, True)
    # Nor does being here: who has set an admin key means it.
    assert refusal(STEERED, call(HERE, peer="127.0.0.1"), "/admin/force")[0] == 401


def test_without_an_admin_key_this_machine_steers() -> None:
    assert check(KEYED, call(HERE, peer="127.0.0.1"), "/admin/reload").key == "admin"
    assert refusal(KEYED, call(bearer(ALICE)), "/admin/reload")[0] == 403
    assert (
        refusal(KEYED, call({**HERE, "x-forwarded-for": "192.0.2.1"}, peer="::1"), "/admin/x")[0]
        == 403
    )  # a proxy on this machine speaks for others


# -- without keys ---------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("host", ["localhost", "LocalHost:1", "127.0.0.1:8080", "[::1]:8080"])
def test_without_keys_this_machine_is_served(peer: str, host: str) -> None:
    assert check(KEYLESS, call({"host": host}, peer=peer)) is ANYONE
    # OpenAI's clients send some key, always.
    assert check(KEYLESS, call({"host": host, **bearer("any")}, peer=peer)) is ANYONE


def test_this_very_process_needs_no_address() -> None:
    assert check(KEYLESS, call(peer="")) is ANYONE
    assert refusal(KEYLESS, call({"host": "a.example"}, peer=""))[0] == 403  # a Unix socket


@pytest.mark.parametrize(
    ("headers", "peer", "told"),
    [
        (HERE, "192.0.2.1", "this machine"),
        (HERE, "unix:", "this machine"),
        ({**HERE, "x-forwarded-for": "127.0.0.1"}, "127.0.0.1", "this machine"),
        ({**HERE, "forwarded": "for=127.0.0.1"}, "127.0.0.1", "this machine"),
        ({"host": "rebound.example:8080"}, "127.0.0.1", "another name"),
        ({"host": "127.0.0.1.evil.example"}, "127.0.0.1", "another name"),
        ({"host": "localhost.evil.example"}, "127.0.0.1", "another name"),
        ({"host": "[::1].evil"}, "192.0.2.1", "this machine"),
        ({"host": "0.0.0.0:8080"}, "127.0.0.1", "another name"),
        ({"host": ""}, "127.0.0.1", "another name"),
        ({}, "127.0.0.1", "another name"),
        ({**HERE, "origin": "https://evil.example"}, "127.0.0.1", "web pages"),
        ({**HERE, "origin": "http://127.0.0.1.evil.example"}, "127.0.0.1", "web pages"),
        ({**HERE, "origin": "null"}, "127.0.0.1", "web pages"),
    ],
)
def test_without_keys_nobody_else_is(headers: dict[str, str], peer: str, told: str) -> None:
    for route in (CHAT, "/admin/force", "/status", "/metrics", "/"):
        status, _, body = refusal(KEYLESS, call(headers, peer=peer), route)
        assert status == 403
        assert told in body


def test_pages_of_this_machine_and_those_named_may_call() -> None:
    for origin in ("http://localhost:3000", "http://127.0.0.1:8080", "http://[::1]:8080"):
        assert check(KEYLESS, call({**HERE, "origin": origin}, peer="::1")) is ANYONE
    named = config(server={"cors_origins": ["https://app.example"]})
    assert check(named, call({**HERE, "origin": "https://app.example"}, peer="::1")) is ANYONE


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("[::1]", True),
        ("localhost", True), ("0.0.0.0", False), ("::", False), ("", False),
        ("192.0.2.1", False), ("gateway.example", False),
    ],
)  # fmt: skip
def test_a_wider_address_needs_keys(host: str, local: bool) -> None:
    assert is_loopback(host.strip("[]")) is local
    wide = replace(KEYLESS, server=replace(KEYLESS.server, host=host), source="my.toml")
    if local:
        check_exposure(wide)
    else:
        with pytest.raises(ConfigError, match=r"my.toml: \[server\]: host: .*gateway keys new"):
            check_exposure(wide)
    check_exposure(replace(wide, keys=KEYED.keys))


_ANY = st.text(st.characters(max_codepoint=0x2FFF), max_size=40) | st.sampled_from(
    ["[", "[::1", "[::1]", ":", "localhost:", "127.0.0.1:x", "http://", "http://[", "::1%eth0"]
)


@given(
    st.dictionaries(
        st.sampled_from(["host", "origin", "authorization", "x-api-key", "content-type"]), _ANY
    ),
    _ANY,
    st.sampled_from([CHAT, "/admin/force", "/"]),
)
@settings(max_examples=200)
def test_whatever_comes_is_answered_or_refused_and_never_served_by_chance(
    headers: dict[str, str], peer: str, route: str
) -> None:
    local = is_loopback(peer) or (not peer and "host" not in headers)
    for of in (KEYLESS, KEYED):
        try:
            check(of, call(headers, peer=peer, body=b"{}"), route)
        except GatewayError as error:
            assert error.http_status in (401, 403, 415)
        else:
            assert local
            assert of is KEYLESS or route == "/admin/force"


# -- what a body is -------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["application/json", "Application/JSON; charset=utf-8", ""])
def test_json_is_taken_and_so_is_what_says_nothing(said: str) -> None:
    headers = {**bearer(ALICE), **({"content-type": said} if said else {})}
    assert check(KEYED, call(headers, body=b"{}")).key == "alice"


@pytest.mark.parametrize(
    "said", ["application/x-www-form-urlencoded", "multipart/form-data", "text/plain", "json"]
)
def test_anything_else_is_told_the_remedy(said: str) -> None:
    asked = call({**bearer(ALICE), "content-type": said}, body=b"{}")
    status, _, body = refusal(KEYED, asked)
    assert status == 415
    assert "content-type: application/json" in body
    # Without a body there is nothing to be of a type; without a key nothing is said of the body.
    assert check(KEYED, call({**bearer(ALICE), "content-type": said})).key == "alice"
    assert refusal(KEYED, call({"content-type": said}, body=b"{}"))[0] == 401


def test_a_check_costs_microseconds() -> None:
    access, asked = Access(KEYED, CLOCK), call({**HERE, **bearer(ALICE)}, body=b"{}")
    began = time.process_time()
    for _ in range(2000):
        access.check(asked, CHAT, KEYED)
    assert (time.process_time() - began) / 2000 < 50e-6
