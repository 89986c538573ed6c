"""A part's outputs: right bytes in record order, whatever the timing; each URL asked for once; limits kept."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import random
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import webdataset

from tests.download.origin import Origin, Request, answers, jpeg, pair, part
from vila_data.core.errors import StorageError, UsageError
from vila_data.core.receipts import Receipt, read_receipt, valid_receipt
from vila_data.core.records import BadRecord, ImageRef, Record, record_from_json, record_to_json
from vila_data.core.store import Store
from vila_data.core.tables import DOWNLOAD_IMAGES, DOWNLOAD_RECORDS
from vila_data.core.tarcodec import walk_block, walk_file
from vila_data.corpora.images import read_image
from vila_data.download.config import DownloadConfig
from vila_data.download.part import download_part

BROKEN_PROFILE = b"\xff\xe2\0\x16ICC_PROFILE\0\1\1broken"
PICTURES = [jpeg(420 + 10 * seed, 380, seed) for seed in range(8)]


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as server:
        yield server


def mixed_records(base: str, count: int) -> list[Record | BadRecord]:
    """Documents of 0 to 3 images, some missing, some shared; pairs; and rows that are no record."""
    records: list[Record | BadRecord] = []
    for row in range(count):
        if row % 11 == 5:
            records.append(BadRecord(f"m:{row}", "malformed_json", f"meta.jsonl:{row}: no JSON"))
            continue
        names = [f"{base}/{'gone' if (row + i) % 7 == 3 else 'ok'}/{(row * 2 + i) % 40}.jpg" for i in range(row % 4)]
        images = tuple(ImageRef(name, i, 0.3, f"n{i}") for i, name in enumerate(names))
        records.append(Record(f"m:{row}", "document", ("one", "zwei", "três 🙂", "4"), images, "http://page.test"))
    return records


def picture_for(path: str) -> bytes:
    return PICTURES[int(path.rpartition("/")[2].removesuffix(".jpg")) % len(PICTURES)]


async def by_path(request: Request) -> None:
    if request.path.startswith("/ok/"):
        await request.send(picture_for(request.path))
    else:
        await request.send(b"", 404)


def run(origin: Origin, out: Path, records: object, **options: object) -> Receipt:
    values = {"allow_private_hosts": [f"127.0.0.1:{origin.port}"], **options}
    return download_part(Store(str(out)), part(0), records, DownloadConfig(**values), "in")  # type: ignore[arg-type]


def base(origin: Origin) -> str:
    return f"http://127.0.0.1:{origin.port}"


def test_tar_and_tables_hold_each_record_in_order(origin: Origin, tmp_path: Path) -> None:
    origin.routes["127.0.0.1"] = {"*": by_path}
    records = mixed_records(base(origin), 60)
    receipt = run(origin, tmp_path, iter(records))
    images = pq.read_table(tmp_path / part(0).images_table())
    table = pq.read_table(tmp_path / part(0).records_table())
    assert images.schema.equals(DOWNLOAD_IMAGES) and table.schema.equals(DOWNLOAD_RECORDS)
    tar = (tmp_path / part(0).images_tar()).read_bytes()
    rows, by_row = table.to_pylist(), images.to_pylist()
    assert [row["record_id"] for row in rows] == [record.record_id for record in records]
    expected_names = []
    for row, record in zip(rows, records, strict=True):
        mine = [image for image in by_row if image["row"] == row["row"]]
        if isinstance(record, BadRecord):
            assert (row["status"], row["error"], row["detail"], row["offset"]) == (
                "failed",
                record.reason,
                record.detail,
                None,
            )
            assert not mine
            continue
        assert [image["url"] for image in mine] == [image.url for image in record.images]
        assert (row["n_images"], row["n_texts"], row["text_chars"]) == (len(mine), 4, sum(map(len, record.texts)))
        members = dict(walk_block(tar[row["offset"] : row["offset"] + row["size"]]))
        key = f"c-00003-{row['row']:06d}"
        good = [image for image in mine if image["status"] == "ok"]
        names = [f"{key}.json", *(f"{key}.{image['image_index']}.jpg" for image in good)]
        assert list(members) == names
        expected_names += names
        assert bytes(members[f"{key}.json"]) == record_to_json(record)
        assert len(members[f"{key}.json"]) == row["json_bytes"]
        assert record_from_json(bytes(members[f"{key}.json"]), key) == record
        for image in mine:
            if image["status"] == "ok":
                content = tar[image["offset"] : image["offset"] + image["bytes"]]
                assert content == bytes(members[f"{key}.{image['image_index']}.jpg"])
                assert hashlib.sha256(content).hexdigest() == image["sha256"]
                assert (min(image["width"], image["height"]), image["http_code"]) == (336, 200)
            else:
                assert (image["error"], image["http_code"], image["offset"]) == ("http_status", 404, None)
    assert [member.name for member in walk_file(io.BytesIO(tar), "tar")] == expected_names
    assert sum(receipt.counts["images"].values()) == len(by_row) and len(receipt.counts["images"]) == 2
    assert receipt.counts["records"] == {"ok": 55, "failed:malformed_json": 5}
    assert receipt.counts["bytes_stored"] == sum(image["bytes"] or 0 for image in by_row)
    assert valid_receipt(Store(str(tmp_path)), part(0).receipt("download"), "in") == receipt
    for path, facts in receipt.outputs.items():
        content = (tmp_path / path).read_bytes()
        assert facts == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert not list((tmp_path / ".scratch").iterdir())


def test_other_readers_open_the_tar(origin: Origin, tmp_path: Path) -> None:
    origin.routes["127.0.0.1"] = {"*": by_path}
    run(origin, tmp_path, mixed_records(base(origin), 40))
    path = tmp_path / part(0).images_tar()
    with tarfile.open(path) as tar:
        names = tar.getnames()
        assert all(tar.extractfile(name).read() for name in names)  # type: ignore[union-attr]
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert sum(sum(1 for key in sample if not key.startswith("__")) for sample in samples) == len(names)
    assert all(json.loads(sample["json"])["record_id"] for sample in samples)


def test_timing_and_parallelism_leave_no_trace(origin: Origin, tmp_path: Path) -> None:
    rng = random.Random(1)

    async def erratic(request: Request) -> None:
        await asyncio.sleep(rng.random() * 0.02)
        if rng.random() < 0.1 and request.count == 1:
            await request.send(b"", 503)
        else:
            await by_path(request)

    origin.routes["127.0.0.1"] = {"*": erratic}
    records = mixed_records(base(origin), 80)
    made = []
    for turn, (concurrency, per_host) in enumerate([(64, 16), (3, 2), (64, 16)]):
        out = tmp_path / str(turn)
        receipt = run(origin, out, records, concurrency=concurrency, per_host=per_host, retries=4)
        origin.seen.clear()
        files = {path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
        assert len(files) == 4
        made.append((receipt, files))
    assert made[0] == made[1] == made[2]
    assert made[0][0].counts["images"]["ok"] > 50


def test_equal_urls_are_fetched_once_and_stored_each_time(origin: Origin, tmp_path: Path) -> None:
    origin.routes["127.0.0.1"] = {"*": by_path}
    finished: list[int] = []
    records = [pair(row, f"{base(origin)}/ok/{row % 5}.jpg") for row in range(50)]
    config = DownloadConfig(allow_private_hosts=["127.0.0.1"])
    receipt = download_part(Store(str(tmp_path)), part(0), records, config, "in", finished.append)
    assert {path: count for (_, path), count in origin.seen.items() if path != "/robots.txt"} == {
        f"/ok/{i}.jpg": 1 for i in range(5)
    }
    assert receipt.counts["images"] == {"ok": 50}
    assert receipt.counts["bytes_fetched"] == sum(len(PICTURES[i]) for i in range(5))
    assert sum(finished) == 50


def test_limits_in_all_and_by_host_are_kept(origin: Origin, tmp_path: Path) -> None:
    async def lingering(request: Request) -> None:
        await asyncio.sleep(0.005)
        await by_path(request)

    origin.routes["127.0.0.1"] = {"*": lingering}
    run(origin, tmp_path / "a", [pair(row, f"{base(origin)}/ok/{row}.jpg") for row in range(80)], per_host=3)
    assert origin.most_active["127.0.0.1"] == 3
    origin.most_active.clear()
    run(
        origin,
        tmp_path / "b",
        [pair(row, f"{base(origin)}/ok/{row}.jpg") for row in range(80)],
        per_host=9,
        concurrency=2,
    )
    assert origin.most_active["127.0.0.1"] == 2


def test_a_host_that_does_not_answer_holds_up_no_other(tmp_path: Path) -> None:
    """The slow host's URLs come first, outnumber all slots, and are answered only when the others are done."""
    done = threading.Event()

    async def held(request: Request) -> None:
        await asyncio.get_running_loop().run_in_executor(None, done.wait, 20)
        await by_path(request)

    with Origin() as slow, Origin() as fast:
        slow.routes["127.0.0.1"] = {"*": held}
        slow.routes["localhost"] = {"*": held}
        fast.routes["127.0.0.1"] = {"*": by_path}
        records = [pair(row, f"http://localhost:{slow.port}/ok/{row}.jpg") for row in range(60)]
        records += [pair(row + 60, f"http://127.0.0.1:{fast.port}/ok/{row}.jpg") for row in range(60)]
        finished: list[int] = []

        def progress(count: int) -> None:
            finished.append(count)
            if sum(finished) == 60:
                done.set()

        config = DownloadConfig(
            allow_private_hosts=["127.0.0.1", "localhost"], per_host=2, concurrency=4, timeout_s=30, idle_timeout_s=30
        )
        receipt = download_part(Store(str(tmp_path)), part(0), records, config, "in", progress)
    assert done.is_set()
    assert receipt.counts["images"] == {"ok": 120}


def test_images_that_are_here_already_are_verified_and_not_fetched(tmp_path: Path) -> None:
    records = [
        pair(0, "http://a.test/1.jpg", data=PICTURES[0]),
        pair(1, "http://a.test/1.jpg", data=b"<html>"),
        pair(2, "http://a.test/2.jpg", error="upstream"),
        pair(3, "http://a.test/1.jpg", data=PICTURES[1]),
    ]
    receipt = download_part(Store(str(tmp_path)), part(0), records, DownloadConfig(), "in")
    rows = pq.read_table(tmp_path / part(0).images_table()).to_pylist()
    assert [row["error"] for row in rows] == [None, "not_an_image", "upstream", None]
    assert [row["http_code"] for row in rows] == [None] * 4
    assert rows[0]["sha256"] != rows[3]["sha256"]
    assert receipt.counts["bytes_fetched"] == 0


def test_local_images_are_read_once_and_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []

    def counted(file: str, max_bytes: int) -> bytes:
        reads.append(Path(file).name)
        return read_image(file, max_bytes)

    monkeypatch.setattr("vila_data.download.images.read_image", counted)
    (tmp_path / "1.jpg").write_bytes(PICTURES[0])
    (tmp_path / "2.jpg").write_bytes(b"<html>")
    (tmp_path / "3.jpg").write_bytes(PICTURES[1] + bytes(50_000))
    names = ["1.jpg", "none.jpg", "1.jpg", "2.jpg", "3.jpg", "none.jpg", "1.jpg"]
    records = [pair(row, name, file=str(tmp_path / name)) for row, name in enumerate(names)]
    records.append(pair(len(names), "../1.jpg", error="bad_url"))
    store = Store(str(tmp_path / "run"))
    receipt = download_part(store, part(0), records, DownloadConfig(max_bytes=40_000), "in")
    rows = pq.read_table(tmp_path / "run" / part(0).images_table()).to_pylist()
    no, html, large = "no_file", "not_an_image", "too_large"
    assert [row["error"] for row in rows] == [None, no, None, html, large, no, None, "bad_url"]
    assert [row["url"] for row in rows] == [*names, "../1.jpg"]
    assert len({row["sha256"] for row in rows if row["sha256"]}) == 1
    assert sorted(reads) == ["1.jpg", "2.jpg", "3.jpg", "none.jpg"]
    assert receipt.counts["bytes_fetched"] == 0


def test_a_disk_that_fails_leaves_no_receipt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: str, max_bytes: int) -> bytes:
        raise StorageError(f"{file}: cannot be read: Input/output error")

    monkeypatch.setattr("vila_data.download.images.read_image", fail)
    store = Store(str(tmp_path / "run"))
    with pytest.raises(StorageError, match=r"1\.jpg: cannot be read"):
        download_part(store, part(0), [pair(0, "1.jpg", file="/data/1.jpg")], DownloadConfig(), "in")
    assert store.size(part(0).receipt("download")) is None


def test_an_empty_part_has_empty_outputs(tmp_path: Path) -> None:
    receipt = download_part(Store(str(tmp_path)), part(0), [], DownloadConfig(), "in")
    nothing: dict[str, object] = {"records": {}, "images": {}, "unsupported_formats": {}, "profiles_ignored": 0}
    assert receipt.counts == {**nothing, "bytes_fetched": 0, "bytes_stored": 0}
    assert pq.read_table(tmp_path / part(0).images_table()).num_rows == 0
    assert list(walk_file(io.BytesIO((tmp_path / part(0).images_tar()).read_bytes()), "tar")) == []


def test_an_error_in_the_metadata_ends_the_part_without_a_receipt(origin: Origin, tmp_path: Path) -> None:
    origin.routes["127.0.0.1"] = {"*": by_path}

    def records() -> Iterator[Record]:
        yield from (pair(row, f"{base(origin)}/ok/{row}.jpg") for row in range(40))
        raise StorageError("meta.jsonl: unreadable")

    with pytest.raises(StorageError, match=r"meta\.jsonl"):
        run(origin, tmp_path, records())
    assert read_receipt(Store(str(tmp_path)), part(0).receipt("download")) is None
    assert not (tmp_path / part(0).images_tar()).exists()


def test_it_runs_inside_a_running_event_loop(origin: Origin, tmp_path: Path) -> None:
    origin.routes["127.0.0.1"] = {"*": by_path}

    async def notebook() -> Receipt:
        return run(origin, tmp_path, [pair(0, f"{base(origin)}/ok/0.jpg")])

    assert asyncio.run(notebook()).counts["images"] == {"ok": 1}


def test_sizes_stay_without_resize(origin: Origin, tmp_path: Path) -> None:
    origin.routes["127.0.0.1"] = {"*": by_path}
    run(origin, tmp_path, [pair(0, f"{base(origin)}/ok/0.jpg")], resize=None)
    (row,) = pq.read_table(tmp_path / part(0).images_table()).to_pylist()
    assert (row["width"], row["bytes"], row["sha256"]) == (
        420,
        len(PICTURES[0]),
        hashlib.sha256(PICTURES[0]).hexdigest(),
    )


def test_robots_txt_can_be_switched_off(origin: Origin, tmp_path: Path) -> None:
    origin.routes["127.0.0.1"] = {"*": by_path, "/robots.txt": answers(b"User-agent: *\nDisallow: /\n")}
    records = [pair(0, f"{base(origin)}/ok/0.jpg")]
    assert run(origin, tmp_path / "a", records).counts["images"] == {"failed:robots_txt": 1}
    assert run(origin, tmp_path / "b", records, robots_txt=False).counts["images"] == {"ok": 1}
    assert origin.seen["127.0.0.1", "/robots.txt"] == 1


MEMORY_CHILD = """
import sys, tempfile
from vila_data.core.layout import Part
from vila_data.core.records import ImageRef, Record
from vila_data.core.store import Store
from vila_data.download.config import DownloadConfig
from vila_data.download.part import download_part
base, count = sys.argv[1], int(sys.argv[2])
def peak():  # of this program alone: ru_maxrss would start from the parent's
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
def images(i):
    return tuple(ImageRef(f"{base}/ok/{i}-{j}/{i % 8}.jpg", 0) for j in (0, 1))
records = (Record(f"r{i}", "document", ("word " * 400,) * 5, images(i)) for i in range(count))
with tempfile.TemporaryDirectory() as out:
    config = DownloadConfig(allow_private_hosts=["127.0.0.1"], per_host=32)
    counts = download_part(Store(out), Part("c", 0, "f", "l", 0, count, count, "i"), records, config, "x").counts
assert counts["images"] == {"ok": 2 * count}, counts
print(peak())
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_part(origin: Origin) -> None:
    origin.routes["127.0.0.1"] = {"*": by_path}
    peaks = {}
    for count in (1_000, 10_000):
        call = [sys.executable, "-c", MEMORY_CHILD, base(origin), str(count)]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        peaks[count] = int(done.stdout)
    print(peaks)
    assert peaks[10_000] <= 1.2 * peaks[1_000], peaks


@pytest.mark.slow
def test_img2dataset_as_the_engine(origin: Origin, tmp_path: Path) -> None:
    pytest.importorskip("img2dataset")
    origin.routes["127.0.0.1"] = {"*": by_path, "/html": answers(b"<html>")}
    paths = ["/ok/0.jpg", "/ok/1.jpg", "/gone/2.jpg", "/html", "/ok/0.jpg"]
    records = [pair(row, base(origin) + path) for row, path in enumerate(paths)]
    records += [pair(5, "file:///etc/passwd"), pair(6, "http://x.test/", data=PICTURES[2])]
    receipt = run(origin, tmp_path, records, engine="img2dataset", retries=0)
    rows = pq.read_table(tmp_path / part(0).images_table()).to_pylist()
    assert [row["error"] for row in rows] == [None, None, "http_status", "undecodable_image", None, "bad_url", None]
    assert rows[2]["http_code"] == 404
    assert (rows[0]["width"], rows[0]["height"], rows[0]["original_width"]) == (371, 336, 420)
    assert rows[0]["sha256"] == rows[4]["sha256"]
    assert origin.seen["127.0.0.1", "/ok/0.jpg"] == 1
    assert receipt.counts["images"]["ok"] == 4
    tar = (tmp_path / part(0).images_tar()).read_bytes()
    assert (
        hashlib.sha256(tar[rows[1]["offset"] : rows[1]["offset"] + rows[1]["bytes"]]).hexdigest() == rows[1]["sha256"]
    )


def test_img2dataset_takes_no_documents(origin: Origin, tmp_path: Path) -> None:
    pytest.importorskip("img2dataset")
    with pytest.raises(UsageError, match="pair corpora only"):
        run(origin, tmp_path, mixed_records(base(origin), 3), engine="img2dataset")


def test_formats_and_profiles_are_named_in_the_table_and_counted(tmp_path: Path) -> None:
    heic, broken = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), PICTURES[0][:2] + BROKEN_PROFILE + PICTURES[0][2:]
    bodies = [heic, b"P6\n1 1\n255\nabc", heic, broken, PICTURES[1], b"<html>"]
    records = [pair(at, "", data=body) for at, body in enumerate(bodies)]
    receipt = download_part(Store(str(tmp_path)), part(0), records, DownloadConfig(), "in")
    rows = pq.read_table(tmp_path / part(0).images_table()).to_pylist()
    assert [(row["error"], row["detail"]) for row in rows] == [
        ("unsupported_format", "heic"), ("unsupported_format", "ppm"), ("unsupported_format", "heic"),
        (None, "profile_ignored"), (None, None), ("not_an_image", None),
    ]  # fmt: skip
    assert receipt.counts["unsupported_formats"] == {"heic": 2, "ppm": 1} and receipt.counts["profiles_ignored"] == 1
    assert receipt.counts["images"]["failed:unsupported_format"] == 3
