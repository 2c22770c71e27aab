"""The command `gateway`: wires the rooms of the house to a terminal.

Exit codes: 0 done, 1 it failed, 2 the command line or the configuration is wrong, 130 Ctrl-C.
Answers go to standard output, everything else to standard error.
"""

from __future__ import annotations

import asyncio
import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from gateway import __version__
from gateway.config import Config
from gateway.errors import AllModesFailed, ConfigError, GatewayError, InvalidRequest, UpstreamError
from gateway.events import Listener
from gateway.faultlab_cli import faultlab
from gateway.gateway import Gateway
from gateway.generation import Generation, Message
from gateway.keys_cli import keys
from gateway.validation import check_messages

main = typer.Typer(
    name="gateway",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
main.add_typer(keys, name="keys")
main.add_typer(faultlab, name="faultlab", short_help="Meet every fault there is, and see who lies.")

ConfigFile = Annotated[Path, typer.Option("--config", "-c", help="Configuration file.")]
Json = Annotated[bool, typer.Option("--json", help="Print data instead of text.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Log each event to stderr.")]
LogJson = Annotated[bool, typer.Option("--log-json", help="Log each event to stderr as JSON.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gateway {__version__}")
        raise typer.Exit


@main.callback()
def prepare(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """The LLM gateway that keeps answering: creative -> balanced -> fast, honestly."""
    for out in (sys.stdout, sys.stderr):
        if isinstance(out, io.TextIOWrapper):
            out.reconfigure(errors="replace")  # a terminal that lacks a letter is no failure


@main.command()
def serve(
    config: ConfigFile = Path("config.toml"),
    host: Annotated[str | None, typer.Option(help="Address; else as configured.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 picks a free one.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes.")] = None,
    http: Annotated[
        str | None, typer.Option("--runner", help="What speaks HTTP: uvicorn or granian.")
    ] = None,
) -> None:
    """Answer OpenAI's HTTP API, with a dashboard at /."""
    from gateway.server import runner  # noqa: PLC0415

    with _plain_errors(as_json=False):
        settings = Config.from_toml(config)
        said = {"host": host, "port": port, "workers": workers, "runner": http}
        given = {name: value for name, value in said.items() if value is not None}
        runner.serve(settings, given)


@main.command()
def status(
    url: Annotated[
        str, typer.Option(envvar="GATEWAY_URL", help="Where it listens.")
    ] = "http://127.0.0.1:8080",
    as_json: Json = False,
) -> None:
    """How does a running service stand?

    A key it may want is read from GATEWAY_KEY. Exit code 1 if nobody answers or it is not ready.
    """
    from gateway.server import asking  # noqa: PLC0415

    with _plain_errors(as_json):
        found = asking.ask(url)
    typer.echo(_json(found) if as_json else asking.table(found))
    raise typer.Exit(0 if found["ready"] else 1)


@main.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads standard input.")],
    mode: Annotated[str | None, typer.Option(help="Mode to ask; the best one if left out.")] = None,
    config: ConfigFile = Path("config.toml"),
    stream: Annotated[bool, typer.Option("--stream", help="Print tokens as they come.")] = False,
    system: Annotated[str, typer.Option(help="System message.")] = "",
    deadline: Annotated[float | None, typer.Option(help="Seconds until an answer.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 is the most sober.")] = None,
    no_degrade: Annotated[
        bool, typer.Option("--no-degrade", help="Fail rather than let a lower mode answer.")
    ] = False,
    as_json: Json = False,
    verbose: Verbose = False,
    log_json: LogJson = False,
) -> None:
    """Answer one prompt."""
    sampling = {"max_tokens": max_tokens, "temperature": temperature}
    wanted: dict[str, Any] = {
        "deadline": deadline,
        "allow_degrade": not no_degrade,
        **{name: value for name, value in sampling.items() if value is not None},
    }

    async def answer(asked: str | list[Message]) -> Generation:
        async with Gateway.from_toml(config, listeners=_listeners(verbose, log_json)) as gateway:
            if not stream:
                return await gateway.generate(asked, mode, **wanted)
            async with gateway.stream(asked, mode, **wanted) as pieces:
                try:
                    async for chunk in pieces:
                        if chunk.text:
                            piece = _json({"text": chunk.text}) + "\n" if as_json else chunk.text
                            typer.echo(piece, nl=False)
                finally:
                    typer.echo(nl=not as_json)  # an answer that breaks off ends its line, too
                return await pieces.finish()

    with _plain_errors(as_json, hint="`gateway check` says which target is not well"):
        asked = _messages(prompt, system)  # not in the event loop: Ctrl-C must end reading, too
        generation = asyncio.run(answer(asked))
        if as_json:
            typer.echo(_json(_described(generation)))
        elif not stream:
            typer.echo(generation.text)
        if (remark := _remark(generation)) and not as_json:
            typer.echo(remark, err=True)


@main.command()
def check(
    config: Annotated[
        Path | None, typer.Argument(help="Configuration file.", show_default="config.toml")
    ] = None,
    named: Annotated[Path, typer.Option("--config", "-c", help="The same, as elsewhere.")] = Path(
        "config.toml"
    ),
    no_probe: Annotated[
        bool, typer.Option("--no-probe", help="Only read the file; ask nobody.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Patience with one target, seconds.")
    ] = 30.0,
    as_json: Json = False,
) -> None:
    """Is every target well? If not, how to mend it.

    Reads a configuration, builds each target and asks it for a few tokens. Exit code 1 if a target
    is not well, 2 if the configuration is wrong.
    """
    from gateway import check as checking  # noqa: PLC0415

    with _plain_errors(as_json):
        file = config or named
        settings = Config.from_toml(file)
        checks = asyncio.run(checking.check(settings, probe=not no_probe, timeout_s=timeout))
    code = checking.exit_code(checks)
    if as_json:
        typer.echo(_json({"config": str(file), "ok": code == 0, "targets": checks}))
    else:
        typer.echo(checking.table(checks))
    raise typer.Exit(code)


@main.command()
def simulate(
    scenario: Annotated[
        str, typer.Argument(help="outage, brownout, flapping, cold-recovery, total")
    ],
    seed: Annotated[int, typer.Option(min=0, help="The same seed tells the same story.")] = 0,
    minutes: Annotated[float | None, typer.Option(help="Simulated minutes; usually 20.")] = None,
    rps: Annotated[float | None, typer.Option(help="Requests a second; usually 1.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it: a .png or .svg file.")] = None,
    as_json: Json = False,
) -> None:
    """Twenty minutes of trouble, in about a second.

    The real gateway meets simulated upstreams on virtual time. The same seed tells the same story.
    """
    from gateway.simulate import run_scenario  # noqa: PLC0415
    from gateway.timeline import timeline  # noqa: PLC0415

    with _plain_errors(as_json):
        if plot is not None:
            from gateway.plot import check_plot, save_plot  # noqa: PLC0415

            check_plot(plot)
        began = time.perf_counter()
        report = run_scenario(scenario, seed, minutes=minutes, requests_per_s=rps)
        took_s = time.perf_counter() - began
        if plot is not None:
            save_plot(report, plot)
    typer.echo(report.json() if as_json else timeline(report), nl=as_json)
    # Not on standard output: that is the same each time, byte for byte.
    typer.echo(f"({report.minutes:g} simulated minutes took {took_s:.1f} s)", err=True)


@main.command()
def demo(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="On these modes; else on the embedded model."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What to ask.")] = None,
    as_json: Json = False,
    verbose: Verbose = False,
    log_json: LogJson = False,
) -> None:
    """See a real model cut off, and the answers go on.

    The embedded model answers in each mode; then creative is cut off, balanced answers in its
    place, and creative heals. Takes ten seconds or so. Exit code 1 if anything promised did not
    happen.
    """
    from gateway import demo as show  # noqa: PLC0415

    async def run() -> list[Generation]:
        return await show.demo(
            lambda line: typer.echo(line, err=as_json),
            config=None if config is None else Config.from_toml(config),
            prompt=show.PROMPT if prompt is None else prompt,
            listeners=_listeners(verbose, log_json),
        )

    with _plain_errors(as_json):
        answers = asyncio.run(run())
    if as_json:
        typer.echo(_json({"ok": True, "answers": [_described(answer) for answer in answers]}))


# -- small parts ----------------------------------------------------------------------------------


@contextmanager
def _plain_errors(as_json: bool, *, hint: str = "") -> Iterator[None]:
    """One line for people or machines instead of a traceback, and the exit code that fits."""
    try:
        yield
    except GatewayError as error:
        ours = isinstance(error, (ConfigError, InvalidRequest))
        if as_json:
            said: dict[str, Any] = {"type": error.type, "code": error.code, "message": str(error)}
            typer.echo(_json({"error": {**said, "retry_after": error.retry_after}}), err=True)
        else:
            upstream = isinstance(error, (UpstreamError, AllModesFailed))
            message = " ".join(str(error).split())  # an upstream's words may run over lines
            typer.echo(f"error: {message}{f'; {hint}' if hint and upstream else ''}", err=True)
        raise typer.Exit(2 if ours else 1) from None


def _messages(prompt: str, system: str) -> str | list[Message]:
    if prompt == "-":
        prompt = sys.stdin.read()
    check_messages(prompt)
    if not system:
        return prompt
    return [{"role": "system", "content": system}, {"role": "user", "content": prompt}]


def _listeners(verbose: bool, log_json: bool) -> list[Listener]:
    if not (verbose or log_json):
        return []
    from gateway.telemetry.logs import log_listener  # noqa: PLC0415

    return [log_listener(json=log_json)]


def _described(generation: Generation) -> dict[str, Any]:
    """An answer as data; the names are public."""
    served: dict[str, Any] = msgspec.to_builtins(generation.served)
    usage = generation.usage
    return {
        "id": generation.id,
        "text": generation.text,
        "finish_reason": generation.finish_reason,
        **served,
        "duration_s": generation.duration_s,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
        },
    }


def _remark(generation: Generation) -> str:
    """What is to be known of an answer that is not what was asked for, in one line; or nothing."""
    served = generation.served
    told = []
    if served.degraded:
        told.append(f"{served.mode} answered for {served.requested_mode} ({served.reason})")
        if served.until:
            told.append(f"{served.requested_mode} may be back in {served.until:.0f} s")
    if served.cached:
        state = "stale, because upstream failed" if served.stale else "from the cache"
        told.append(f"{state}, {served.age_s:.0f} s old")
    if generation.finish_reason == "length":
        told.append("cut off at the longest answer allowed")
    return f"note: {'; '.join(told)}" if told else ""


def _json(data: Any) -> str:
    return msgspec.json.encode(data).decode()
