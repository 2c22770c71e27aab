"""Every fuzz target, on what Hypothesis makes of bytes; and on what was once found."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

FOUND = Path(__file__).resolve().parent / "found"


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_is_found(name: str) -> None:
    @settings(
        max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(st.binary(max_size=250))
    def fuzz(data: bytes) -> None:
        TARGETS[name](data)

    fuzz()


@pytest.mark.parametrize("path", sorted(FOUND.glob("*-*")), ids=lambda path: path.name)
def test_what_was_found_once_is_mended(path: Path) -> None:
    TARGETS[path.name.partition("-")[0]](path.read_bytes())
