"""One frame for all viewers, none for nobody, and nobody waits for the slow ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.server.broadcast import Broadcast
from gateway.simulator.clock import run


class Frames:
    """Counts the frames it makes: `whole 1`, `news 2`, ..."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def __call__(self, whole: bool) -> bytes:
        self.made.append(f"{'whole' if whole else 'news'} {len(self.made) + 1}")
        return self.made[-1].encode()


async def read(frames: AsyncIterator[bytes], into: list[tuple[float, str]]) -> None:
    now = asyncio.get_running_loop().time
    async for frame in frames:
        into += [(now(), frame.decode())]


def test_a_viewer_sees_how_it_stands_at_once_and_then_each_second() -> None:
    async def scenario() -> None:
        broadcast, seen = Broadcast(Frames()), []
        viewer = asyncio.create_task(read(broadcast.frames(), seen))
        await asyncio.sleep(2.5)
        broadcast.close()
        await viewer
        assert seen == [(0.0, "whole 1"), (1.0, "news 2"), (2.0, "news 3")]

    run(scenario)


def test_a_frame_is_made_once_for_all_viewers() -> None:
    async def scenario() -> None:
        frames = Frames()
        broadcast = Broadcast(frames)
        seen: list[list[tuple[float, str]]] = [[] for _ in range(50)]
        viewers = [asyncio.create_task(read(broadcast.frames(), into)) for into in seen]
        await asyncio.sleep(3.5)
        assert len(broadcast) == 50
        assert sum(made.startswith("news") for made in frames.made) == 3
        assert all(into[1:] == seen[0][1:] for into in seen)
        broadcast.close()
        await asyncio.gather(*viewers)

    run(scenario)


def test_news_do_not_wait_for_the_next_second_and_come_together() -> None:
    async def scenario() -> None:
        broadcast, seen = Broadcast(Frames()), []
        viewer = asyncio.create_task(read(broadcast.frames(), seen))
        await asyncio.sleep(0.3)
        for _ in range(100):
            broadcast.wake()
        await asyncio.sleep(0.9)
        assert [at for at, _ in seen] == pytest.approx([0.0, 0.4])
        broadcast.close()
        await viewer

    run(scenario)


def test_nothing_is_made_when_nobody_looks() -> None:
    async def scenario() -> None:
        frames = Frames()
        broadcast = Broadcast(frames)
        broadcast.wake()
        await asyncio.sleep(100)
        assert frames.made == []
        viewer = broadcast.frames()
        assert await anext(viewer) == b"whole 1"
        await viewer.aclose()
        await asyncio.sleep(100)
        assert len(frames.made) <= 2
        assert len(broadcast) == 0
        assert await anext(broadcast.frames()) != b""  # and it begins again for the next one
        broadcast.close()

    run(scenario)


def test_who_reads_too_slowly_is_let_go_and_the_others_see_nothing_of_it() -> None:
    async def scenario() -> None:
        broadcast, seen = Broadcast(Frames()), []
        reading = asyncio.create_task(read(broadcast.frames(), seen))
        slow = broadcast.frames()
        await anext(slow)
        await asyncio.sleep(30)
        assert len(broadcast) == 1
        assert [frame async for frame in slow] == []
        assert len(seen) == 30
        broadcast.close()
        await reading

    run(scenario)


def test_closing_ends_every_stream_at_once_and_for_good() -> None:
    async def scenario() -> None:
        broadcast = Broadcast(Frames())
        viewers = [asyncio.create_task(read(broadcast.frames(), [])) for _ in range(5)]
        await asyncio.sleep(0.5)
        broadcast.close()
        broadcast.close()
        await asyncio.gather(*viewers)
        assert asyncio.get_running_loop().time() == 0.5
        assert broadcast.full
        assert [frame async for frame in broadcast.frames()] == []

    run(scenario)


def test_there_is_a_most_of_viewers() -> None:
    async def scenario() -> None:
        broadcast = Broadcast(Frames(), most=1)
        first = broadcast.frames()
        await anext(first)
        assert broadcast.full
        assert [frame async for frame in broadcast.frames()] == []
        await first.aclose()
        assert not broadcast.full
        broadcast.close()

    run(scenario)


def test_frames_that_cannot_be_made_end_the_streams_instead_of_freezing_them() -> None:
    async def scenario() -> None:
        def frame(whole: bool) -> bytes:
            if not whole:
                raise RuntimeError("broken")
            return b"whole"

        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        broadcast, seen = Broadcast(frame), []
        await read(broadcast.frames(), seen)
        assert seen == [(0.0, "whole")]
        assert len(broadcast) == 0

    run(scenario)
