"""Gateways in several real processes over one file: real clocks, real locks, real kill -9.

Each process serves a function as its only upstream and does what it is told, line by line; nothing
here waits for time to pass, but for lines to come.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

WORKER = """
import asyncio, json, sys
from gateway import Gateway
from gateway.config import Config
from gateway.stores.shared import SharedStore
from gateway.wrapping import wrapped_config

broken, gate = False, None

async def upstream(prompt):
    if gate is not None:
        await gate.wait()
    if broken:
        raise ConnectionError("down")
    yield "well"

async def main():
    global broken, gate
    tables = json.loads(sys.argv[2])
    config = wrapped_config({"creative": upstream, "fast": fast}, "", tables)
    store, heard = SharedStore(sys.argv[1]), []
    async with Gateway(config, listeners=[heard.append], shared=store) as gateway:
        lines, asked = asyncio.StreamReader(), []
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        print("ready", flush=True)
        while line := await lines.readline():
            word, *rest = line.decode().split()
            said = None
            if word == "ask":
                said = (await gateway.generate(line.decode() + str(len(asked)), cache=False)).mode
                asked.append(said)
            elif word == "probe":
                while circuit(gateway).phase() != "probe_due":
                    await asyncio.sleep(0)
                gate = asyncio.Event()
                asked.append(asyncio.ensure_future(gateway.generate("x", cache=False)))
                while circuit(gateway).in_flight == 0:
                    await asyncio.sleep(0)
                said = circuit(gateway).phase()
            elif word == "break":
                broken = True
            elif word == "mend":
                broken = False
            elif word == "force":
                gateway.force("creative", rest[0])
            elif word == "phase":
                circuit(gateway).look()
                said = [circuit(gateway).phase(), circuit(gateway).epoch]
            elif word == "moves":
                said = [e.new for e in heard if type(e).__name__ == "CircuitChanged"]
            elif word == "alone":
                said = [e.shared for e in heard if type(e).__name__ == "SharingChanged"]
            print(json.dumps(said), flush=True)

async def fast(prompt):
    return "well"

def circuit(gateway):
    return gateway._in_force.pipeline.ladder.rungs[0].circuit

asyncio.run(main())
"""


class Worker:
    def __init__(self, path: Path, circuit: dict[str, Any]) -> None:
        tables = json.dumps({"circuit": circuit, "admission": {}})
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(path), tables],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def does(self, line: str) -> Any:
        self.says(line)
        return json.loads(self.read())

    def says(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class Crew(list[Worker]):
    def all(self, line: str) -> list[Any]:
        """What each says, all asked at the same time."""
        for worker in self:
            worker.says(line)
        return [json.loads(worker.read()) for worker in self]


def until(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < give_up


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shared.sqlite"


@pytest.fixture
def crew(path: Path, request: pytest.FixtureRequest) -> Iterator[Crew]:
    options: dict[str, Any] = {"break_duration_s": 300.0, **getattr(request, "param", {})}
    crew = Crew(Worker(path, options) for _ in range(2))
    try:
        assert [worker.read() for worker in crew] == ["ready"] * 2
        yield crew
    finally:
        for worker in crew:
            worker.end()


def test_workers_open_one_circuit_with_three_failures_in_all(crew: Crew) -> None:
    assert crew.all("ask") == ["creative"] * 2
    crew.all("break")
    assert crew.all("ask") == ["fast"] * 2  # one failure each
    assert crew.all("phase") == [["closed", 0]] * 2
    assert crew[1].does("ask") == "fast"
    assert crew.all("phase") == [["open", 1]] * 2
    crew.all("mend")
    assert crew.all("ask") == ["fast"] * 2  # nobody asks it any more
    assert crew.all("moves") == [["open"]] * 2
    crew[0].does("force open")
    assert crew.all("phase") == [["forced_open", 2]] * 2
    crew[1].does("force auto")
    assert crew.all("phase") == [["recovering", 3]] * 2
    assert crew.all("ask") == ["creative"] * 2


@pytest.mark.parametrize(
    "crew",
    [{"break_duration_s": 0.05, "break_growth": 1000.0, "probe_lease_s": 0.5, "ramp_s": 0.0}],
    indirect=True,
)
def test_a_worker_killed_while_it_probes_leaves_the_place_to_another(crew: Crew) -> None:
    probing, other = crew
    crew.all("break")
    assert [crew.all("ask") for _ in range(2)] == [["fast"] * 2] * 2
    crew.all("mend")
    assert probing.does("probe") == "probing"
    assert other.does("ask") == "fast"
    probing.process.send_signal(signal.SIGKILL)
    probing.process.wait()
    # When its lease is over another probes: that it died says nothing about the mode, which would
    # hold 50 s had the probe failed.
    until(lambda: other.does("ask") == "creative")
    assert other.does("phase")[0] == "closed"
    assert other.does("moves")[-2:] == ["probing", "closed"]


def test_workers_go_on_without_their_file(crew: Crew, path: Path) -> None:
    for file in path.parent.glob("shared.sqlite*"):
        file.unlink()
    path.mkdir()
    until(lambda: crew[0].does("ask") and crew[0].does("alone"))  # within a second it notices
    assert crew.all("ask") == ["creative"] * 2
    crew[0].does("break")
    assert [crew[0].does("ask") for _ in range(3)] == ["fast"] * 3
    assert crew[0].does("phase")[0] == "open"
    path.rmdir()
    until(lambda: crew[0].does("ask") and crew[0].does("alone")[-1])  # on a busy machine, again
    # What it learned alone it tells when it next looks: what brought it back may have been another
    # call to the file, less than a glance (50 ms) after the last look at the circuit.
    assert crew[0].does("phase")[0] == "open"
    until(lambda: crew[1].does("ask") == "fast")  # it meets the others again, within a second
    assert crew[1].does("phase")[0] == "open"
