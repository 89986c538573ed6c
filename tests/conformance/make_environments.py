"""Make the environments of the conformance suite: .venvs/NAME from environments/NAME.txt; one that is there and unchanged is left alone.

    python tests/conformance/make_environments.py [NAME ...]

Needs Python 3.11 or later and pip alone. Prints what it does, and the path of each environment's python last.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
PINS = Path(__file__).with_name("environments")


def names() -> list[str]:
    """All environments."""
    return sorted(path.stem for path in PINS.glob("*.txt"))


def pins_of(name: str) -> Path:
    """The exact versions of everything in it."""
    return PINS / f"{name}.txt"


def folder_of(name: str) -> Path:
    """Where it lies."""
    return REPO / ".venvs" / name


def python_of(name: str) -> Path:
    """Its python."""
    return folder_of(name) / "bin" / "python"


def is_made(name: str) -> bool:
    """Whether it is there, with today's pins."""
    installed = folder_of(name) / "installed.txt"
    return installed.is_file() and installed.read_bytes() == pins_of(name).read_bytes()


def make(name: str) -> None:
    """Make it, from nothing.

    torch goes first and with what it needs: which build that is (CPU, CUDA) is for pip's own settings to say. Everything else is
    exactly what the file lists, so nothing is resolved and nothing comes along.
    """
    folder, pins = folder_of(name), pins_of(name)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install = [str(python_of(name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if any(line.startswith("torch==") for line in pins.read_text().splitlines()):
        subprocess.run([*install, "-c", str(pins), "torch"], check=True, stdout=sys.stderr)
    subprocess.run([*install, "--no-deps", "-r", str(pins)], check=True, stdout=sys.stderr)
    shutil.copyfile(pins, folder / "installed.txt")


def main(wanted: list[str]) -> None:
    unknown = sorted(set(wanted) - set(names()))
    if unknown:
        sys.exit(f"no environment {', '.join(unknown)}; there are {', '.join(names())}")
    os.environ.pop("PYTHONPATH", None)
    for name in wanted or names():
        started = time.monotonic()
        if is_made(name):
            print(f"{name}: there, and its pins are unchanged", file=sys.stderr)
        else:
            print(f"{name}: made from {pins_of(name).relative_to(REPO)} …", file=sys.stderr, flush=True)
            make(name)
            print(f"{name}: made in {time.monotonic() - started:.0f} s", file=sys.stderr)
        print(python_of(name))


if __name__ == "__main__":
    main(sys.argv[1:])
