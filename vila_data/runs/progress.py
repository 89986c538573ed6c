"""Progress of long operations: bars on a terminal, occasional lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bars,
)

_SECONDS_BETWEEN_LINES = 10.0


class Progress(Protocol):
    """Receives the progress of an operation. `items` are images, or shards."""

    def stage(self, name: str, total: int, done: int) -> None:
        """A stage begins: `total` tasks, `done` of them already complete."""
        ...

    def advance(self, name: str, items: int) -> None:
        """One task of the stage is done; it processed `items`."""
        ...


class NoProgress:
    """Shows nothing."""

    def stage(self, name: str, total: int, done: int) -> None:
        """See `Progress`."""

    def advance(self, name: str, items: int) -> None:
        """See `Progress`."""


class ConsoleProgress:
    """Shows bars on a terminal; elsewhere a line when a stage begins, when it ends, and every ten seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._totals: dict[str, list[int]] = {}
        self._last_line = 0.0
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ConsoleProgress:
        if self._console.is_terminal:
            self._bars = Bars(
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
        """See `Progress`."""
        self._totals[name] = [done, total, 0]
        if self._bars is None:
            earlier = f", {done} already complete" if done else ""
            self._console.print(f"{name}: {total} {_tasks(total)}{earlier}", highlight=False)
        else:
            self._tasks[name] = self._bars.add_task(name, completed=done, total=total, note="")

    def advance(self, name: str, items: int) -> None:
        """See `Progress`."""
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
