from __future__ import annotations

import pytest

from gateway.events import ConfigReloaded, Event, EventBus, traceparent

GOOD = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        GOOD.upper(),
        GOOD + "-extra",
        GOOD + "\n",
        GOOD.replace("00-", "ff-", 1),
        "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
    ],
)
def test_what_is_no_traceparent_is_dropped(text: str) -> None:
    assert traceparent(text) == ""


def test_a_traceparent_is_kept_as_it_is() -> None:
    assert traceparent(GOOD) == GOOD


def test_a_listener_that_raises_is_counted_and_hurts_nobody() -> None:
    bus, heard = EventBus(), list[Event]()

    def broken(_: Event) -> None:
        raise RuntimeError

    assert not bus.heard
    bus.listen(broken)
    stop = bus.listen(heard.append)
    event = ConfigReloaded(at=1.0, result="applied")
    bus.emit(event)
    stop()
    stop()
    bus.emit(event)
    assert heard == [event]
    assert bus.faults == 2
