"""docs/plugins.md: its package is installed by pip as it stands there, and its commands are run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import REPO
from tests.docs.pages import blocks
from tests.docs.sandbox import run_sh
from tests.faults.kills import tree

PAGE = REPO / "docs" / "plugins.md"


@pytest.mark.slow
def test_the_page(sandbox: Path, sample_web: str) -> None:
    for block in blocks(PAGE):
        found = re.match(r"# (postcards/\S+)\n", block.text)
        if found is not None:
            (sandbox / found.group(1)).parent.mkdir(exist_ok=True)
            (sandbox / found.group(1)).write_text(block.text)
    said = ""
    for block in blocks(PAGE):
        if block.language == "sh":
            text = block.text.replace("127.0.0.1:8765", sample_web.removeprefix("http://"))
            said += run_sh(text, sandbox, f"docs/plugins.md:{block.line}")
    assert "not_a_banner" in said and "words.count" in said
    fates = pq.read_table(sandbox / "out/cards/filter/cards/part-00000.parquet").to_pylist()
    assert {row["reason"] for row in fates} >= {"no_text", "words.count >= 3", "not_a_banner"}
    run_sh(
        "export PYTHONPATH=$PWD/site:$PYTHONPATH\nvila-data run cards/cards.yaml --out out/ray --runner ray",
        sandbox,
        "on Ray",
    )
    made = [path for path in tree(sandbox / "out/cards") if path.startswith(("score", "filter", "shards", "tokens"))]
    assert len(made) > 10
    for path in made:
        assert (sandbox / "out/ray" / path).read_bytes() == (sandbox / "out/cards" / path).read_bytes(), path
    lines = (sandbox / "out/captions/cards/captions.jsonl").read_text().splitlines()
    assert lines and all(json.loads(line)["caption"] for line in lines)
