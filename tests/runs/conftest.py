"""A made run with token files and scores, to be opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.loader.made_stream import made


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run without run.json; do not write to it."""
    return made(tmp_path_factory.mktemp("opened")) / "run"
