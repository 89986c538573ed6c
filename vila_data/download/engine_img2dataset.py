"""img2dataset as the engine for pair corpora: its download and resize, our checks, tables and tar.

For teams that compare with, or continue, what img2dataset made. It checks no addresses
(it would fetch ``http://127.0.0.1/`` and ``file://``; the latter is refused here), reads no
robots.txt, and bounds neither bytes nor time of a body; `per_host`, `max_bytes` and
`idle_timeout_s` have no effect. Use the builtin engine for URLs that are not trusted.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from vila_data.core.errors import RunError, UsageError
from vila_data.core.images import ImageError, normalize_image
from vila_data.core.records import BadRecord, Record
from vila_data.download.config import DownloadConfig
from vila_data.download.fetch import PRODUCT
from vila_data.download.images import PartImages, local_body, store_body
from vila_data.download.pending import Image
from vila_data.download.urls import parse_url

_BATCH: Final = 256
_ROWS_A_SHARD: Final = 10_000
_CALL: Final = "import json, sys; from img2dataset import download; download(**json.load(open(sys.argv[1])))"
_CLASSES: Final = (  # words of its messages, lower case, in order of precedence
    ("x-robots-tag", "opted_out"),
    ("http error", "http_status"),
    ("certificate", "tls"),
    ("ssl", "tls"),
    ("timed out", "timeout"),
    ("name or service", "dns"),
    ("name resolution", "dns"),
    ("no address", "dns"),
    ("refused", "connect"),
    ("unreachable", "connect"),
    ("reset", "connection_lost"),
    ("closed connection", "connection_lost"),
    ("incompleteread", "connection_lost"),
    ("redirect", "too_many_redirects"),
    ("url type", "bad_url"),
    ("decoding", "undecodable_image"),
)


def fetch_with_img2dataset(
    part_images: PartImages,
    records: Iterable[Record | BadRecord],
    config: DownloadConfig,
    progress: Callable[[int], None],
) -> None:
    """Take in all records and finish all their images by one run of img2dataset.

    Raises:
        UsageError: img2dataset is not installed, or a record is a document.
        RunError: img2dataset failed, or left URLs without a result.
    """
    if importlib.util.find_spec("img2dataset") is None:
        raise UsageError("download.engine is img2dataset, which is not installed: pip install vila-data[img2dataset]")
    images: list[Image] = []
    urls: list[str] = []
    pairs, more = _pairs(records), True
    while more:
        more, picked, finished = part_images.take(pairs, _BATCH)
        progress(finished)
        for image, ref in picked:
            body = local_body(ref, config.max_bytes)
            if body is not None:
                store_body(part_images, config, image, body, None)
                progress(1)
            elif parse_url(ref.url) is None:
                part_images.fail(image, "bad_url")
                progress(1)
            else:
                images.append(image)
                urls.append(ref.url)
    if not urls:
        return
    out = part_images.directory / "img2dataset"
    out.mkdir()
    table = pa.table({"url": urls, "caption": [""] * len(urls), "number": range(len(urls))})
    pq.write_table(table, out / "urls.parquet")
    _run(out, config)
    finished_numbers = _read_back(out / "out", images, part_images, config, progress)
    lost = len(urls) - finished_numbers
    if lost:
        raise RunError(f"img2dataset left {lost} of {len(urls)} URLs without a result; rerun to try again")


def _pairs(records: Iterable[Record | BadRecord]) -> Iterator[Record | BadRecord]:
    for record in records:
        if isinstance(record, Record) and record.kind != "pair":
            raise UsageError(
                f"download.engine img2dataset supports pair corpora only; {record.record_id} is a {record.kind}: "
                "use engine: builtin"
            )
        yield record


def options(out: Path, config: DownloadConfig) -> dict[str, Any]:
    """Arguments of img2dataset.download that come nearest to `config`."""
    resize = config.resize
    return {
        "url_list": str(out / "urls.parquet"),
        "input_format": "parquet",
        "url_col": "url",
        "caption_col": "caption",
        "save_additional_columns": ["number"],
        "output_folder": str(out / "out"),
        "output_format": "webdataset",
        "processes_count": 1,
        "thread_count": min(config.concurrency, 64),
        "number_sample_per_shard": _ROWS_A_SHARD,
        "timeout": max(1, round(config.timeout_s)),
        "retries": config.retries,
        "user_agent_token": PRODUCT,
        "disallowed_header_directives": [*config.opt_out, *(["none"] if "noindex" in config.opt_out else [])],
        "resize_mode": "keep_ratio" if resize else "no",
        "image_size": resize.shorter_side_px if resize else 256,
        "resize_only_if_bigger": resize.only_if_larger if resize else False,
        "encode_quality": resize.jpeg_quality if resize else 95,
        "extract_exif": False,
        "compute_hash": None,
        "enable_wandb": False,
    }


def _run(out: Path, config: DownloadConfig) -> None:
    """Run it in a process of its own: it installs signal handlers and starts processes."""
    (out / "options.json").write_text(json.dumps(options(out, config)))
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    with open(out / "log", "wb") as log:
        done = subprocess.run(
            [sys.executable, "-c", _CALL, str(out / "options.json")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            check=False,
        )
    if done.returncode:
        tail = (out / "log").read_bytes()[-500:].decode("utf-8", "replace").strip()
        raise RunError(f"img2dataset exited with status {done.returncode}: {tail}")


def _read_back(
    out: Path, images: list[Image], part_images: PartImages, config: DownloadConfig, progress: Callable[[int], None]
) -> int:
    """Note what became of every URL that it reports; the number of them."""
    count = 0
    for table_path in sorted(out.glob("*.parquet")):
        rows = {row["key"]: row for row in pq.read_table(table_path).to_pylist()}
        with tarfile.open(table_path.with_suffix(".tar")) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                stream = tar.extractfile(member) if suffix == "jpg" else None
                if stream is not None:
                    _store(images[rows[key]["number"]], rows[key], stream.read(), part_images, config)
        for row in rows.values():
            if row["status"] != "success":
                error, http_code = classified(row["error_message"] or "")
                part_images.fail(images[row["number"]], error, http_code)
            progress(1)
        count += len(rows)
    return count


def _store(image: Image, row: dict[str, Any], jpeg: bytes, part_images: PartImages, config: DownloadConfig) -> None:
    """Verify one of its JPEGs and keep its bytes; the original's size is as it reports."""
    try:
        stored = normalize_image(jpeg, max_pixels=config.max_pixels, shorter_side_px=None)
    except ImageError as error:
        part_images.fail(image, error.error_class, 200)
        return
    original = {"original_width": row["original_width"], "original_height": row["original_height"]}
    part_images.store(image, dataclasses.replace(stored, **original), 200, None)


def classified(message: str) -> tuple[str, int | None]:
    """(error class, HTTP status) of an error message of img2dataset."""
    text = message.lower()
    error = next((name for words, name in _CLASSES if words in text), "bad_response")
    if error == "http_status":
        digits = text.partition("http error")[2].split(":")[0].strip()
        return error, int(digits) if digits.isdigit() else None
    return error, None
