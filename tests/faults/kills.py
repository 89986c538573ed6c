"""Start a run in a process group of its own, kill the whole group, and compare what is left."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

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


def run_and_kill(recipe: Path, out: Path, runner: str, after_s: float) -> bool:
    """Kill the process group `after_s` seconds after the start; whether it was still at work then."""
    with subprocess.Popen(
        command(recipe, out, runner), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        descendants: set[int] = set()
        timer = threading.Timer(after_s, _kill, (process, descendants))
        timer.start()
        process.wait()
        timer.cancel()
        timer.join()
        return process.returncode == -signal.SIGKILL


def _kill(process: subprocess.Popen[bytes], descendants: set[int]) -> None:
    """Kill -9 the group, and whatever of it has moved to other groups (Ray's own processes)."""
    descendants |= _descendants(process.pid)
    os.killpg(process.pid, signal.SIGKILL)
    for pid in descendants:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


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
