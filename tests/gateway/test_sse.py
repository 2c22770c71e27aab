"""The splitter against a slow reference that reads byte by byte, as the specification does."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.sse import DONE, END, PING, EventTooLarge, SSESplitter, encode


@dataclass
class Reference:
    """WHATWG event stream interpretation, literally: lines, then fields, then dispatch."""

    payloads: list[bytes] = field(default_factory=list)
    error: bytes | None = None
    line: bytes = b""
    data: bytes = b""
    name: bytes = b""
    after_cr: bool = False

    def read(self, stream: bytes) -> Reference:
        if stream.startswith(b"\xef\xbb\xbf"):
            stream = stream[3:]
        for value in stream:
            byte = bytes([value])
            if byte == b"\n" and self.after_cr:
                self.after_cr = False
                continue
            self.after_cr = byte == b"\r"
            if byte in b"\r\n":
                self.end_of_line()
                self.line = b""
            else:
                self.line += byte
        return self

    def end_of_line(self) -> None:
        if self.error is not None:
            return
        if self.line == b"":
            self.dispatch()
        elif self.line.startswith(b":"):
            pass
        elif b":" in self.line:
            name, value = self.line.split(b":", 1)
            self.process(name, value[1:] if value.startswith(b" ") else value)
        else:
            self.process(self.line, b"")

    def process(self, name: bytes, value: bytes) -> None:
        if name == b"data":
            self.data += value + b"\n"
        elif name == b"event":
            self.name = value

    def dispatch(self) -> None:
        if self.data:
            if self.name == b"error":
                self.error = self.data[:-1]
            else:
                self.payloads.append(self.data[:-1])
        self.data = self.name = b""

    @property
    def pending(self) -> bool:
        unfinished_line = self.line != b"" and not self.line.startswith(b":")
        return self.error is None and (self.data != b"" or unfinished_line)


def split(stream: bytes, cuts: list[int]) -> tuple[list[bytes], SSESplitter]:
    splitter, payloads = SSESplitter(), []
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    for start, end in itertools.pairwise(edges):
        payloads += splitter.feed(stream[start:end])
    return payloads, splitter


fragments = st.sampled_from(
    [
        b'data: {"a":1}\n\n',
        b'data: {"b":2}\n\n',
        b"data: x\n",
        b"data:y\n",
        b"data:  two spaces\r\n",
        b"data\n",
        b"data:\n\n",
        b"data: [DONE]\n\n",
        b"event: error\n",
        b"event:message\r",
        b"event\n",
        b"id:1\n",
        b"retry: 5\n",
        b": ping\n\n",
        b":HTTP_STATUS/429\n",
        b"error: x\n",
        b"data : x\n",
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"\x85\xe2\x80\xa8",  # line ends to str.splitlines, none to this format
        b"\xef\xbb\xbf",
        b":",
        b"data: ",
        b"d",
    ]
)
streams = st.lists(fragments | st.binary(max_size=3), max_size=14).map(b"".join)


@settings(max_examples=300, deadline=None)
@given(stream=streams, cuts=st.lists(st.integers(0, 400), max_size=8))
@example(stream=b"data: a\r\n\r\ndata: b\r\n\r\n", cuts=[8, 10])
@example(stream=b"data: a\n\ndata: b\n\ndata: c\nid: 3\n\n", cuts=[])
@example(stream=b"\xef\xbb\xbfdata: a\n\n", cuts=[1, 2])
def test_any_stream_cut_anywhere_reads_as_the_specification_says(
    stream: bytes, cuts: list[int]
) -> None:
    expected = Reference().read(stream)
    payloads, splitter = split(stream, cuts)
    assert payloads == expected.payloads
    assert splitter.error == expected.error
    if expected.error is None:
        assert splitter.pending == expected.pending


def test_every_single_cut_of_a_mixed_stream() -> None:
    stream = (
        b": hello\n\ndata: one\n\ndata:two\r\ndata: lines\r\n\r\nid: 7\rdata: three\r\r"
        b'data: {"x": "\xed\x95\x9c"}\n\ndata: [DONE]\n\n'
    )
    expected = [b"one", b"two\nlines", b"three", b'{"x": "\xed\x95\x9c"}', END]
    for cut in range(len(stream)):
        assert split(stream, [cut])[0] == expected
    assert split(stream, list(range(len(stream))))[0] == expected


def test_an_error_event_is_kept_apart_and_ends_the_stream() -> None:
    splitter = SSESplitter()
    payloads = splitter.feed(
        b'data: {"n":1}\n\nid:1\nevent:error\n:HTTP_STATUS/429\ndata:{"code":"Throttling"}\n\n'
        b'data: {"n":2}\n\n'
    )
    assert payloads == [b'{"n":1}']
    assert splitter.error == b'{"code":"Throttling"}'
    assert splitter.feed(b"data: late\n\n") == []
    assert splitter.feed(b"data: later") == []
    assert not splitter.pending


def test_the_name_of_an_event_does_not_outlive_it() -> None:
    splitter = SSESplitter()
    assert splitter.feed(b"event: error\n\ndata: fine\n\n") == [b"fine"]
    assert splitter.error is None


@pytest.mark.parametrize(
    ("stream", "pending"),
    [
        (b"", False),
        (b"data: x\n\n", False),
        (b"data: x\n", True),
        (b"data: x", True),
        (b"dat", True),
        (b": comm", False),
        (b"data: x\n\n: ping\n\n", False),
    ],
)
def test_pending_tells_an_event_cut_short(stream: bytes, pending: bool) -> None:
    splitter = SSESplitter()
    splitter.feed(stream)
    assert splitter.pending is pending


@pytest.mark.parametrize(
    "pieces",
    [
        [b"data: " + b"x" * 200 + b"\n\n"],
        [b"data: " + b"x" * 60, b"x" * 60],
        [b"data: " + b"x" * 40 + b"\n"] * 3,
        [b":" + b"c" * 60, b"c" * 60],
    ],
    ids=["at once", "one line in pieces", "many lines", "a comment"],
)
def test_an_event_past_the_limit_is_an_error(pieces: list[bytes]) -> None:
    splitter = SSESplitter(max_event_bytes=100)
    with pytest.raises(EventTooLarge, match="100 bytes"):
        for piece in pieces:
            splitter.feed(piece)


def test_the_limit_is_per_event_not_per_stream() -> None:
    splitter = SSESplitter(max_event_bytes=100)
    event = b"data: " + b"x" * 80 + b"\n\n"
    for start in range(0, 50 * len(event), 33):
        stretch = (event * 51)[start : start + 33]
        splitter.feed(stretch)
    assert splitter.feed(event * 40 if not splitter.pending else b"\n\n" + event * 40)


def test_a_long_line_in_small_pieces_is_joined_once() -> None:
    splitter = SSESplitter()
    piece = b"x" * 1000
    assert splitter.feed(b"data: ") == []
    for _ in range(3000):
        assert splitter.feed(piece) == []
    assert splitter.feed(b"\n\n") == [piece * 3000]


@settings(max_examples=100, deadline=None)
@given(payloads=st.lists(st.binary(max_size=30), max_size=6), cut=st.integers(0, 200))
def test_what_is_encoded_splits_into_itself(payloads: list[bytes], cut: int) -> None:
    stream = PING + PING.join(encode(payload) for payload in payloads) + DONE
    expected = [p.replace(b"\r\n", b"\n").replace(b"\r", b"\n") for p in payloads]
    assert split(stream, [cut])[0] == [*expected, END]
