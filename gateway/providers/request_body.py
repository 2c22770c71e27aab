"""From a call to the body one kind of backend understands, by its row in `capabilities`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from gateway.errors import UpstreamRejected
from gateway.generation import Message
from gateway.providers import qwen
from gateway.providers.base import Call
from gateway.providers.capabilities import Capabilities, Continuation, Thinking
from gateway.providers.repairs import Lessons, learn

_T = TypeVar("_T")

_NOTHING = Lessons()
_MOST_REPAIRS = 3  # a request may break more than one limit


class Accent:
    """How one target wants to be asked.

    Args:
        row: the backend's capabilities.
        model: its name there, "" to leave the field out.
        lessons: what this target has refused before.
    """

    __slots__ = ("_merge_system", "_unwanted", "lessons", "model", "row")

    def __init__(self, row: Capabilities, model: str, lessons: Lessons = _NOTHING) -> None:
        self.row = row
        self.model = model
        self.lessons = lessons
        self._unwanted = row.dropped | lessons.refused
        self._merge_system = row.thinking is Thinking.QWEN or qwen.is_qwen(model)

    def body(self, call: Call, *, stream: bool) -> dict[str, Any]:
        """Write a call down as a chat with this target; the call itself is left as it is.

        Args:
            call: what is asked.
            stream: whether the answer is wanted as a stream.
        """
        row = self.row
        body = dict(call.params)
        if not _LENGTHS.isdisjoint(body):
            _cap_answer(body, row, self.lessons)
        if call.thinking is not None or call.prefix or not _KNOBS.isdisjoint(body):
            _set_thinking(body, call, row, self.model, self.lessons)
        if call.raw:
            _count_logprobs_as_a_chat(body)
        body["messages"] = _messages(call, row, merge_system=self._merge_system)
        if call.prefix and row.continuation is Continuation.FLAG:
            body["continue_final_message"] = True
            body["add_generation_prompt"] = False
        return self._in_its_words(body, stream=stream)

    def raw_body(self, call: Call, *, stream: bool) -> dict[str, Any]:
        """Write a raw call down for `/completions`: a text, and nothing only a chat knows.

        Args:
            call: one user message, whose text is completed; a prefix simply goes on where it ends.
            stream: whether the answer is wanted as a stream.
        """
        body = {name: value for name, value in call.params.items() if name not in _CHAT_ONLY}
        most = body.pop("max_completion_tokens", None)
        if most is not None:
            body["max_tokens"] = most
        if body.get("logprobs") is True:  # here it is how many
            body["logprobs"] = call.params.get("top_logprobs") or 1
        body["prompt"] = call.messages[0]["content"] + call.prefix
        return self._in_its_words(body, stream=stream)

    def _in_its_words(self, body: dict[str, Any], *, stream: bool) -> dict[str, Any]:
        """Rename, bring into range and leave out, as this backend needs it."""
        row = self.row
        if row.renamed:
            for ours, theirs in row.renamed.items():
                if ours in body:
                    body.setdefault(theirs, body.pop(ours))
        if row.ranges:
            for name, limits in row.ranges.items():
                value = body.get(name)
                if value is not None:
                    body[name] = limits.clamp(value)
        body["stream"] = stream
        if not stream:
            body.pop("stream_options", None)
        elif row.usage_option:
            given = body.get("stream_options")
            body["stream_options"] = {**given, **_USAGE} if given else _USAGE
        if self.model:
            body["model"] = self.model
        if row.accepted is not None:
            body = {name: value for name, value in body.items() if name in row.accepted}
        if self._unwanted and not self._unwanted.isdisjoint(body):
            body = {name: value for name, value in body.items() if name not in self._unwanted}
        return body


_USAGE = {"include_usage": True}


class Speaker:
    """Asks one target, and learns from its refusals how to ask better (`repairs`).

    The lesson is kept, so a second request within one `ask` happens once in the life of a target.

    Args:
        accent: what is known of the target from the start.
    """

    __slots__ = ("accent",)

    def __init__(self, accent: Accent) -> None:
        self.accent = accent

    async def ask(self, attempt: Callable[[Call, Accent], Awaitable[_T]], call: Call) -> _T:
        """Run one attempt; if it is refused for a reason that can be mended, mend it and repeat.

        Args:
            attempt: sends the call; called again with a better accent after such a refusal.
            call: what is asked.

        Raises:
            UpstreamError: what the attempt raised, and nothing could be learnt from.
        """
        accent = self.accent
        for _ in range(_MOST_REPAIRS):
            try:
                return await attempt(call, accent)
            except UpstreamRejected as error:
                better = learn(accent.lessons, error)
                if better is None:
                    raise
                # Another call may have learnt something meanwhile.
                accent = Accent(accent.row, accent.model, better | self.accent.lessons)
                self.accent = accent
        return await attempt(call, accent)


def _cap_answer(body: dict[str, Any], row: Capabilities, lessons: Lessons) -> None:
    """Say the length of the answer once, in the field this backend knows, within its bounds.

    A mode's profile sets `max_tokens`; where both are there, the other is the caller's.
    """
    newer = body.get("max_completion_tokens")
    if newer is not None:
        body.pop("max_tokens", None)
        if row.max_tokens:
            body[row.max_tokens] = body.pop("max_completion_tokens")
    elif "max_tokens" in lessons.refused and "max_tokens" in body:
        body["max_completion_tokens"] = body.pop("max_tokens")
    asked = body.get("max_tokens")
    if lessons.max_tokens is not None and isinstance(asked, int) and asked > lessons.max_tokens:
        body["max_tokens"] = lessons.max_tokens


_LENGTHS = frozenset({"max_tokens", "max_completion_tokens"})
_KNOBS = frozenset({"enable_thinking", "thinking_budget", "reasoning_effort"})
# What a chat template or a chat parser would have to understand.
_CHAT_ONLY = _KNOBS | {
    *("chat_template", "chat_template_kwargs", "add_generation_prompt", "continue_final_message"),
    *("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"),
    *("messages", "top_logprobs"),
}


def _count_logprobs_as_a_chat(body: dict[str, Any]) -> None:
    """A raw prompt asks for a number of `logprobs`, a chat for `top_logprobs`."""
    number = body.get("logprobs")
    if isinstance(number, int) and not isinstance(number, bool):
        body["logprobs"] = True
        body.setdefault("top_logprobs", number)


def _set_thinking(
    body: dict[str, Any], call: Call, row: Capabilities, model: str, lessons: Lessons
) -> None:
    """Ask for reasoning, or for none, the backend's own way.

    The caller's own `enable_thinking` or `reasoning_effort` goes before the mode's wish, and a
    response format or a forced tool goes before thinking where the two exclude each other.
    """
    if row.thinking is Thinking.NONE:
        return
    want = call.thinking
    effort = body.get("reasoning_effort")
    if isinstance(body.get("enable_thinking"), bool):
        want = body.pop("enable_thinking")
    elif effort is not None:
        want = effort != "none"
    # No server can continue a text behind a reasoning part (llama.cpp and DashScope refuse to).
    if call.prefix or (want and row.thinking is Thinking.QWEN and _excludes_thinking(body)):
        want = False
    if lessons.always_thinks:
        want = None
    budget = body.pop("thinking_budget", None)
    if want is not None:
        _WAYS[row.thinking](body, want, model, budget)
    if budget is not None and row.budget and want is not False and _takes_budget(body, row, model):
        body[row.budget] = budget


def _excludes_thinking(body: dict[str, Any]) -> bool:
    """DashScope answers 400 to JSON output or a forced tool while thinking."""
    response_format = body.get("response_format")
    wants_json = isinstance(response_format, dict) and response_format.get("type") != "text"
    return wants_json or body.get("tool_choice") not in (None, "auto", "none")


def _takes_budget(body: dict[str, Any], row: Capabilities, model: str) -> bool:
    """DashScope refuses a budget beside an effort, and models that do not think refuse both."""
    if row.thinking is not Thinking.QWEN:
        return True
    return "reasoning_effort" not in body and qwen.switch(model) is not qwen.Switch.NONE


def _by_model(body: dict[str, Any], want: bool, model: str, budget: Any) -> None:
    how = qwen.switch(model)
    if how is qwen.Switch.FLAG:
        body["enable_thinking"] = want
    elif how is qwen.Switch.EFFORT:
        _by_effort(body, want, model, budget)


def _by_template(body: dict[str, Any], want: bool, _model: str, _budget: Any) -> None:
    given = body.get("chat_template_kwargs")
    given = given if isinstance(given, dict) else {}
    body["chat_template_kwargs"] = {"enable_thinking": want, **given}


def _by_flag(body: dict[str, Any], want: bool, _model: str, _budget: Any) -> None:
    body["enable_thinking"] = want


def _by_effort(body: dict[str, Any], want: bool, _model: str, budget: Any) -> None:
    if not want:
        body["reasoning_effort"] = "none"
    else:
        words = qwen.effort(budget if isinstance(budget, int) else None)
        body.setdefault("reasoning_effort", words)


_WAYS = {
    Thinking.QWEN: _by_model,
    Thinking.TEMPLATE: _by_template,
    Thinking.FLAG: _by_flag,
    Thinking.EFFORT: _by_effort,
}


def _messages(call: Call, row: Capabilities, *, merge_system: bool) -> list[Message]:
    """The messages with what this backend's chat template would refuse put right.

    Untouched, and not copied, in the usual case that nothing is wrong.
    """
    messages = call.messages
    for index, message in enumerate(messages):
        role = message.get("role")
        if role == "user":
            continue
        if (
            (role == "assistant" and ("reasoning" in message or "reasoning_content" in message))
            or (role == "system" and index and merge_system)
            or role == "developer"
        ):
            messages = _mended(messages, row, merge_system)
            break
    return _with_prefix(messages, call.prefix, row) if call.prefix else messages


def _mended(messages: list[Message], row: Capabilities, merge_system: bool) -> list[Message]:
    """Messages this backend's chat template takes.

    `developer` becomes `system`, past reasoning gets the name it has here, and for Qwen, whose
    template raises otherwise, all system messages become one, in front.
    """
    system: list[Any] = []
    others: list[Message] = []
    for message in messages:
        role = message.get("role")
        if role == "developer" and not row.developer:
            message = {**message, "role": "system"}  # noqa: PLW2901
            role = "system"
        elif role == "assistant":
            message = _with_reasoning_in(message, row.reasoning_in)  # noqa: PLW2901
        if role == "system" and merge_system:
            system.append(message.get("content"))
        else:
            others.append(message)
    return [{"role": "system", "content": _joined(system)}, *others] if system else others


def _with_reasoning_in(message: Message, name: str) -> Message:
    other = "reasoning" if name == "reasoning_content" else "reasoning_content"
    if other not in message:
        return message
    renamed = dict(message)
    reasoning = renamed.pop(other)
    renamed.setdefault(name, reasoning)
    return renamed


def _joined(contents: list[Any]) -> Any:
    """Several contents as one: text if all are text, else the list of all their parts."""
    if all(isinstance(content, str) for content in contents):
        return "\n\n".join(contents)
    parts: list[Any] = []
    for content in contents:
        if isinstance(content, list):
            parts.extend(content)
        elif content:
            parts.append({"type": "text", "text": content})
    return parts


def _with_prefix(messages: list[Message], prefix: str, row: Capabilities) -> list[Message]:
    """End with the assistant's words so far; the caller may have put first words there itself."""
    last = messages[-1]
    if last.get("role") == "assistant" and isinstance(last.get("content"), str):
        messages, prefix = messages[:-1], last["content"] + prefix
    begun: Message = {"role": "assistant", "content": prefix}
    if row.continuation is Continuation.PARTIAL:
        begun["partial"] = True
    return [*messages, begun]
