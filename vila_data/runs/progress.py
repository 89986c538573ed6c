"""Progress of long work: bars on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_SECONDS_BETWEEN_LINES = 10.0


class Watch(Protocol):
    """Told by a run how far it is. `items` are images, or shards."""

    def stage(self, name: str, total: int, done: int) -> None:
        """A stage begins: `total` tasks, `done` of them committed by an earlier launch."""
        ...

    def advance(self, name: str, items: int) -> None:
        """One task of the stage is done, with `items` in it."""
        ...


class Silence:
    """Nothing is shown."""

    def stage(self, name: str, total: int, done: int) -> None:
        """See `Watch`."""

    def advance(self, name: str, items: int) -> None:
        """See `Watch`."""


class ConsoleWatch:
    """Bars on a terminal; elsewhere a line when a stage begins, ends, and every ten seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._totals: dict[str, list[int]] = {}
        self._last_line = 0.0
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ConsoleWatch:
        if self._console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description:<10}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self._console,
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def stage(self, name: str, total: int, done: int) -> None:
        """See `Watch`."""
        self._totals[name] = [done, total, 0]
        if self._bars is None:
            earlier = f", {done} committed already" if done else ""
            self._console.print(f"{name}: {total} {_tasks(total)}{earlier}", highlight=False)
        else:
            self._tasks[name] = self._bars.add_task(name, completed=done, total=total, note="")

    def advance(self, name: str, items: int) -> None:
        """See `Watch`."""
        entry = self._totals[name]
        entry[0] += 1
        entry[2] += items
        done, total, seen = entry
        if self._bars is not None:
            self._bars.update(self._tasks[name], completed=done, note=f"{seen:,} items")
        elif done == total or time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._console.print(
                f"{name}: {done} of {total} {_tasks(total)}, {seen:,} {'item' if seen == 1 else 'items'}",
                highlight=False,
            )


def _tasks(total: int) -> str:
    return "task" if total == 1 else "tasks"
