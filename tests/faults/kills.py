"""Start a run in a process group of its own, kill the whole group, and compare what is left."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from tests.forked import Forks

TIMED = {"run.json", "report.html"}
"""The only files that hold times."""


def tree(out: Path) -> dict[str, str]:
    """{path: sha256} of everything in a run but its times."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in TIMED
    }


def command(recipe: Path, out: Path, runner: str) -> list[str]:
    return [sys.executable, "-m", "vila_data.cli", "run", str(recipe), "--out", str(out), "--runner", runner]


def finish(recipe: Path, out: Path, runner: str) -> None:
    subprocess.run(command(recipe, out, runner), check=True, capture_output=True)


IMPORTED = ["vila_data.cli.run", "vila_data.build", "vila_data.runs.ray_runner"]
IMPORTED += ["pandas", "transformers.models.auto.tokenization_auto"]
"""What a run imports on its way; some seconds."""


class Launches:
    """Launches of a run by processes that have what it imports already, so that a kill finds it at its work."""

    def __init__(self) -> None:
        self._forks = Forks(Path(sys.executable), IMPORTED, os.environ)

    def run_and_kill(self, recipe: Path, out: Path, runner: str, after_s: float) -> bool:
        """Kill the process group `after_s` seconds after the start; whether it was still at work then."""
        with self._forks.started(command(recipe, out, runner)[1:], {}) as run:
            timer = threading.Timer(after_s, _kill, (run.pid,))
            timer.start()
        timer.cancel()
        timer.join()
        assert run.status in (0, -signal.SIGKILL), run.stderr
        return run.status == -signal.SIGKILL

    def close(self) -> None:
        """End the process that launches."""
        self._forks.close()


def _kill(pid: int) -> None:
    """Kill -9 the group, and whatever of it has moved to other groups (Ray's own processes)."""
    descendants = _descendants(pid)
    for kill, target in [(os.killpg, pid), *((os.kill, one) for one in descendants)]:
        with suppress(ProcessLookupError):
            kill(target, signal.SIGKILL)


def _descendants(root: int) -> set[int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
    found: set[int] = set()
    front = {root}
    while front:
        front = {pid for pid, parent in parents.items() if parent in front} - found
        found |= front
    return found
