"""From raw bytes to something with a shape: what a fuzzer's bytes mean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, TypeVar

_T = TypeVar("_T")

CANARY: Final = "canary-5f1d"
"""In texts: no error may quote it."""

_TEXTS: Final = (
    "", "x", CANARY, "user", "assistant", "system", "tool", "function", "text", "image_url", "stop",
    "data:image/png;base64,AA", "input_text", "message", "function_call", "function_call_output",
    "json_schema", "auto", "creative", "fast", "\r\ninjected: 1", "\x00", "\ud7ff", "🌲", "a" * 300,
    "${HOME}", "${NOT_SET_ANYWHERE}", "${", "http://127.0.0.1:1/v1", "simulated", "vllm", "1e400",
)  # fmt: skip
_NUMBERS: Final = (0, 1, -1, 2, 5, 65536, 2**53, -(2**63), 2**63, 10**30, 0.5, -0.0, 1e308, 1e-9)


class Material:
    """Reads choices off raw bytes; when they are used up every choice is the first."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, below: int) -> int:
        """From 0 to `below` - 1."""
        if self._at >= len(self._data):
            return 0
        value = self._data[self._at]
        self._at += 1
        if below > 256 and self._at < len(self._data):
            value = value * 256 + self._data[self._at]
            self._at += 1
        return value % below

    def choice(self, among: Sequence[_T]) -> _T:
        """One of them."""
        return among[self.number(len(among))]

    def rest(self) -> bytes:
        """What is left."""
        data = self._data[self._at :]
        self._at = len(self._data)
        return data

    def pieces(self, data: bytes) -> list[bytes]:
        """`data`, cut here and there."""
        cuts = sorted(self.number(len(data) + 1) for _ in range(self.number(6)))
        return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    def text(self) -> str:
        """A text that is of interest."""
        return self.choice(_TEXTS)

    def value(self, names: Sequence[str], depth: int = 4) -> Any:
        """Anything JSON or TOML can say, objects with these names in them."""
        which = self.number(9 if depth else 5)
        if which < 4:
            return (self.text(), self.choice(_NUMBERS), bool(self.number(2)), None)[which]
        if which == 4:
            return [self.text() for _ in range(self.number(4))]
        if which == 5:
            return [self.value(names, depth - 1) for _ in range(self.number(4))]
        return self.table(names, depth - 1)

    def spoilt(self, good: Any, names: Sequence[str]) -> Any:
        """A copy of something good in which a few places are something else, gone or new."""
        copy = json.loads(json.dumps(good))
        for _ in range(1 + self.number(3)):
            self._spoil(copy, names)
        return copy

    def _spoil(self, within: Any, names: Sequence[str]) -> None:
        while isinstance(within, (dict, list)) and within:
            places = sorted(within) if isinstance(within, dict) else range(len(within))
            place = self.choice(places)
            inner = within[place]
            if isinstance(inner, (dict, list)) and inner and self.number(4):
                within = inner
                continue
            match self.number(4):
                case 0:
                    del within[place]
                case 1 if isinstance(within, dict):
                    within[self.choice(names)] = self.value(names, 2)
                case _:
                    within[place] = self.value(names, 2)
            return

    def table(self, names: Sequence[str], depth: int = 4) -> dict[str, Any]:
        """An object with some of these names."""
        return {self.choice(names): self.value(names, depth) for _ in range(self.number(8))}
