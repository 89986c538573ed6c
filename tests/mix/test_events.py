"""The log of events: all are counted, the first of each kind and source are listed."""

from __future__ import annotations

from vila_data.mix.events import BlendEvent, EventLog


def test_events_beyond_the_listed_are_counted() -> None:
    log = EventLog()
    for block in range(30):
        log.add(BlendEvent("repeats", "chat", block, block, 10 * block, 2 * block, "it goes on from its start"))
    log.add(BlendEvent("ended", "", 0, 30, 300, 60, "total_packs 60"))
    listed = [event for event in log.events if event.kind == "repeats"]
    assert [event.block for event in listed] == list(range(len(listed)))
    assert len(listed) + log.unlisted()["repeats chat"] == 30 and list(log.unlisted()) == ["repeats chat"]
    assert log.events[-1].as_dict()["followed"] == "total_packs 60"
