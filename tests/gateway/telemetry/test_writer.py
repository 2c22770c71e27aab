"""The thread that writes the log: a slow, full or closed file never reaches who logs."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from gateway.events import ConfigReloaded
from gateway.telemetry.logs import log_listener
from gateway.telemetry.writer import LineWriter

RELOADED = ConfigReloaded(at=1.0, result="applied")


class Gate(io.StringIO):
    """A file that takes nothing until it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.open = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.asked.set()
        assert self.open.wait(10)
        return super().write(text)


@contextmanager
def pipe() -> Iterator[tuple[int, TextIO]]:
    """A pipe that nobody reads yet: its reading end and the file that writes."""
    reader, writer = os.pipe()
    try:
        with os.fdopen(writer, "w", encoding="utf-8") as file:
            yield reader, file
    finally:
        os.close(reader)


def notice(total: int) -> bytes:
    return b"lost %d" % total


def test_lines_come_out_in_order_and_whole() -> None:
    with pipe() as (reader, file):
        writer = LineWriter(file, notice)
        for number in range(1_000):
            writer.msg(f"line {number}")
        writer.close()
        file.close()
        with os.fdopen(os.dup(reader)) as read:
            assert read.read().splitlines() == [f"line {number}" for number in range(1_000)]
    assert writer.dropped == 0


def test_a_slow_file_holds_nobody_up_and_what_it_lost_is_said() -> None:
    file = Gate()
    writer = LineWriter(file, notice, most=3)
    writer.msg("first")
    assert file.asked.wait(10)  # the thread has it, and is stuck with it
    for number in range(10):
        writer.msg(f"line {number}")
    assert writer.dropped == 7
    file.open.set()
    writer.close()
    assert file.getvalue().splitlines() == ["first", "line 0", "line 1", "line 2", "lost 7"]


def test_a_pipe_whose_reader_went_away_is_nobodys_trouble() -> None:
    reader, writing = os.pipe()
    with os.fdopen(writing, "w") as file:
        os.close(reader)
        writer = LineWriter(file, notice)
        writer.msg("line")
        writer.close()
    assert writer.dropped == 1


def test_a_file_closed_elsewhere_is_nobodys_trouble() -> None:
    file = io.StringIO()
    writer = LineWriter(file, notice)
    file.close()
    writer.msg("line")
    writer.close()
    writer.msg("too late")
    writer.close()
    assert writer.dropped == 2


def test_a_pipe_that_was_made_non_blocking_loses_nothing() -> None:
    with pipe() as (reader, file):
        os.set_blocking(file.fileno(), False)
        writer = LineWriter(file, notice)
        for _ in range(200):
            writer.msg("x" * 999)  # three times what a pipe holds
        file.close()
        read = 0
        while read < 200_000 and (data := os.read(reader, 65_536)):
            read += len(data)
        writer.close()
    assert (read, writer.dropped) == (200_000, 0)


def test_a_log_in_the_background_writes_the_same_lines() -> None:
    with pipe() as (reader, file):
        log = log_listener(file=file, background=True)
        log(RELOADED)
        log.close()
        log.close()
        assert json.loads(os.read(reader, 65_536))["event"] == "config_reloaded"
        assert log.writer is not None
        log.writer.dropped = 5
    assert log_listener(file=io.StringIO()).writer is None


def test_lost_lines_are_reported_in_json_too() -> None:
    file = Gate()
    log = log_listener(file=file, background=True)
    log(RELOADED)
    assert file.asked.wait(10)
    assert log.writer is not None
    log.writer.dropped = 5
    log(RELOADED)
    file.open.set()
    log.close()
    last = json.loads(file.getvalue().splitlines()[-1])
    assert (last["event"], last["level"], last["total"]) == ("log_lines_dropped", "warning", 5)


def test_a_program_ends_though_nobody_reads_its_log_and_writes_all_if_somebody_does() -> None:
    code = """
import sys
from gateway.events import ConfigReloaded
from gateway.telemetry.logs import log_listener
log = log_listener(background=True)
for _ in range(int(sys.argv[1])):
    log(ConfigReloaded(at=1.0, result="applied"))
"""
    command = [sys.executable, "-c", code]
    heard = subprocess.run([*command, "500"], capture_output=True, text=True, check=True)
    assert len(heard.stderr.splitlines()) == 500
    with pipe() as (_, file):
        subprocess.run([*command, "5000"], stderr=file, check=True, timeout=20)
