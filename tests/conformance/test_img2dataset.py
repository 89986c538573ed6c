"""img2dataset goes on with our export: done files are left alone, a missing one is downloaded, and it comes to an end."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conformance.conftest import output
from tests.conformance.shard_sets import OpenedSet, cases, sha256
from tests.conformance.table import Table
from vila_data.export.exporting import export

pytestmark = pytest.mark.slow


@contextmanager
def pictures(by_key: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """A server of `/KEY.jpg`; its URL, and the keys asked for."""
    asked: list[str] = []

    class Served(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            key = self.path.strip("/").removesuffix(".jpg")
            asked.append(key)
            self.send_response(200)
            self.send_header("Content-Length", str(len(by_key[key])))
            self.end_headers()
            self.wfile.write(by_key[key])

        def log_message(self, format: str, *args: object) -> None:
            return None

    with ThreadingHTTPServer(("127.0.0.1", 0), Served) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def img2dataset(urls: Path, folder: Path, rows_a_file: int) -> None:
    options = {
        "url_list": urls,
        "output_folder": folder,
        "number_sample_per_shard": rows_a_file,
        "input_format": "parquet",
        "url_col": "url",
        "caption_col": "caption",
        "output_format": "webdataset",
        "resize_mode": "no",
        "disable_all_reencoding": True,
        "incremental_mode": "incremental",
        "processes_count": 1,
        "thread_count": 4,
    }
    program = Path(sys.executable).with_name("img2dataset")
    arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    output(program, *arguments, NO_ALBUMENTATIONS_UPDATE="1")


def read(folder: Path) -> dict[str, tuple[str, str]]:
    """{key: (caption, sha256 of the picture)} of all tars."""
    import webdataset

    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False))
    found = {one["__key__"]: (one["txt"].decode(), sha256(one["jpg"])) for one in samples}
    assert len(found) == len(samples)
    return found


@pytest.mark.parametrize("opened", cases(names=("pairs", "flickr")), indirect=True)
def test_img2dataset_resumes_our_export(opened: OpenedSet, tmp_path: Path, table: Table) -> None:
    facts, case = opened.manifest, opened.case
    export(opened.folder, "img2dataset", tmp_path / "out", shards=3)
    folder, urls = tmp_path / "out" / case.name, tmp_path / "urls.parquet"
    rows_a_file = -(-facts.samples // 3)
    by_key = {sample.key: sample.members["jpg"] for sample in opened.ours}
    with pictures(by_key) as (base_url, asked):
        rows = [{"url": f"{base_url}/{one.key}.jpg", "caption": one.json["caption"]} for one in opened.ours]
        pq.write_table(pa.Table.from_pylist(rows), urls)
        whole = {path.name: path.read_bytes() for path in folder.iterdir()}
        reading = "resume of export --to img2dataset"
        with table.reading(
            "img2dataset", version("img2dataset"), reading, case.source, case.name, facts.samples, facts.images
        ) as row:
            img2dataset(urls, folder, rows_a_file)
            assert asked == []
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
            for lost in folder.glob("00001*"):
                lost.unlink()
            img2dataset(urls, folder, rows_a_file)
            found = read(folder)
            assert [found[key] for key in sorted(found)] == [
                (one.json["caption"], sha256(one.members["jpg"])) for one in opened.ours
            ]
            row.samples_read = row.images_read = len(found)
    middle = [sample.key for sample in opened.ours[rows_a_file : 2 * rows_a_file]]
    assert sorted(asked) == sorted(middle)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(files) == set(whole)
    assert {name for name, data in files.items() if data != whole[name]} == {
        "00001.tar",
        "00001.parquet",
        "00001_stats.json",
    }
    stats = [json.loads(files[name]) for name in sorted(files) if name.endswith("_stats.json")]
    assert [one["successes"] for one in stats] == [
        len(opened.ours[k * rows_a_file : (k + 1) * rows_a_file]) for k in range(3)
    ]
    rows_left = [
        row for name in sorted(files) if name.endswith(".parquet") for row in pq.read_table(folder / name).to_pylist()
    ]
    assert sorted(found) == sorted(row["key"] for row in rows_left)
