"""A handful of the wall against a real `gateway serve`, as shipped: all pass."""

from __future__ import annotations

import pytest

from gateway.faultlab import Grade, Lab, Ours, runs, wall

HANDFUL = ("3-whole", "8-stream", "19", "24-whole", "35b-stream", "42b-stream")


@pytest.mark.slow
async def test_our_own_server_passes() -> None:
    wanted = runs(HANDFUL)
    async with Lab(wanted) as lab:
        results = await wall(wanted, Ours(), lab.url, lab.urls)
    verdicts = {result.run.name: result.verdict for result in results}
    assert len(verdicts) == len(HANDFUL)
    bad = {n: v.evidence for n, v in verdicts.items() if v.grade is not Grade.PASS}
    assert not bad
