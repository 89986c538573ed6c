"""The folder of examples is no package: its files import each other by name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.loader.made_stream import made

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))


@pytest.fixture(scope="session")
def made_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run (documents, pairs, conversations) and recipe.yaml; do not write to it."""
    return made(tmp_path_factory.mktemp("examples"))
