"""Markdown pages as the tests see them: fenced blocks with their language and place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPO

PAGES = sorted([REPO / "README.md", REPO / "shards" / "FORMAT.md", *(REPO / "docs").rglob("*.md")])

COMMANDS = ("vila-data", "python", "python3", "pip", "make", "ray", "torchrun", "pytest")
"""Programs whose calls in a page must be run by some test."""

FENCE = re.compile(r"^ *```(.*)$")
CALL = re.compile(r"^\s*(?:\$ )?((?:[A-Z][A-Z0-9_]*=\S+ )*)(\S+)")


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is that of its first line of text, counted from 1."""

    language: str
    line: int
    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    language: str | None = None
    begun, held = 0, list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = FENCE.match(line)
        if fence is None:
            if language is not None:
                held.append(line)
        elif language is None:
            language, begun, held = fence.group(1).strip(), number + 1, []
        else:
            found.append(Block(language, begun, "\n".join(held) + "\n"))
            language = None
    assert language is None, f"{page}: the block that begins in line {begun} has no end"
    return found


def name_of(page: Path) -> str:
    """A page's path in the repository."""
    return page.relative_to(REPO).as_posix()


def command_of(line: str) -> str | None:
    """The call in a line of a block, without prompt and trailing comment; None where it calls none of COMMANDS."""
    found = CALL.match(line)
    if found is None or found.group(2) not in COMMANDS:
        return None
    return re.sub(r"\s{2,}#.*$", "", line.strip().removeprefix("$ ")).strip()


def file_of(block: Block) -> str | None:
    """The file of the package that a Python block is, by the path in its first line; None for a program."""
    found = re.match(r"# ((?:vila_data|tests)/[\w/]+\.py)\n", block.text) if block.language == "python" else None
    return found.group(1) if found else None
