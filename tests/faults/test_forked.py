"""A forked program is like one that is started: its arguments, variables, output and end are its own."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forked import Forks

PROGRAM = """
import json, os, sys, multiprocessing
assert __name__ == "__main__" and "graphlib" in sys.modules
json.marked = getattr(json, "marked", 0) + 1
print(sys.argv[1:], sys.path[0], os.environ.get("WORD"), json.marked, multiprocessing.Pool(1).map(abs, [-3]), repr(sys.stdin.read()))
print("an error", file=sys.stderr)
if "raise" in sys.argv:
    raise ValueError("as it was told")
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    started = Forks(Path(sys.executable), ["graphlib"], {})
    yield started
    started.close()


@pytest.fixture
def script(tmp_path: Path) -> str:
    (tmp_path / "program.py").write_text(PROGRAM)
    return str(tmp_path / "program.py")


@pytest.mark.parametrize("word", ["one", None])
def test_a_program_finds_what_it_would_find(forks: Forks, script: str, tmp_path: Path, word: str | None) -> None:
    """In both turns the same: nothing that a program does is left to the next."""
    done = forks.run([script, "0", "é\n"], {} if word is None else {"WORD": word})
    assert (done.status, done.stderr) == (0, "an error\n")
    assert done.stdout == f"['0', 'é\\n'] {tmp_path} {word} 1 [3] ''\n"


def test_a_module_is_run_as_a_program(forks: Forks) -> None:
    done = forks.run(["-m", "json.tool", "--help"], {})
    assert done.status == 0 and "json.tool" in done.stdout


@pytest.mark.parametrize(("arguments", "status"), [(["3"], 3), (["0", "raise"], 1)])
def test_a_program_that_fails_is_heard(forks: Forks, script: str, arguments: list[str], status: int) -> None:
    done = forks.run([script, *arguments], {})
    assert done.status == status and "an error" in done.stderr
    assert ("ValueError: as it was told" in done.stderr) == (status == 1)
    assert forks.run([f"{script}.absent"], {}).status == 1


def test_a_program_is_killed_with_its_group(forks: Forks, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import signal\nsignal.pause()\n")
    with forks.started([str(tmp_path / "program.py")], {}) as forked:
        os.killpg(forked.pid, signal.SIGKILL)
    assert forked.status == -signal.SIGKILL
