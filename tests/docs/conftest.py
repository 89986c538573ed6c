"""One finished run a session, and for each page a copy of it to work in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.sandbox import make_home


@pytest.fixture(scope="session")
def home(sample_web: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared folder; do not write to it."""
    return make_home(tmp_path_factory.mktemp("docs_home"), sample_web)


@pytest.fixture
def sandbox(home: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the prepared folder, gone afterwards."""
    folder = tmp_path / "here"
    shutil.copytree(home, folder, symlinks=True)
    yield folder
    shutil.rmtree(folder)
