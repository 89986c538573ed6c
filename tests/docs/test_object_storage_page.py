"""docs/object_storage.md, run against an S3 server on loopback, and what it says of requests."""

from __future__ import annotations

import logging
import re
from collections import Counter
from pathlib import Path

import boto3
import pytest

import vila_data as vd
from tests.conftest import REPO
from tests.docs.pages import blocks
from tests.docs.sandbox import run_sh
from tests.made_s3 import served_s3

PAGE = REPO / "docs" / "object_storage.md"

pytestmark = pytest.mark.slow


class Requests(logging.Handler):
    """Counts what the server's log says was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        found = re.search(r"(GET|PUT|HEAD) (\S+)", record.getMessage())
        if found:
            self.seen["list" if "list-type" in found.group(2) else found.group(1)] += 1


def test_the_page(sandbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served_s3(monkeypatch):
        boto3.client("s3").create_bucket(Bucket="corpora")
        for block in blocks(PAGE):
            where = f"docs/object_storage.md:{block.line}"
            if block.language == "sh":
                run_sh(block.text, sandbox, where)
            elif block.language == "python":
                (sandbox / "program.py").write_text(block.text)
                assert "torch.Size" in run_sh("python program.py", sandbox, where)


def test_requests(sandbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counts of the page, within a tenth: some requests depend on what a client remembers."""
    table = re.findall(r"^\| ([\w, ]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", PAGE.read_text(), re.M)
    assert [row[0].split(",")[0] for row in table[:5]] == ["download", "score", "filter", "shard", "encode"]
    log = logging.getLogger("werkzeug")
    handler = Requests()
    log.addHandler(handler)
    monkeypatch.setattr(log, "level", logging.INFO)
    try:
        with served_s3(monkeypatch):
            boto3.client("s3").create_bucket(Bucket="corpora")
            for name, *counts in table:
                only = None if name.startswith("a rerun") else name.split(",")[0]
                if only is None:
                    vd.run(sandbox / "recipes" / "sample.yaml", "s3://corpora/run", runner="local")
                handler.seen.clear()
                vd.run(sandbox / "recipes" / "sample.yaml", "s3://corpora/run", runner="local", only=only)
                expected = [int(count.replace(",", "")) for count in counts]
                found = [handler.seen[kind] for kind in ("PUT", "GET", "HEAD", "list")]
                for kind, of_page, now in zip(("PUT", "GET", "HEAD", "list"), expected, found, strict=True):
                    assert abs(now - of_page) <= max(0.1 * of_page, 5), f"{name}: {kind}: {now}; all: {found}"
    finally:
        log.removeHandler(handler)
