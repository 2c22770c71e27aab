"""Is every target well? Ask each one something tiny, and say what is wrong and how to mend it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from gateway.config import Config
from gateway.errors import ConfigError, ErrorKind, UpstreamError
from gateway.modes import ModeOptions, TargetOptions
from gateway.providers.address import shown
from gateway.providers.base import Call, Provider
from gateway.providers.capabilities import KINDS, capabilities
from gateway.providers.embeddings import Embedder, build_embedder
from gateway.registry import Clients, api_key, build_provider, build_store, resolve
from gateway.transport.base import Origin, request_head

_QUESTION = "Say yes."
_MAX_TOKENS = 5
# They shape long answers; with so few tokens some servers would refuse them.
_LEFT_OUT = frozenset({"max_completion_tokens", "thinking_budget", "response_format"})

_REMEDIES = {
    ErrorKind.CONNECT: "start the server at {where}, or mend base_url in [{table}]",
    ErrorKind.TIMEOUT: "it is loading, too busy, or behind a firewall; try a longer --timeout",
    ErrorKind.SERVER: "the fault is in the server: its own log says more",
    ErrorKind.MALFORMED: "this is no OpenAI-compatible API: base_url usually ends in /v1",
    ErrorKind.INTERRUPTED: "it broke off in mid-answer: the server's own log says more",
    ErrorKind.EMPTY: "ask it by hand: its model or its chat template may be broken",
    ErrorKind.OVERLOADED: "it is there, but full; check again when it is less busy",
    ErrorKind.LOADING: "it is loading its model; check again in a minute",
    ErrorKind.RATE: "address and key are right, the quota is used up; check again later",
    ErrorKind.BURST: "address and key are right, the rate grew too quickly; check again later",
    ErrorKind.TOKENS: "address and key are right, the token quota is used up; check again later",
    ErrorKind.BILLING: "the account behind {key} needs paying, or the model needs buying",
    ErrorKind.AUTH: "look at {key}: key, address and model must belong together",
    ErrorKind.MODEL: "{where}/models says what there is; set model in [{table}]",
    ErrorKind.CONTEXT: "its context window is too small to be useful: serve it with a larger one",
    ErrorKind.CONTENT: "its content filter stops even a greeting: look at the account's settings",
    ErrorKind.REQUEST: "it refuses what [{owner}] asks for: look at the sampling fields there",
}


class TargetCheck(msgspec.Struct, kw_only=True):
    """How one target of one mode is.

    Attributes:
        mode: whose target it is; "embeddings" of those that embed.
        table: where it stands in the file, such as `modes.creative.targets[0]`.
        kind: the backend's kind; what `auto` stands for here and now.
        where: its address, "" if it has none.
        model: the model asked for; "" is whatever is served there.
        ok: whether it is well; None if it was not asked.
        first_token_s: seconds from the question to the first token, or to the vectors.
        problem: what is wrong, "" if nothing.
        remedy: what to do about it.
        built: False if not even a request could be made: the file is to be mended.
    """

    mode: str
    table: str
    kind: str
    where: str = ""
    model: str = ""
    ok: bool | None = None
    first_token_s: float | None = None
    problem: str = ""
    remedy: str = ""
    built: bool = True


@dataclass(slots=True)
class _Candidate:
    check: TargetCheck
    options: TargetOptions
    mode: ModeOptions | None  # None embeds
    provider: Provider | None = None
    embedder: Embedder | None = None


async def check(
    config: Config, *, probe: bool = True, timeout_s: float = 30.0
) -> list[TargetCheck]:
    """Check every target of a configuration.

    Args:
        config: what to check.
        probe: ask each target for a few tokens; False only builds them.
        timeout_s: patience with one target, seconds; a local model's start is not counted.

    Raises:
        ConfigError: `[cache]` names a store that cannot be built.
    """
    candidates = [
        _candidate(options, f"modes.{mode.name}.targets[{number}]", mode)
        for mode in config.modes
        for number, options in enumerate(mode.targets)
    ]
    candidates += [
        _candidate(options, f"embeddings.targets[{number}]", None)
        for number, options in enumerate(config.embeddings)
    ]
    clients = Clients()
    try:
        await build_store(config.cache, time.monotonic).aclose()
        for candidate in candidates:
            _build(candidate, clients)
        if probe:
            # One after the other where targets fail together, so that none slows another down.
            domains: dict[str, list[_Candidate]] = {}
            for candidate in candidates:
                if built := candidate.provider or candidate.embedder:
                    domains.setdefault(built.domain, []).append(candidate)
            await asyncio.gather(*(_ask(one, clients, timeout_s) for one in domains.values()))
    finally:
        for candidate in candidates:
            if candidate.provider is not None:
                await candidate.provider.aclose()
        await clients.aclose()
    return [candidate.check for candidate in candidates]


def exit_code(checks: Sequence[TargetCheck]) -> int:
    """0 if all is well, 1 if a target is not, 2 if the configuration is to be mended."""
    if not all(found.built for found in checks):
        return 2
    return 1 if any(found.ok is False for found in checks) else 0


def table(checks: Sequence[TargetCheck]) -> str:
    """The checks as a table, and below it what is wrong and what to do."""
    rows = [("mode", "kind", "model", "address", "first token", "")]
    for found in checks:
        first = "" if found.first_token_s is None else f"{found.first_token_s * 1000:.0f} ms"
        result = {True: "ok", False: "NOT WELL", None: "not asked"}[found.ok]
        rows.append((found.mode, found.kind, found.model, found.where, first, result))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    for found in checks:
        if found.problem:
            lines += ["", f"[{found.table}] {found.problem}"]
            lines += [f"  -> {found.remedy}"] if found.remedy else []
    return "\n".join(lines)


def _candidate(options: TargetOptions, place: str, mode: ModeOptions | None) -> _Candidate:
    options = resolve(options, mode.name if mode else "")
    address = options.base_url
    if options.kind in KINDS:
        address = address or capabilities(options.kind).base_url
    found = TargetCheck(
        mode=mode.name if mode else "embeddings",
        table=place,
        kind=options.kind,
        where=shown(address),
        model=options.model,
    )
    return _Candidate(found, options, mode)


def _build(candidate: _Candidate, clients: Clients) -> None:
    found = candidate.check
    try:
        if candidate.mode is None:
            client = clients.for_target(candidate.options)
            candidate.embedder = build_embedder(candidate.options, client, api_key)
            return
        candidate.provider = build_provider(candidate.options, clients)
        found.model = candidate.provider.model
    except ConfigError as error:
        found.ok, found.built = False, False
        found.problem = f"{error.key}: {error.reason}" if error.key else error.reason


async def _ask(candidates: Sequence[_Candidate], clients: Clients, timeout_s: float) -> None:
    for candidate in candidates:
        found = candidate.check
        try:
            await _wake(candidate.provider)
            async with asyncio.timeout(timeout_s):
                await _check_health(candidate, clients)
                if candidate.embedder is not None:
                    found.first_token_s = await _vectors_s(candidate.embedder)
                else:
                    found.first_token_s = await _first_token_s(candidate)
            found.ok = True
        except UpstreamError as error:
            found.ok, found.problem = False, str(error)
            found.remedy = _remedy(candidate, error.kind)
        except TimeoutError:
            found.ok, found.problem = False, f"no answer within {timeout_s:g} s"
            found.remedy = _remedy(candidate, ErrorKind.TIMEOUT)


def _remedy(candidate: _Candidate, kind: ErrorKind) -> str:
    found, options = candidate.check, candidate.options
    if options.kind == "local" and kind is ErrorKind.CONNECT:
        return ""  # the model process has told all there is to tell
    key = options.api_key_env or options.api_key_file or f"api_key_env in [{found.table}]"
    return _REMEDIES[kind].format(
        where=found.where, table=found.table, owner=found.table.partition(".targets")[0], key=key
    )


async def _wake(provider: Provider | None) -> None:
    """Start a local model: that takes a second, and is no first token."""
    from gateway.providers.local import LocalProvider  # noqa: PLC0415

    if isinstance(provider, LocalProvider):
        await provider.process.endpoint()


async def _check_health(candidate: _Candidate, clients: Clients) -> None:
    """A cheap health check, where there is one, tells a loading server from a broken one."""
    kind, where = candidate.options.kind, candidate.check.where
    path = capabilities(kind).health if kind in KINDS else ""
    if not path:
        return
    origin = Origin.from_url(where)
    client = clients.for_target(candidate.options)
    response = await client.request(origin, request_head("GET", path, origin), None)
    try:
        await response.read_all()
        response.release()
    finally:
        response.close()
    if response.status == 503:
        raise UpstreamError(f"{path} says 503, not ready", kind=ErrorKind.LOADING, status=503)


async def _vectors_s(embedder: Embedder) -> float:
    """Ask for one vector, and time it."""
    clock = asyncio.get_running_loop().time
    began = clock()
    await embedder.embed({"input": _QUESTION}, "check")
    return clock() - began


async def _first_token_s(candidate: _Candidate) -> float:
    """Ask for a few tokens the way the mode would, and time the first one."""
    provider, mode = candidate.provider, candidate.mode
    assert provider is not None and mode is not None
    sampling = {key: value for key, value in mode.sampling.items() if key not in _LEFT_OUT}
    call = Call(
        [{"role": "user", "content": _QUESTION}],
        {**sampling, "max_tokens": _MAX_TOKENS},
        request_id="check",
        thinking=mode.thinking,
    )
    clock = asyncio.get_running_loop().time
    began = clock()
    first_token_s: float | None = None
    reply = await provider.open(call)
    try:
        while chunks := await reply.read():
            if first_token_s is None and any(chunk.carries() for chunk in chunks):
                first_token_s = clock() - began
    finally:
        reply.close()
    if first_token_s is None:
        raise UpstreamError("it answered with nothing", kind=ErrorKind.EMPTY)
    return first_token_s
