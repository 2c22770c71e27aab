"""Gateway: the one object an application holds."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from gateway.clock import Clock
from gateway.config import Config
from gateway.detectors.latency import LatencyDetector
from gateway.errors import ConfigError, GatewayError, InvalidRequest
from gateway.events import ConfigReloaded, EventBus, Listener, SharingChanged
from gateway.generation import CacheControl, Generation, Message
from gateway.middleware.base import Answer
from gateway.ratings import Ratings
from gateway.reload import InForce
from gateway.streaming import GenerationStream
from gateway.validation import build_request

if TYPE_CHECKING:
    import httpx

    from gateway.embedding.embeddings import Embeddings
    from gateway.embedding.vectors import Embedding
    from gateway.pipeline import Pipeline
    from gateway.policies.quota import Accounts
    from gateway.stores.shared import SharedStore
    from gateway.sync import LoopThread

_T = TypeVar("_T")


class Gateway:
    """Routes generation requests to modes, downshifts when Qwen falters, and heals by itself.

    Belongs to the event loop it is first used in. Close it, or use it as a context manager::

        async with Gateway.from_toml("config.toml") as gateway:
            answer = await gateway.generate("Name three woody perfume notes", mode="creative")

    Args:
        config: what to serve; see `Config`.
        clock: monotonic seconds; tests and simulations bring their own.
        listeners: told of every event, see `gateway.events`.
        shared: where the worker processes of one machine agree on modes; None is one worker. Who
            made it closes it.

    Raises:
        ConfigError: a target cannot be built.
    """

    def __init__(
        self,
        config: Config,
        *,
        clock: Clock = time.monotonic,
        listeners: Sequence[Listener] = (),
        shared: SharedStore | None = None,
    ) -> None:
        self._clock = clock
        self._shared = shared
        self._events = EventBus()
        for listener in listeners:
            self._events.listen(listener)
        self._latency = LatencyDetector()
        self._ratings = Ratings(config.feedback.path)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sync: LoopThread | None = None
        self._closed = False
        self._embeddings: Embeddings | None = None
        if shared is not None:
            shared.on_change = self._sharing
        self._in_force = InForce(config, self._build, self._events, clock)

    @classmethod
    def from_toml(
        cls,
        path: str | os.PathLike[str] = "config.toml",
        *,
        listeners: Sequence[Listener] = (),
    ) -> Self:
        """Build a gateway from a configuration file.

        Raises:
            ConfigError: names file, table, key and the remedy.
        """
        return cls(Config.from_toml(path), listeners=listeners)

    @classmethod
    def wrap(
        cls,
        client: object | Mapping[str, object],
        *,
        model: str | Mapping[str, str] = "",
        config: Mapping[str, Any] | None = None,
        clock: Clock = time.monotonic,
        listeners: Sequence[Listener] = (),
    ) -> Self:
        """Put the ladder over a Qwen client that already exists.

        Args:
            client: any sync or async callable `prompt -> str`; an object shaped like `AsyncOpenAI`,
                `OpenAI` or dashscope's `Generation`; or `{mode: client}`, best mode first. One
                client alone serves creative, balanced and fast with each mode's own sampling.
            model: what an OpenAI-like client is asked for: one name, or `{mode: name}`, which
                also names the modes of one client. Functions need none.
            config: further tables as in config.toml (`circuit`, `cache`, ...), without `modes`.
            clock, listeners: see `Gateway`.

        Raises:
            ConfigError: not something that can be called, or an OpenAI-like client without a model.
        """
        from gateway.wrapping import wrapped_config  # noqa: PLC0415

        built = wrapped_config(client, model, config or {})
        return cls(built, clock=clock, listeners=listeners)

    # -- asking ---------------------------------------------------------------------------------

    async def generate(
        self,
        prompt: str | Sequence[Message],
        mode: str | None = None,
        *,
        deadline: float | None = None,
        allow_degrade: bool = True,
        cache: CacheControl | bool = True,
        tenant: str = "",
        priority: int = 1,
        key: str = "",
        raw: bool = False,
        trace: str = "",
        generation_id: str = "",
        extra_body: Mapping[str, Any] | None = None,
        **sampling: Any,
    ) -> Generation:
        """Answer a prompt, from the best mode at or below the one asked for that can.

        Args:
            prompt: a string, or chat messages in OpenAI's shape.
            mode: a mode's name; None is the best mode.
            deadline: seconds until there must be an answer or an error; None is the mode's own.
            allow_degrade: False raises `CircuitOpen` instead of answering from a lower mode.
            cache: False neither reads nor keeps; see `CacheControl` for more.
            tenant: answers are never shared between tenants.
            priority: 0 goes first when a queue forms.
            key: whose limits this counts against: the name of a `[keys.NAME]` table.
            raw: True sends a string to the backend's `/completions` route as it stands, without a
                chat template, where the backend has that route.
            trace: the caller's W3C `traceparent`, for telemetry.
            generation_id: what the answer's `id` shall be, unique; made up if empty.
            extra_body: body fields whose names are arguments here too, such as vLLM's `priority`.
            **sampling: any other body field (`temperature`, `tools`, ...), passed on whole.

        Returns:
            The whole answer; its `mode`, `degraded` and `reason` say honestly who answered.

        Raises:
            InvalidRequest: an argument is wrong; nothing was sent.
            AllModesFailed: no allowed mode could answer.
            CircuitOpen, AdmissionRejected, DeadlineExceeded, UpstreamError: see `gateway.errors`.
        """
        self._check_loop()
        pipeline = self._in_force.pipeline
        request = build_request(
            prompt,
            mode=self._mode(mode),
            now=self._clock(),
            params=sampling,
            extra_body=extra_body,
            deadline_s=deadline,
            allow_degrade=allow_degrade,
            cache=cache,
            tenant=tenant,
            priority=priority,
            key=key,
            raw=raw,
            trace=trace,
            generation_id=generation_id,
        )
        answer = await pipeline.answer(request)
        try:
            return await answer.finish()
        finally:
            answer.close()

    def stream(
        self,
        prompt: str | Sequence[Message],
        mode: str | None = None,
        *,
        deadline: float | None = None,
        allow_degrade: bool = True,
        cache: CacheControl | bool = True,
        tenant: str = "",
        priority: int = 1,
        key: str = "",
        raw: bool = False,
        trace: str = "",
        generation_id: str = "",
        on_interrupt: str = "error",
        extra_body: Mapping[str, Any] | None = None,
        **sampling: Any,
    ) -> GenerationStream:
        """Answer a prompt piece by piece; arguments as in `generate`.

        Use as `async with gateway.stream(...) as stream: async for chunk in stream: ...`. Entering
        waits for the first content token: until then a failing mode is walked past unseen.

        Args:
            on_interrupt: when the answer breaks after its first token: "error" raises
                `StreamInterrupted` with the partial text; "continue" lets the next mode go on
                where the text stopped, if its backend can.
        """
        request = build_request(
            prompt,
            mode=self._mode(mode),
            now=self._clock(),
            params=sampling,
            extra_body=extra_body,
            deadline_s=deadline,
            allow_degrade=allow_degrade,
            cache=cache,
            tenant=tenant,
            priority=priority,
            key=key,
            raw=raw,
            trace=trace,
            generation_id=generation_id,
            buffered=False,
            on_interrupt=on_interrupt,
        )

        def open_answer() -> Awaitable[Answer]:
            self._check_loop()
            return self._in_force.pipeline.answer(request)

        return GenerationStream(request.id, open_answer)

    async def embed(
        self,
        texts: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]],
        model: str | None = None,
        *,
        deadline: float | None = None,
        tenant: str = "",
        key: str = "",
        trace: str = "",
        generation_id: str = "",
        extra_body: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> Embedding:
        """Turn texts into vectors; a target that fails is walked past to another of its model.

        Args:
            texts: a text or several, or their tokens.
            model: a model of `[[embeddings.targets]]`; None is the first one's.
            deadline: seconds until there must be vectors or an error; None is 120.
            tenant, key, trace, generation_id, extra_body: as in `generate`.
            **fields: any other body field (`dimensions`, ...), passed on whole.

        Raises:
            InvalidRequest: an argument is wrong, or no target has that model.
            CircuitOpen, AdmissionRejected, AllModesFailed, DeadlineExceeded, UpstreamError: see
                `gateway.errors`.
        """
        self._check_loop()
        pipeline = self._in_force.pipeline
        return await self._embedder().embed(
            pipeline.config,
            pipeline.accounts,
            texts,
            model,
            {**fields, **(extra_body or {})},
            deadline=deadline,
            tenant=tenant,
            key=key,
            trace=trace,
            generation_id=generation_id,
        )

    def generate_sync(
        self, prompt: str | Sequence[Message], mode: str | None = None, **options: Any
    ) -> Generation:
        """`generate` for scripts without an event loop; arguments and errors are the same.

        The gateway then lives in a thread of its own; call `close` when done.
        """
        return self._in_thread(self.generate(prompt, mode, **options))

    def transport(self, mode: str | None = None) -> httpx.AsyncBaseTransport:
        """An httpx transport: puts the ladder under any httpx-based SDK, in one line::

            AsyncOpenAI(http_client=httpx.AsyncClient(transport=gateway.transport()), ...)

        Args:
            mode: answers requests whose `model` is not a mode's name; None is the best mode.
        """
        from gateway.openai_api.api import OpenAIAPI  # noqa: PLC0415
        from gateway.transport.httpx import FunctionTransport  # noqa: PLC0415

        return FunctionTransport(OpenAIAPI(self, self._mode(mode)).handle)

    # -- telling --------------------------------------------------------------------------------

    async def feedback(
        self, generation_id: str, rating: float, *, tenant: str = "", **fields: Any
    ) -> None:
        """Keep a rating of one generation; a later one replaces it.

        Args:
            generation_id: `Generation.id`.
            rating: 1 (worst) to 5 (best).
            tenant: who rates.
            **fields: anything JSON can say, such as `user_id="user_123"`.

        Raises:
            InvalidRequest: no such id, rating out of range, or a field JSON cannot say.
            GatewayError: the file cannot be written; the message names it.
        """
        await self._ratings.add(generation_id, rating, tenant, fields)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Hear every event from now on; call the result to stop. See `gateway.events`."""
        return self._events.listen(listener)

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._in_force.pipeline.config

    @property
    def modes(self) -> list[str]:
        """The modes' names, best first."""
        return self._in_force.pipeline.modes.names

    @property
    def accounts(self) -> Accounts:
        """What each `[keys.NAME]` may use and has used; the same from reload to reload."""
        return self._in_force.pipeline.accounts

    def status(self) -> dict[str, Any]:
        """How things stand, as plain data; needs no traffic and changes nothing."""
        from gateway.status import status_of  # noqa: PLC0415

        status = status_of(self._in_force.pipeline, self._latency, self._ratings.quality)
        return {**status, "config": self._in_force.status(), "listener_faults": self._events.faults}

    # -- steering -------------------------------------------------------------------------------

    def force(self, mode: str, how: str) -> None:
        """Operators' switch for one mode.

        Args:
            mode: the mode's name.
            how: "open" sends its requests down the ladder, "closed" ignores its circuit, "auto"
                gives it back to the circuit, closed and ramping up.

        Raises:
            InvalidRequest: no such mode, or another word.
        """
        if how not in ("open", "closed", "auto"):
            raise InvalidRequest(f"how must be open, closed or auto, got {how!r}", param="how")
        ladder = self._in_force.pipeline.ladder
        ladder.rungs[ladder.index(self._mode(mode))].circuit.force(how)

    def reload(self, config: Config | str | os.PathLike[str] | None = None) -> None:
        """Swap the configuration. Requests under way keep the old one; circuits keep their state.

        For a while afterwards the new one is on trial: if failures jump, the gateway returns to
        the last configuration that was well, and says so in an event and in `status`.

        Args:
            config: a configuration or a file; None reads the present file again.

        Raises:
            ConfigError: the new configuration is broken; the old one stays in force.
        """
        try:
            if config is None:
                config = self._in_force.pipeline.config.source
                if config is None:
                    raise ConfigError("this gateway was not built from a file; pass a Config")
            if not isinstance(config, Config):
                config = Config.from_toml(config)
            self._in_force.apply(config)
        except ConfigError as error:
            self._events.emit(
                ConfigReloaded(at=self._clock(), result="refused", detail=error.message)
            )
            raise

    async def aclose(self) -> None:
        """Stop what is under way, close connections and child processes. Idempotent."""
        if self._closed:
            return
        self._closed = True
        await self._in_force.aclose()
        if self._embeddings is not None:
            await self._embeddings.aclose()
        await self._ratings.aclose()

    def close(self) -> None:
        """`aclose` for scripts that used `generate_sync`."""
        if self._sync is not None:
            self._sync.run(self.aclose())
            self._sync.stop()
            self._sync = None

    async def __aenter__(self) -> Self:
        self._check_loop()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    # -- inside ---------------------------------------------------------------------------------

    def _mode(self, mode: str | None) -> str:
        modes = self._in_force.pipeline.modes
        if mode is None:
            return modes[0].name
        modes.index(mode if isinstance(mode, str) else repr(mode))
        return mode

    def _build(self, config: Config, before: Pipeline | None) -> Pipeline:
        # Here and not at the top: whoever only imports us does not pay for what a pipeline needs.
        from gateway.pipeline import Pipeline  # noqa: PLC0415

        if config.embeddings:
            self._embedder().places.configure(config)
        return Pipeline(
            config, self._clock, self._events, self._latency, self._ended, before, self._shared
        )

    def _embedder(self) -> Embeddings:
        from gateway.embedding.embeddings import Embeddings  # noqa: PLC0415

        if self._embeddings is None:
            self._embeddings = Embeddings(self._clock, self._events)
        return self._embeddings

    def _sharing(self, shared: bool, detail: str) -> None:
        self._events.emit(SharingChanged(at=self._clock(), shared=shared, detail=detail))

    def _ended(
        self, by: Pipeline, generation: Generation | None, error: BaseException | None
    ) -> None:
        if generation is not None:
            self._ratings.remember(generation)
        self._in_force.hear(by, generation, error)

    def _check_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise GatewayError(
                "this gateway belongs to another event loop; make one per loop, "
                "or use generate_sync from threads"
            )
        if self._closed:
            raise GatewayError("this gateway is closed")

    def _in_thread(self, work: Coroutine[Any, Any, _T]) -> _T:
        from gateway.sync import BEGINNING, LoopThread  # noqa: PLC0415

        with BEGINNING:
            if self._sync is None:
                self._sync = LoopThread()
            sync = self._sync
        return sync.run(work)
