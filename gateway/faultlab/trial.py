"""One run under way: what a check may do to a gateway, and what it may learn of the upstream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gateway.errors import GatewayError
from gateway.faultlab.client import Answer, Leave, get, post
from gateway.faultlab.judge import Finding, graded, look
from gateway.faultlab.scenario import ROLES, Grade, Run, Verdict
from gateway.faultlab.upstream import Hit
from gateway.faultlab.words import LENGTHS, Question, answer_text, questions

_NUMBERS = questions()


class LabUnreachable(GatewayError):
    """The lab's upstream does not answer its caller."""

    code = "lab_unreachable"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a gateway is asked for one run.

    Attributes:
        url: up to and including `/v1`.
        model: what it is asked for.
        headers: sent with each request.
    """

    url: str
    model: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Trial:
    """A run against one gateway.

    Args:
        run: what is run.
        address: where the gateway is.
        lab_url: where the upstream is.
        patience: multiplies how long is waited; what is demanded stays as it is.

    Attributes:
        form: "stream" or "whole": how `ask` asks unless told otherwise.
    """

    def __init__(self, run: Run, address: Address, lab_url: str, *, patience: float = 1.0) -> None:
        self.run = run
        self.form = run.form
        self.address = address
        self._lab_url = lab_url
        self._patience = patience

    # -- asking ---------------------------------------------------------------------------------

    def number(self) -> str:
        """A question's number that nobody used before."""
        return next(_NUMBERS)

    async def ask(
        self,
        mark: str = "",
        *,
        number: str = "",
        stream: bool | None = None,
        patience_s: float = 0.0,
        headers: Mapping[str, str] | None = None,
        leave: Leave | None = None,
        leave_after_s: float | None = None,
        **fields: Any,
    ) -> Answer:
        """Ask the gateway.

        Args:
            mark: picks one play of several.
            number: of the question; a new one if left out.
            stream: else as `form` says.
            patience_s: when to stop waiting; else the scenario's limit.
            headers: beside the gateway's own.
            leave: see `client.post`.
            leave_after_s: see `client.post`.
            fields: of the body, beside the usual.
        """
        number = number or self.number()
        wanted = self.form == "stream" if stream is None else stream
        body: dict[str, Any] = {
            "model": self.address.model,
            "messages": [{"role": "user", "content": Question(number, mark).text}],
            "stream": wanted,
            **({"stream_options": {"include_usage": True}} if wanted else {}),
            **fields,
        }
        answer = await post(
            f"{self.address.url}/chat/completions",
            body,
            {**self.address.headers, **(headers or {})},
            patience_s=(patience_s or self.run.scenario.limit_s) * self._patience,
            leave=leave,
            leave_after_s=leave_after_s,
        )
        answer.number = number
        return answer

    async def ask_together(self, count: int, mark: str = "", **options: Any) -> list[Answer]:
        """Ask so many questions at once."""
        return await asyncio.gather(*(self.ask(mark, **options) for _ in range(count)))

    async def ask_each(self, *marks: str) -> list[Answer]:
        """Ask one question a mark, one after the other."""
        return [await self.ask(mark) for mark in marks]

    async def scrape(self, path: str) -> Answer:
        """Ask the gateway for a document beside its API."""
        base = self.address.url.removesuffix("/v1")
        return await get(f"{base}{path}", self.address.headers)

    # -- judging --------------------------------------------------------------------------------

    def texts(self, number: str) -> dict[str, str]:
        """By role, the whole answer to a question; who stands in uncalled-for answers, too."""
        return {role: answer_text(self.run.model(role), number) for role in ROLES}

    def models(self) -> dict[str, str]:
        """By role, the upstream's model."""
        return {role: self.run.model(role) for role in ROLES}

    def look(self, answer: Answer) -> Finding:
        """What an answer is."""
        return look(answer, self.texts(answer.number))

    def role(self, answer: Answer) -> str:
        """Who answered; "" if it is nobody's whole answer."""
        return self.look(answer).role

    def judge(self, answer: Answer) -> Verdict:
        """The verdict on one answer."""
        facts = self.run.scenario.facts
        return graded(answer, self.texts(answer.number), self.models(), facts=facts)

    def judge_late(self, answer: Answer) -> Verdict:
        """The verdict where the fault strikes after the first tokens.

        A streaming caller has them already, so that an error event is all that honesty demands.
        """
        verdict = self.judge(answer)
        if verdict.grade is Grade.SAFE and answer.stream and answer.text and answer.errors:
            verdict.grade = Grade.PASS
        return verdict

    def judge_all(self, answers: list[Answer]) -> Verdict:
        """The verdict on many: the worst one's grade, and how many there were of each."""
        verdicts = [self.judge(answer) for answer in answers]
        worst = max(verdicts, key=lambda verdict: verdict.grade)
        roles = [self.role(answer) for answer in answers]
        told = [f"{roles.count(role)} by {role}" for role in ROLES if role in roles]
        errors = sum(verdict.grade is Grade.SAFE for verdict in verdicts)
        told += [f"{errors} honest errors"] if errors else []
        total = Verdict(worst.grade, [f"{len(answers)} requests: {', '.join(told) or 'no answer'}"])
        if worst.grade is not Grade.PASS:
            total.says.append(worst.evidence)
        return total

    def right_usage(self, answer: Answer, role: str) -> bool:
        """Whether the tokens of an answer are those of who answered."""
        return answer.usage.get("completion_tokens") == LENGTHS[role]

    # -- the upstream ---------------------------------------------------------------------------

    async def begin(self) -> None:
        """Let the upstream play the run from its start."""
        await self._lab(f"begin/{self.run.name}")

    async def hits(self, role: str = "creative") -> list[Hit]:
        """Every request that one upstream has got since."""
        found = await self._lab(f"hits/{self.run.model(role)}")
        return msgspec.convert(found["hits"], list[Hit])

    async def count(self, role: str = "creative") -> int:
        """How many those are."""
        return len(await self.hits(role))

    async def until(
        self,
        reached: Callable[[list[Hit]], bool],
        *,
        within_s: float,
        role: str = "creative",
    ) -> bool:
        """Wait until an upstream's requests are as expected; whether they came to be."""
        try:
            async with asyncio.timeout(within_s):
                while not reached(await self.hits(role)):  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.05)
        except TimeoutError:
            return False
        return True

    async def _lab(self, path: str) -> dict[str, Any]:
        answer = await get(f"{self._lab_url}/lab/{path}")
        if answer.status != 200:
            raise LabUnreachable(
                f"no fault lab at {self._lab_url} that knows {path.rpartition('/')[2]}; "
                "start `gateway faultlab upstream`"
            )
        found: dict[str, Any] = json.loads(answer.body)
        return found
