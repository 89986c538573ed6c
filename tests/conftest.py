"""What all tests share: the sample served on loopback, and where real data lies."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
SAMPLE = REPO / "shards" / "sample"
sys.path[:0] = [str(SAMPLE), str(REPO)]  # shards/ is no package


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data that VILA_DATA_SHARED names."""
    folder = os.environ.get("VILA_DATA_SHARED")
    if not folder:
        pytest.skip("VILA_DATA_SHARED names no folder of real data")
    path = Path(folder).resolve()
    assert (path / "realdata").is_dir(), f"{path}: no realdata in it"
    return path


@pytest.fixture(scope="session")
def sample_web() -> Iterator[str]:
    """The sample's server on a free port; its base URL."""
    import serve

    with serve.serving(port=0) as base_url:
        yield base_url


@pytest.fixture(scope="session")
def sample_stand_ins(sample_web: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shards/sample/corpora.yaml for the sample as it is served in this session."""
    import rebase

    return rebase.rebase_sample(tmp_path_factory.mktemp("stand_ins"), sample_web)


@pytest.fixture(scope="session")
def sample_recipe(sample_web: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """recipes/sample.yaml for the sample as it is served in this session."""
    import rebase

    folder = tmp_path_factory.mktemp("sample")
    rebase.rebase(SAMPLE / "meta", folder / "meta", sample_web)
    text = (REPO / "recipes" / "sample.yaml").read_text()
    text = text.replace("../shards/sample/meta", "meta").replace("../shards/sample/", f"{SAMPLE}/")
    text = text.replace("127.0.0.1:8765", sample_web.removeprefix("http://"))
    path = folder / "sample.yaml"
    path.write_text(text)
    return path


@pytest.fixture(scope="session")
def sample_run(sample_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the sample; do not write to it."""
    import vila_data as vd

    out = tmp_path_factory.mktemp("sample_run") / "run"
    vd.run(sample_recipe, out, runner="local")
    return out
