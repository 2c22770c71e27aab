"""What happens to every HTTP request: route -> who is it -> handler -> headers -> told once.

No framework: what brings calls in and carries replies out is drawn in `edge.py`.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Self

from gateway.clock import Clock
from gateway.errors import GatewayError
from gateway.events import HTTPFinished, Listener, traceparent
from gateway.gateway import Gateway
from gateway.openai_api.api import OpenAIAPI
from gateway.openai_api.errors import envelope, error_reply
from gateway.openai_api.router import Router
from gateway.openai_api.words import Body, Call, Reply, Routes
from gateway.server.access import Access
from gateway.server.cors import CORS
from gateway.validation import new_id


class Service:
    """Answers HTTP requests from a gateway.

    Args:
        gateway: who answers.
        access: knows who may call.
        extra: routes beside OpenAI's: operations, the dashboard.
        tell: told of every request's end; the gateway's own listeners hear the rest.
        clock: monotonic seconds.

    Attributes:
        in_flight: requests being answered.
        stopping: True once the service stops: tasks cancelled from then on are not their client's
            doing, and say so to it.
    """

    def __init__(
        self,
        gateway: Gateway,
        access: Access,
        *extra: Routes,
        tell: Listener | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        options = gateway.config.server
        api = OpenAIAPI(
            gateway,
            options.default_mode or None,
            strict_models=True,
            headers_s=options.stream_headers_s,
        )
        self.gateway = gateway
        self.access = access
        self.router = Router(api.routes, *extra)
        self.in_flight = 0
        self.stopping = False
        self._tell = tell
        self._cors = CORS(options.cors_origins) if options.cors_origins else None
        self._clock = clock

    async def handle(self, call: Call) -> Reply:
        """Answer one request. Raises nothing but cancellation."""
        started = self._clock()
        self.in_flight += 1
        route, error = "", None
        try:
            if self._cors is not None and (reply := self._cors.preflight(call)) is not None:
                status, headers, body = reply
            else:
                route, handler = self.router.find(call)
                call.caller = self.access.check(call, route, self.gateway.config)
                status, headers, body = await handler(call)
        except Exception as failed:  # noqa: BLE001 - no fault of ours may reach a client raw
            error = failed
            status, headers, body = error_reply(failed)
            if not isinstance(failed, GatewayError):
                log_fault(failed)
        except BaseException as broken:
            self._ended(call, route, started, self._clock(), 0, broken)
            raise
        now = self._clock()
        headers = [
            *headers,
            ("x-request-id", _request_id(call)),
            ("openai-processing-ms", f"{(now - started) * 1000:.0f}"),
        ]
        if call.caller.key:
            headers += self.gateway.accounts.headers(call.caller.key)
        if self._cors is not None:
            headers += self._cors.headers(call)
        if isinstance(body, bytes):
            self._ended(call, route, started, now, status, error)
            return status, headers, body
        return status, headers, _Streamed(body, partial(self._closed, call, route, started, status))

    def error(self, call: Call, error: GatewayError) -> Reply:
        """The reply to a request that never became a whole call: too long, too slow, no HTTP."""
        reply = self.refusal(call, error)
        self.in_flight += 1
        now = self._clock()
        self._ended(call, "", now, now, reply[0], error)
        return reply

    def refusal(self, call: Call, error: GatewayError) -> Reply:
        """The same for one whose end was told already."""
        status, headers, body = error_reply(error)
        headers = [*headers, ("x-request-id", _request_id(call))]
        if self._cors is not None:
            headers += self._cors.headers(call)
        return status, headers, body

    def _closed(
        self, call: Call, route: str, started: float, status: int, error: BaseException | None
    ) -> None:
        self._ended(call, route, started, self._clock(), status, error)

    def _ended(
        self,
        call: Call,
        route: str,
        started: float,
        now: float,
        status: int,
        error: BaseException | None,
    ) -> None:
        """Tell of a request's end; status 0 if there was no answer to it."""
        self.in_flight -= 1
        if self._tell is None:
            return
        gone = False
        if error is not None and isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            gone = not self.stopping
        caller, trace = call.caller, call.headers.get("traceparent")
        self._tell(
            HTTPFinished(  # in the order of its fields: see `Event`
                now,
                call.method,
                route,
                status or (499 if gone else 503),
                "" if error is None else _code(error, gone),
                call.id or _request_id(call),
                call.generation_id,
                caller.tenant,
                caller.key,
                now - started,
                len(call.body),
                gone,
                not call.generation_id,
                traceparent(trace) if trace else "",
            )
        )


class _Streamed:
    """A body that tells of its end, once: read out, broken, or closed before either.

    Not a generator: one that was never begun would close without a word.
    """

    def __init__(self, body: Body, ended: Callable[[BaseException | None], None]) -> None:
        self._body = body
        self._ended: Callable[[BaseException | None], None] | None = ended

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self._body.__anext__()
        except StopAsyncIteration:
            await self._close(None)
            raise
        except BaseException as error:
            await self._close(error)
            raise

    async def aclose(self) -> None:
        """Let go of the answer. Idempotent."""
        await self._close(GeneratorExit())

    def last_words(self, error: BaseException) -> bytes:
        """What to send before it is broken off."""
        words: Callable[[BaseException], bytes] = getattr(self._body, "last_words", error_event)
        return words(error)

    async def _close(self, how: BaseException | None) -> None:
        ended, self._ended = self._ended, None
        if ended is None:
            return
        try:
            await self._body.aclose()
        finally:
            ended(how)


def error_event(error: BaseException) -> bytes:
    """What breaks off a stream of events."""
    return b"data: " + envelope(error) + b"\n\n"


def log_fault(error: BaseException) -> None:
    """Log where a fault of ours happened; not its message, which may quote what was asked."""
    where = "".join(traceback.format_tb(error.__traceback__))
    logging.getLogger(__name__).error("%s\n%s", type(error).__name__, where)


def _code(error: BaseException, gone: bool) -> str:
    if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
        return "client_disconnected" if gone else "shutting_down"
    return error.code if isinstance(error, GatewayError) else "internal_error"


def _request_id(call: Call) -> str:
    """The client's own id if it is fit to be logged, else the generation's or a new one."""
    if not call.id:
        said = call.headers.get("x-request-id")
        if said is not None and not _fit(said):
            said = None
        call.id = said or call.generation_id or new_id().replace("gen-", "req-", 1)
    return call.id


def _fit(said: str) -> bool:
    return len(said) <= 128 and said.isascii() and said.isprintable() and " " not in said
