"""Scenarios 46 to 49: what an operator sees."""

from __future__ import annotations

import re
from typing import Final

from gateway.faultlab.client import get
from gateway.faultlab.scenario import WHOLE, Elsewhere, Grade, Scenario, Verdict
from gateway.faultlab.trial import Trial

PARTIAL, SAFE, FAIL = Grade.PARTIAL, Grade.SAFE, Grade.FAIL

_SAMPLE = re.compile(r"^([A-Za-z_:][\w:]*(?:\{.*\})?) ([0-9.eE+-]+|NaN)")


def series(text: str) -> dict[str, float]:
    """The samples of a page of metrics, by name and labels."""
    found = (_SAMPLE.match(line) for line in text.splitlines())
    return {match[1]: float(match[2]) for match in found if match}


def fallen(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """Counters that went back or away."""
    return [
        name
        for name, value in before.items()
        if name.partition("{")[0].endswith(("_total", "_count", "_bucket"))
        and after.get(name, -1.0) < value
    ]


async def tells_true_figures(t: Trial) -> Verdict:
    """Counters only rise; what strangers ask for makes no new series."""
    await t.ask()
    await t.scrape("/no/such/path/0")
    first = await t.scrape("/metrics")
    before = series(first.body.decode(errors="replace"))
    if first.status != 200 or not before:
        return Verdict(SAFE, [f"no metrics at /metrics (status {first.status})"])
    await t.ask_each("", "", "")
    asked = series((await t.scrape("/metrics")).body.decode(errors="replace"))
    for number in range(1, 31):
        await t.scrape(f"/no/such/path/{number}")
        await get(f"{t.address.url}/nothing-{number}", t.address.headers, method="POST")
    after = series((await t.scrape("/metrics")).body.decode(errors="replace"))
    new = after.keys() - asked.keys()
    back = fallen(before, asked) + fallen(asked, after)
    verdict = Verdict(Grade.PASS, [f"{len(after)} series; 60 unknown paths made {len(new)}"])
    verdict.demand(not back, FAIL, f"went back: {', '.join(back[:2])}")
    return verdict.demand(len(new) <= 5, PARTIAL, "a series for each unknown path")


OPERATIONS: Final = [
    Scenario(
        id="48", title="/metrics under unknown paths", demands="counters rise, no new series",
        check=tells_true_figures, forms=WHOLE, ladder=1,
    ),
]  # fmt: skip
"""What of scenarios 46 to 49 can be seen from outside."""

ELSEWHERE: Final = [
    Elsewhere("46", "a store that is paused", "no store is configured by default",
              "tests/gateway/stores/test_valkey.py"),
    Elsewhere("47", "a reload under load, a broken file", "needs its configuration file",
              "tests/server/test_reloading.py"),
    Elsewhere("48", "monotonic over 2 workers", "needs the gateway's processes",
              "tests/gateway/telemetry/test_metrics.py"),
    Elsewhere("49", "an hour's soak", "takes an hour", "tests/soak"),
]  # fmt: skip
