"""Programs that import what they need once for all of them, and yet have each a process of its own."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

FORKS = Path(__file__).with_name("forks.py")


@dataclass
class Forked:
    """A process: its id, which is that of its group; its exit status (below 0: the signal), and what it printed, once it has ended."""

    pid: int
    status: int | None = None
    stdout: str = ""
    stderr: str = ""


class Forks:
    """A process of `python` that has imported `modules`, and forks for each program (tests/forks.py)."""

    def __init__(self, python: Path, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [str(python), str(FORKS), *modules],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @contextmanager
    def started(self, program: Sequence[str], variables: Mapping[str, str]) -> Iterator[Forked]:
        """A program at work, given as it stands behind `python`, in a process group of its own; left when it has ended."""
        with tempfile.NamedTemporaryFile("r") as stdout, tempfile.NamedTemporaryFile("r") as stderr:
            job = {"program": list(program), "variables": dict(variables), "stdout": stdout.name, "stderr": stderr.name}
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            forked = Forked(self._answer())
            yield forked
            forked.status = self._answer()
            forked.stdout, forked.stderr = stdout.read(), stderr.read()

    def run(self, program: Sequence[str], variables: Mapping[str, str]) -> Forked:
        """A program that has ended."""
        with self.started(program, variables) as forked:
            pass
        return forked

    def _answer(self) -> int:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        assert answer, f"{self._process.args}: ended by itself"
        return int(answer)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
