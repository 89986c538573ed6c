"""Fixtures of the score stage: a store, a part's records, tiny models, and where the real data lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vila_data.core.store import Store

from .parts import Item, document, jpeg, pair


@pytest.fixture
def shared() -> Path:
    folder = os.environ.get("VILA_DATA_SHARED")
    if not folder or not Path(folder, "realdata").is_dir():
        pytest.skip("VILA_DATA_SHARED names no folder with realdata")
    return Path(folder)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


@pytest.fixture
def mixed() -> list[Item | None]:
    """Documents and a pair; pictures and sentences that repeat, failed images, a row that is no record."""
    a, b, c, d = (jpeg(seed) for seed in range(4))
    return [
        document("d0", ["a red dog", "a blue cat", "the end"], [a, b], [1, 0]),
        None,
        document("d1", ["the end"], [a, c, d], [0, 0, 0]),
        document("d2", ["nothing here", "nobody"], [None], [0]),
        pair("p3", "a blue cat", b),
        document("d4", ["one", "two", "the end", "a red dog"], [d, None, a], [None, 1, 3]),
        pair("p5", "gone", None),
        document("d6", ["x " * 200, "héllo wörld 你好"], [jpeg(9, (64, 20))], [1]),
    ]


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny transformers CLIP."""
    from .tiny_clip import write_transformers

    return write_transformers(tmp_path_factory.mktemp("clip") / "transformers")


@pytest.fixture(scope="session")
def onnx_folder(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as ONNX graphs."""
    from .tiny_clip import write_onnx

    return write_onnx(tmp_path_factory.mktemp("clip") / "onnx", clip_folder)
