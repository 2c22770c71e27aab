"""`gateway keys`: what it prints can be pasted, and the key is seen once."""

from __future__ import annotations

import hashlib
import tomllib

import pytest
from typer.testing import CliRunner, Result

from gateway import Config
from gateway.cli import main
from gateway.policies.keys import key_hash


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, ["keys", *arguments], input=stdin)


@pytest.mark.parametrize("name", ["alice", "al ice", 'a"b\\c', "müller.2", "\x7f\n"])
def test_the_table_that_is_printed_is_the_keys(name: str) -> None:
    result = run(
        "new", name, "--modes", "fast", "--modes", "best", "--requests-per-min", "60",
        "--monthly-tokens", "1000", "--expires", "2027-01-31",
    )  # fmt: skip
    assert result.exit_code == 0
    secret = result.stderr.strip().splitlines()[-1]
    assert secret.startswith("sk-dsg-")
    assert secret not in result.stdout
    target = {"targets": [{"kind": "simulated"}]}
    tables = tomllib.loads(result.stdout)
    [key] = Config.from_dict({"modes": {"best": target, "fast": target}, **tables}).keys
    assert (key.name, key.hash, key.modes) == (name, key_hash(secret), ("fast", "best"))
    assert (key.requests_per_min, key.tokens_per_min) == (60, 0)
    assert (key.monthly_tokens, key.expires) == (1000, "2027-01-31")


def test_each_key_is_new() -> None:
    assert run("new", "a").stderr != run("new", "a").stderr


def test_the_admin_key_has_a_place_of_its_own() -> None:
    result = run("new", "admin")
    secret = result.stderr.strip().splitlines()[-1]
    assert tomllib.loads(f"[server]\n{result.stdout}")["server"] == {
        "admin_key_hash": key_hash(secret)
    }


def test_a_date_that_is_none_is_refused() -> None:
    result = run("new", "a", "--expires", "tomorrow")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "2027-01-31" in result.stderr


def test_a_key_of_ones_own_is_hashed() -> None:
    secret = "0123456789-0123456789-0123456789"
    result = run("hash", stdin=f"  {secret}\n")
    assert result.exit_code == 0
    assert result.stdout == f"sha256:{hashlib.sha256(secret.encode()).hexdigest()}\n"


@pytest.mark.parametrize(
    "weak", ["", "hunter2", "a" * 23, "correct horse battery staple", "ü" * 40]
)
def test_passwords_are_no_keys(weak: str) -> None:
    result = run("hash", stdin=f"{weak}\n")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "gateway keys new" in result.stderr
    assert not weak or weak not in result.stderr
