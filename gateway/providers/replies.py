"""An HTTP answer as chunks: as events, or in one piece.

bytes --SSESplitter--> payloads --decoding--> chunks
"""

from __future__ import annotations

import msgspec

from gateway.errors import ErrorKind, StreamInterrupted, UpstreamError
from gateway.generation import Chunk
from gateway.providers.decoding import (
    NOT_JSON,
    CarefulDecoder,
    fast_chunk,
    fast_whole,
    fold_reasoning,
    text_chunk,
)
from gateway.sse import END, EventTooLarge, SSESplitter
from gateway.transport.base import Response


class WholeReply(msgspec.Struct, eq=False):
    """An answer in one piece: one chunk, then the end."""

    _decoder: CarefulDecoder
    _response: Response
    _ended: bool = False

    async def read(self) -> list[Chunk]:
        if self._ended:
            return []
        decoder = self._decoder
        try:
            body = await self._response.read_all()
            chunk = fast_whole(body) or decoder.chunk(body)
            if chunk is None:
                raise decoder.malformed("JSON that is no completion")
        except UpstreamError as error:
            error.target = error.target or decoder.target
            self._response.close()
            raise
        self._ended = True  # to its end, so there is nothing to release
        return [chunk]

    def close(self) -> None:
        if not self._ended:
            self._response.close()


class StreamReply(msgspec.Struct, eq=False):
    """An answer as events. Ends cleanly only behind `[DONE]` or a finish reason for each choice."""

    _decoder: CarefulDecoder
    _response: Response
    _n: int
    _splitter: SSESplitter = msgspec.field(default_factory=SSESplitter)
    _begun: bool = False
    _plain: bool = False  # the next event is likely to be text and nothing else
    _ended: bool = False
    _error: UpstreamError | None = None  # raised once what came before it was read
    _seen: set[int] = set()  # choices other than 0 that have begun
    _finished: set[int] = set()

    async def read(self) -> list[Chunk]:
        while not self._ended:
            if self._error is not None:
                raise self._error
            try:
                data = await self._response.read_some()
            except UpstreamError as error:
                chunks = self._over(error)
            else:
                chunks = self._decode(data) if data else self._over(None)
            if chunks:
                return chunks
        return []

    def close(self) -> None:
        self._response.close()

    def _decode(self, data: bytes) -> list[Chunk]:
        """The chunks that one read of the socket brought. An error waits for the next read."""
        chunks: list[Chunk] = []
        try:
            for payload in self._splitter.feed(data):
                if self._plain:
                    try:
                        chunks.append(text_chunk(payload))
                        continue
                    except NOT_JSON:
                        self._plain = False
                if payload.strip() == END:
                    self._finish()
                    break
                if payload and not (self._begun and self._add_usual(payload, chunks)):
                    self._add_carefully(payload, chunks)
            if self._splitter.error is not None:
                raise self._decoder.error(self._splitter.error)
        except EventTooLarge:
            self._fail(self._decoder.malformed("an event too large to read"))
        except UpstreamError as error:
            self._fail(error)
        return chunks

    def _add_usual(self, payload: bytes, chunks: list[Chunk]) -> bool:
        """Add an event that only adds to choices. Returns False if it needs a careful look."""
        if b'"error"' in payload:
            return False  # an error is one whatever else the event bears
        try:
            chunk = fast_chunk(payload)
        except NOT_JSON:
            return False
        for choice in chunk.choices:
            if choice.finish_reason is not None:
                return False
            if choice.index:
                self._seen.add(choice.index)
            if choice.delta.reasoning is not None:
                fold_reasoning(choice.delta)
        if not chunk.choices:
            return False
        chunks.append(chunk)
        # Text after reasoning or tool calls: more of it may be plain from here on.
        self._plain = bool(chunk.text) and chunk.choices[0].logprobs is None
        return True

    def _add_carefully(self, payload: bytes, chunks: list[Chunk]) -> None:
        chunk = self._decoder.chunk(payload)
        if chunk is None:
            return
        self._plain = not self._begun  # behind the first event text is the likeliest
        self._begun = True
        for choice in chunk.choices:
            self._seen.add(choice.index)
            if choice.finish_reason is not None:
                self._finished.add(choice.index)
        chunks.append(chunk)

    def _over(self, cut: UpstreamError | None) -> list[Chunk]:
        """The body is over, by itself or cut: a clean end only if every choice said that it ended.

        Behind the last finish reason nothing but the usage can be missing.
        """
        chunks: list[Chunk] = []
        if cut is None and self._splitter.pending:
            chunks = self._decode(b"\n\n")  # some servers leave out the last blank line
        if self._ended or (self._error and self._error.kind is not ErrorKind.MALFORMED):
            return chunks
        if 0 in self._finished and self._seen <= self._finished and len(self._finished) >= self._n:
            self._finish()
            return chunks
        name = self._decoder.target
        error = cut or StreamInterrupted(f"{name} ended its answer without saying that it is done")
        error.target = name
        self._fail(error)
        return chunks

    def _finish(self) -> None:
        self._ended = True
        self._response.release()

    def _fail(self, error: UpstreamError) -> None:
        self._error = error
        self._response.close()
