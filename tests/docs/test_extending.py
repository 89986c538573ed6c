"""The worked examples of docs/extending.md, put into a copy of the package and run."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.docs.pages import blocks, file_of
from tests.docs.sandbox import run_sh

PAGE = REPO / "docs" / "extending.md"


def changed(diff: str, folder: Path) -> Path:
    """Apply a diff whose hunks are found by their lines, which must stand in the file once."""
    name, *hunks = re.split(r"^@@\n", diff, flags=re.M)
    path = folder / re.findall(r"^\+\+\+ b/(\S+)$", name, re.M)[0]
    text = path.read_text()
    for hunk in hunks:
        lines = hunk.splitlines()
        old = "".join(line[1:] + "\n" for line in lines if line[0] in " -")
        new = "".join(line[1:] + "\n" for line in lines if line[0] in " +")
        assert text.count(old) == 1, f"{path.name}: stands {text.count(old)} times:\n{old}"
        text = text.replace(old, new)
    path.write_text(text)
    return path


@pytest.fixture
def workshop(sandbox: Path) -> Path:
    """The page's folder with a package and tests of its own."""
    for name in ("vila_data", "tests"):
        (sandbox / name).unlink()
    shutil.copytree(REPO / "vila_data", sandbox / "vila_data", ignore=shutil.ignore_patterns("__pycache__"))
    (sandbox / "tests").mkdir()
    return sandbox


@pytest.mark.slow
def test_the_examples_of_the_page(workshop: Path, sample_web: str) -> None:
    touched: set[Path] = set()
    for block in blocks(PAGE):
        file = file_of(block)
        if file is not None:
            touched.add(workshop / file)
            assert not (workshop / file).exists(), file
            (workshop / file).write_text(block.text)
        elif block.language == "diff":
            touched.add(changed(block.text, workshop))
    for block in blocks(PAGE):
        if block.language == "sh":
            text = block.text.replace("127.0.0.1:8765", sample_web.removeprefix("http://"))
            run_sh(text, workshop, f"docs/extending.md:{block.line}")
    run_sh("python -m pytest -q -p no:cacheprovider tests", workshop, "docs/extending.md: its tests")
    funnel = json.loads((workshop / "out" / "cards" / "run.json").read_text())["funnel"]["cards"]
    assert funnel["download"]["records"] == {"kept": 2, "failed:no_text": 1}
    assert funnel["download"]["images"] == {"kept": 1, "failed:http_status": 1}
    found = json.loads((workshop / "runs" / "nsfw" / "run.json").read_text())["funnel"]["docs"]["filter"]["images"]
    assert found["dropped:nsfw.score < 0.2"] > 0 and found["kept"] > 0
    led = json.loads((workshop / "runs" / "lead" / "run.json").read_text())
    assert "lead" in led["speed"] and "lead" in led["seconds"] and not led["finished"], "of other settings"
    files = [str(path) for path in sorted(touched)]
    lint = subprocess.run([sys.executable, "-m", "ruff", "check", *files], capture_output=True, text=True, check=False)
    assert lint.returncode == 0, lint.stdout
    types = [sys.executable, "-m", "mypy", "--strict", *(file for file in files if "/tests/" not in file)]
    checked = subprocess.run(types, cwd=workshop, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_every_change_of_the_page_still_applies(tmp_path: Path) -> None:
    """The quick half: each hunk stands once in the file that it changes, and the files are new."""
    shutil.copytree(REPO / "vila_data", tmp_path / "vila_data", ignore=shutil.ignore_patterns("__pycache__"))
    found = blocks(PAGE)
    for block in found:
        if block.language == "diff":
            compile(changed(block.text, tmp_path).read_text(), "changed", "exec")
    assert sum(block.language == "diff" for block in found) >= 7
    assert not any((REPO / file).exists() for block in found if (file := file_of(block)))


def test_each_example_takes_at_most_three_files_and_a_test() -> None:
    lines = PAGE.read_text().splitlines()
    starts = [number for number, line in enumerate(lines, 1) if line.startswith("## ")]
    examples = 0
    for start, end in itertools.pairwise([*starts, len(lines) + 1]):
        found = [block for block in blocks(PAGE) if start < block.line < end]
        diffs = {re.findall(r"^\+\+\+ b/(\S+)$", block.text, re.M)[0] for block in found if block.language == "diff"}
        files = {str(name) for block in found if (name := file_of(block))} | diffs
        tests = {name for name in files if name.startswith("tests/")}
        assert len(tests) == 1 and 1 <= len(files - tests) <= 3, lines[start - 1]
        examples += 1
    assert examples >= 5
