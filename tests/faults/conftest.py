"""Two scripted upstreams on real sockets, and a lab around them that must be left tidy."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from lab import Lab

from gateway.simulator.scripted import ScriptedUpstream


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with ScriptedUpstream(pace_s=0.002) as primary, ScriptedUpstream(pace_s=0.002) as standby:
        lab = Lab(primary, standby)
        yield lab
        await lab.stop()
