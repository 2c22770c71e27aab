"""A client of a server, as plain as can be: a connection a question, so that none is ever stale."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack

from tests.benchmarks.library.asking import Given, Kinds, messages


async def make(stack: AsyncExitStack, given: Given) -> Kinds:
    """One piece only: failures are measured with it."""
    port, path = given.server["port"], given.server["path"]
    headers = "".join(f"{name}: {value}\r\n" for name, value in given.server["headers"].items())
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n{headers}"

    async def whole(number: int) -> object:
        question = {**given.server["body"], "messages": messages(number)}
        data = json.dumps(question).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
            answer = await reader.read(-1)
        finally:
            writer.close()
        status = answer[9:12].decode() or "no answer"
        if status != "200":
            raise RuntimeError(status)
        return answer

    return {"json": whole}
