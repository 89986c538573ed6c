"""Every page's commands and programs, run as they stand, in the page's order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.docs.elsewhere import PAGES as ELSEWHERE
from tests.docs.elsewhere import QUICK
from tests.docs.pages import PAGES, Block, blocks, file_of, name_of
from tests.docs.sandbox import programs, run_sh

RUN = ("sh", "python")


def runs(block: Block) -> bool:
    return block.language in RUN and file_of(block) is None


def marked(page: Path) -> Any:
    name = name_of(page)
    return pytest.param(page, id=name, marks=[] if name in QUICK else [pytest.mark.slow])


WITH_COMMANDS = [page for page in PAGES if name_of(page) not in ELSEWHERE and any(map(runs, blocks(page)))]


@pytest.mark.parametrize("page", [marked(page) for page in WITH_COMMANDS])
def test_page(page: Path, sandbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of `sh` runs as one script; the Python blocks of a page share their names."""
    monkeypatch.chdir(sandbox)
    monkeypatch.setenv("PATH", programs())
    names: dict[str, Any] = {"__name__": "page"}
    for block in filter(runs, blocks(page)):
        where = f"{name_of(page)}:{block.line}"
        if block.language == "sh":
            run_sh(block.text, sandbox, where)
        else:
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), names)
