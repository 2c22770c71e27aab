from __future__ import annotations

import pytest

from gateway.events import ByKind, ConfigReloaded, Event, EventBus, SharingChanged, traceparent

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


def test_a_listener_hears_the_kinds_it_names_and_no_others() -> None:
    bus, some, all_of_them = EventBus(), list[Event](), list[Event]()
    applied, lost = ConfigReloaded(at=1.0, result="applied"), SharingChanged(at=2.0, shared=False)
    selective = ByKind({ConfigReloaded: some.append})
    for event in (applied, lost):
        bus.emit(event)  # nobody listens yet
    stop = bus.listen(selective)
    bus.listen(all_of_them.append)
    for event in (applied, lost):
        bus.emit(event)
        selective(event)  # by itself it is a listener like any other
    assert some == [applied, applied]
    assert all_of_them == [applied, lost]
    stop()
    bus.emit(applied)
    assert some == [applied, applied]
