"""`gateway faultlab`: the fault wall against our own gateway, or against any other."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from gateway.errors import ConfigError, GatewayError

if TYPE_CHECKING:
    from gateway.faultlab import Given, Result
    from gateway.faultlab.scenario import Run

faultlab = typer.Typer(
    invoke_without_command=True,
    help="Meet every fault there is, and see who lies: our own gateway, or any other.",
)

Only = Annotated[
    list[str] | None,
    typer.Option(help="Scenario (8), run (8-stream) or group (cache); repeat it, or use commas."),
]
LAB_PORT = 9000


@faultlab.callback()
def score(
    context: typer.Context,
    url: Annotated[str, typer.Option(help="Gateway to score; else our own is started.")] = "",
    api_key_env: Annotated[str, typer.Option(help="Variable that holds its key.")] = "",
    models: Annotated[
        str, typer.Option(help="What it calls them: creative=my-{model}, or s8-stream=name,...")
    ] = "",
    header: Annotated[list[str] | None, typer.Option(help="Sent along: 'name: value'.")] = None,
    recipe: Annotated[str, typer.Option(help="portkey: configure it by headers.")] = "",
    upstream_url: Annotated[
        str, typer.Option("--upstream", help="Where `gateway faultlab upstream` listens.")
    ] = f"http://127.0.0.1:{LAB_PORT}",
    only: Only = None,
    at_once: Annotated[int, typer.Option(min=1, help="Runs at the same time.")] = 16,
    patience: Annotated[
        float, typer.Option(min=0.1, help="Multiplies how long is waited, for slow machines.")
    ] = 1.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the card there.")] = None,
    listing: Annotated[bool, typer.Option("--list", help="Say what there is, and stop.")] = False,
) -> None:
    """Score a gateway. Exit code 1 if it fails anything.

    Without --url our own gateway is started for each run, with shipped values. With --url, start
    `gateway faultlab upstream` first and point that gateway at it.
    """
    if context.invoked_subcommand:
        return
    from gateway.faultlab import Grade, runs, scorecard  # noqa: PLC0415

    if listing:
        typer.echo("\n".join(scorecard.contents()).lstrip())
        return
    try:
        began, url = time.monotonic(), _base(url)
        wanted = runs(_split(only))
        given = _given(url, _headers(header or [], api_key_env), _pairs(models), recipe)
        if url:
            scoring = _theirs(wanted, given, upstream_url.rstrip("/"), at_once, patience)
        else:
            scoring = _ours(wanted, at_once, patience)
        results = asyncio.run(scoring)
    except GatewayError as error:
        raise _wrong(error) from None
    scorecard.show(results, ours=not url)
    took_s = time.monotonic() - began
    typer.echo(f"took {took_s:.0f} s", err=True)
    if json_file:
        told = scorecard.as_json(results, endpoint=url or "downshift-gateway", took_s=round(took_s))
        json_file.write_bytes(told + b"\n")
    raise typer.Exit(int(any(result.verdict.grade is Grade.FAIL for result in results)))


@faultlab.command(short_help="Play the faults for a gateway of yours.")
def upstream(
    port: Annotated[int, typer.Option(help="Of creative; balanced and fast follow.")] = LAB_PORT,
) -> None:
    """Play the faults for a gateway of yours: the model's name picks one."""
    from gateway.faultlab import Lab, recipes, runs  # noqa: PLC0415

    everything = runs()

    async def play() -> None:
        async with Lab(everything, port):
            typer.echo(
                f"{recipes.model_names(everything)}\n\n"
                f"creative-* at http://127.0.0.1:{port}/v1, balanced-* at port {port + 1}, "
                f"fast-* at {port + 2}; any key.\nConfigure each name on the left as a model with "
                "those on the right as its fallbacks\n(`gateway faultlab config litellm` writes "
                "such a file); then, in another terminal:\n"
                "gateway faultlab --url http://YOUR-GATEWAY/v1"
            )
            await asyncio.get_running_loop().create_future()

    try:
        asyncio.run(play())
    except OSError as error:
        raise _wrong(ConfigError(f"port {port} to {port + 2}: {error.strerror}")) from None
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


@faultlab.command()
def config(
    kind: Annotated[str, typer.Argument(help="litellm, portkey or downshift.")],
    upstream_url: Annotated[
        str, typer.Option("--upstream", help="Where `gateway faultlab upstream` listens.")
    ] = f"http://127.0.0.1:{LAB_PORT}",
    only: Only = None,
) -> None:
    """Print what another gateway's configuration must say."""
    from gateway.faultlab import recipes, runs  # noqa: PLC0415
    from gateway.faultlab.upstream import base_urls  # noqa: PLC0415

    try:
        wanted, ports = runs(_split(only)), _ports(upstream_url)
    except GatewayError as error:
        raise _wrong(error) from None
    if kind == "litellm":
        typer.echo(recipes.litellm(wanted, lambda run: base_urls(ports, run)), nl=False)
    elif kind == "portkey":
        for run in wanted:
            for name, value in recipes.portkey(run, base_urls(ports, run)).items():
                typer.echo(f"# {run.name}\n{name}: {value}")
    elif kind == "downshift":
        for run in wanted:
            typer.echo(f"# {run.name}\n{recipes.downshift(run, base_urls(ports, run))}")
    else:
        raise _wrong(ConfigError(f"no recipe for {kind!r}; there are litellm, portkey, downshift"))


async def _ours(wanted: list[Run], at_once: int, patience: float) -> list[Result]:
    from gateway.faultlab import Lab, Ours, wall  # noqa: PLC0415

    async with Lab(wanted) as lab:
        tell = _progress(len(wanted))
        return await wall(
            wanted, Ours(), lab.url, lab.urls, at_once=at_once, patience=patience, tell=tell
        )


async def _theirs(
    wanted: list[Run], given: Given, lab_url: str, at_once: int, patience: float
) -> list[Result]:
    from gateway.faultlab import wall  # noqa: PLC0415
    from gateway.faultlab.upstream import base_urls  # noqa: PLC0415

    ports, tell = _ports(lab_url), _progress(len(wanted))
    return await wall(
        wanted, given, lab_url, lambda run: base_urls(ports, run),
        at_once=at_once, patience=patience, tell=tell,
    )  # fmt: skip


def _given(url: str, headers: dict[str, str], models: dict[str, str], recipe: str) -> Given:
    from gateway.faultlab import Given, recipes  # noqa: PLC0415

    if recipe not in ("", "portkey"):
        raise ConfigError(f"no recipe {recipe!r} for headers; there is portkey")
    return Given(url, headers, models, recipes.portkey if recipe else None)


def _progress(total: int) -> Callable[[Result], None]:
    """Counts results on a terminal's standard error."""
    done = 0

    def tell(_: Result) -> None:
        nonlocal done
        done += 1
        if sys.stderr.isatty():
            end = "\n" if done == total else "\r"
            typer.echo(f"{done} of {total} runs over{end}", nl=False, err=True)

    return tell


def _base(url: str) -> str:
    """A gateway's address, with the usual path where none is given."""
    url = url.rstrip("/")
    return f"{url}/v1" if url and not urlsplit(url).path else url


def _ports(url: str) -> list[int]:
    place = urlsplit(url)
    if place.scheme != "http" or not place.port:
        raise ConfigError(f"expected the lab's address such as http://127.0.0.1:9000, got {url!r}")
    return [place.port, place.port + 1, place.port + 2]


def _split(only: list[str] | None) -> list[str]:
    return [name for one in only or [] for name in one.split(",") if name]


def _pairs(models: str) -> dict[str, str]:
    pairs = dict(pair.partition("=")[::2] for pair in models.split(",") if pair)
    if not all(pairs.values()):
        raise _wrong(ConfigError(f"expected NAME=MODEL,... in --models, got {models!r}"))
    return pairs


def _headers(header: list[str], api_key_env: str) -> dict[str, str]:
    headers = {name.strip(): value.strip() for name, _, value in (h.partition(":") for h in header)}
    if api_key_env:
        if api_key_env not in os.environ:
            raise _wrong(ConfigError(f"the environment variable {api_key_env} is not set"))
        headers["authorization"] = f"Bearer {os.environ[api_key_env]}"
    return headers


def _wrong(error: GatewayError) -> typer.Exit:
    typer.echo(f"error: {error}", err=True)
    return typer.Exit(2 if isinstance(error, ConfigError) else 1)
