"""How many tokens, before anybody has counted: for limits, not for bills."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from gateway.generation import Generation, Message

_PER_MESSAGE: Final = 4  # role and delimiters of the chat template
_PER_PART: Final = 1000  # an image or a sound; Qwen-VL's default is up to 1,280 for an image
_UNSAID: Final = 4096  # where neither the caller nor the mode bounds the answer
_MOST: Final = 10**9  # no model writes more, and sums of it fit any store


def text_tokens(text: str) -> int:
    """About 4 characters a token in Latin script, 1.6 in Chinese, Japanese and Korean.

    The characters beyond ASCII are told by their size in UTF-8: 3 bytes is taken for a wide one,
    2 (Cyrillic, Greek, Arabic) for half of one, which comes out near the 2.3 characters a token
    that Qwen's vocabulary needs for them.
    """
    length = len(text)
    if text.isascii():
        return (length + 3) // 4
    wide = min(length, (len(text.encode("utf-8", "surrogatepass")) - length) / 2)
    return int((length - wide) / 4 + wide / 1.6) + 1


def prompt_tokens(messages: Iterable[Message], params: Mapping[str, Any]) -> int:
    """An estimate of a prompt's tokens, tools included."""
    total = 0
    for message in messages:
        total += _PER_MESSAGE
        for name, value in message.items():
            if name != "role":
                total += _tokens(value)
    for name in ("tools", "functions", "response_format"):
        if name in params:
            total += _tokens(params[name])
    return total


def answer_tokens(params: Mapping[str, Any], mode: Mapping[str, Any]) -> int:
    """The most tokens an answer may have, all of `n` choices together.

    Args:
        params: what the caller asked for; what makes no sense is left to the upstream to refuse.
        mode: the mode's own sampling fields.
    """
    longest = _longest(params) or _longest(mode) or _UNSAID
    return min(_MOST, longest * max(1, min(128, _count(params.get("n")))))


def says_how_long(params: Mapping[str, Any]) -> bool:
    """Whether a caller bounds the answer."""
    return _longest(params) > 0


def written_tokens(generation: Generation) -> int:
    """An estimate of an answer's tokens, for upstreams that do not count them."""
    return sum(_tokens(choice.get("message")) for choice in generation.choices)


def _longest(fields: Mapping[str, Any]) -> int:
    return _count(fields.get("max_completion_tokens")) or _count(fields.get("max_tokens"))


def _count(value: Any) -> int:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return min(_MOST, value) if whole and value > 0 else 0


def _tokens(value: Any) -> int:
    """Of everything textual in a JSON value, however deep; without recursion, so at any depth."""
    total, rest = 0, [value]
    while rest:
        value = rest.pop()
        if isinstance(value, str):
            total += text_tokens(value)
        elif isinstance(value, Mapping):
            kind = value.get("type")
            if isinstance(kind, str) and kind in _MEDIA:
                total += _PER_PART
            else:
                rest.extend(value.keys())
                rest.extend(value.values())
        elif isinstance(value, (list, tuple)):
            rest.extend(value)
        elif value is not None:
            total += 1
    return total


_MEDIA: Final = frozenset(
    {"image_url", "image", "input_image", "input_audio", "video_url", "video", "file"}
)
