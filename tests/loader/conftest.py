"""A made run with token files, for all tests of the loader."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.loader.made_stream import made


@pytest.fixture(scope="session")
def made_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run and recipe.yaml; do not write to it."""
    return made(tmp_path_factory.mktemp("stream"))
