"""What remote stores were asked for by range, whoever opened them."""

from __future__ import annotations

import pytest

from vila_data.core.ranges.prefetch import Span
from vila_data.core.store import Store


def counted_ranges(monkeypatch: pytest.MonkeyPatch) -> list[Span]:
    """The ranges that any store but a local one is asked for from now on, in the order in which they are."""
    asked: list[Span] = []
    read_range = Store.read_range

    def counting(store: Store, path: str, offset: int, size: int) -> bytes:
        if not store.is_local:
            asked.append(Span(path, offset, size))
        return read_range(store, path, offset, size)

    monkeypatch.setattr(Store, "read_range", counting)
    return asked
