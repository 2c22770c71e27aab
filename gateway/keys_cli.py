"""`gateway keys`: makes API keys, and what the configuration keeps of them."""

from __future__ import annotations

import json
import re
import sys
from typing import Annotated

import typer

from gateway.errors import ConfigError
from gateway.policies.keys import ADMIN, SHORTEST_KEY, KeyOptions, key_hash, new_key

keys = typer.Typer(no_args_is_help=True, help="Make API keys, and what the configuration keeps.")

_BARE = re.compile(r"[A-Za-z0-9_-]+")


@keys.command()
def new(
    name: Annotated[str, typer.Argument(help="Who it is for; `admin` steers instead of asking.")],
    modes: Annotated[
        list[str] | None, typer.Option(help="A mode it may ask for; repeat it. All if left out.")
    ] = None,
    requests_per_min: Annotated[int, typer.Option(min=0, help="0 is without limit.")] = 0,
    tokens_per_min: Annotated[int, typer.Option(min=0, help="0 is without limit.")] = 0,
    concurrency: Annotated[int, typer.Option(min=0, help="0 is without limit.")] = 0,
    monthly_tokens: Annotated[int, typer.Option(min=0, help="0 is without limit.")] = 0,
    expires: Annotated[str, typer.Option(help="Its last day, such as 2027-01-31.")] = "",
) -> None:
    """Make a key: print it, this once, and the table to paste.

    The table goes to standard output and the key to standard error, so that
    `gateway keys new alice >> keys.toml` files what may be filed.
    """
    key = new_key()
    if name == ADMIN:
        table = ["# under [server]:", f"admin_key_hash = {_quoted(key_hash(key))}"]
    else:
        try:
            KeyOptions(name=name, hash=key_hash(key), expires=expires)
        except ConfigError as error:
            raise _wrong(str(error)) from None
        title = name if _BARE.fullmatch(name) else _quoted(name)
        table = [f"[keys.{title}]", f"hash = {_quoted(key_hash(key))}"]
        if modes:
            table.append(f"modes = [{', '.join(map(_quoted, modes))}]")
        limits = {
            "requests_per_min": requests_per_min,
            "tokens_per_min": tokens_per_min,
            "concurrency": concurrency,
            "monthly_tokens": monthly_tokens,
        }
        table += [f"{limit} = {value}" for limit, value in limits.items() if value]
        if expires:
            table.append(f"expires = {_quoted(expires)}")
    typer.echo("\n".join(table))
    typer.echo(f"\nThe key of {name}, shown only now:\n{key}", err=True)


@keys.command("hash", short_help="Turn a key into what the configuration keeps.")
def hash_() -> None:
    """Read a key from standard input and print what to configure as its `hash`."""
    if sys.stdin.isatty():
        typer.echo("Type or paste the key, then Enter:", err=True)
    key = sys.stdin.readline().strip()
    if len(key) < SHORTEST_KEY or not (key.isascii() and key.isprintable()) or " " in key:
        raise _wrong(
            f"a key is {SHORTEST_KEY} or more random characters of ASCII without spaces; "
            "`gateway keys new NAME` makes one"
        )
    typer.echo(key_hash(key))


def _wrong(what: str) -> typer.Exit:
    typer.echo(f"error: {what}", err=True)
    return typer.Exit(2)


def _quoted(text: str) -> str:
    """As a basic string of TOML: JSON's quotes and escapes, but every control character escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
