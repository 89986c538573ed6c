"""`inspect` and `preview` of tars that others wrote: one bad sample is said, and the others are shown."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.explore.test_preview_shards import tar
from tests.made_run import drawn
from vila_data.cli.tables import print_shard
from vila_data.core.errors import DataError
from vila_data.explore.inspection import inspect
from vila_data.explore.preview import Choice, preview


def members() -> dict[str, bytes]:
    """Five pairs as img2dataset writes them, and a member without a suffix."""
    found = {}
    for number, key in enumerate("abcde"):
        about = {"caption": f"caption {key}", "url": f"https://a.test/{key}", "similarity": number / 10}
        found |= {f"{key}.jpg": drawn(number), f"{key}.json": json.dumps(about).encode()}
    return found | {"README": b"hello"}


def shown(path: Path) -> tuple[Any, str]:
    report = preview(str(path), str(path.with_suffix(".html")))
    return report, path.with_suffix(".html").read_text()


def test_a_sample_that_is_none_costs_the_others_nothing(tmp_path: Path) -> None:
    path = tar(tmp_path, members() | {"b.json": b"{ no JSON", "d.json": b"[1, 2]"})
    report, page = shown(path)
    assert report.records == report.of == 4 and [word for word in "abcde" if f"caption {word}" in page] == [
        "a",
        "c",
        "e",
    ]
    (note,) = report.notes
    assert (
        note.startswith("2 damaged or invalid samples")
        and "others.tar: b: not a sample" in note
        and "others.tar: d: " in note
    )
    assert "2 damaged or invalid samples" in page
    worst = preview(str(path), str(tmp_path / "page.html"), Choice(order="worst", count=2))
    assert [key for _, key in worst.ids] == ["a", "c"]
    found = preview(str(path), str(tmp_path / "page.html"), Choice(text="caption e"))
    assert [key for _, key in found.ids] == ["e"]
    _, value = inspect(path)
    assert value["n_samples"] == 6 and value["n_faults"] == 2
    assert ["b.json" in value["faults"][0], "d.json" in value["faults"][1]] == [True, True]
    assert [sample["text"] for sample in value["samples"]] == ["caption a", "", "caption c", "", "caption e", ""]


def test_many_that_are_none_are_counted_and_some_named(tmp_path: Path) -> None:
    bad = {f"n{number:03d}.json": b"\xff[/bold]" for number in range(70)}
    path = tar(tmp_path, {"a.txt": b"a word", "[red].txt": b"a word"} | bad)
    report, _ = shown(path)
    assert (
        report.records == 2 and report.notes[0].endswith("; and 67 more") and report.notes[0].startswith("70 damaged")
    )
    _, value = inspect(path)
    console = Console(width=400, record=True)
    print_shard(console, value)
    text = console.export_text()
    assert "[red]" in text and "n000.json: not a sample" in text and value["n_faults"] == 48
    with pytest.raises(DataError, match=r"others\.tar: n069: not a sample"):
        shown(tar(tmp_path, bad))


@pytest.mark.parametrize(("how", "pairs", "samples"), [("broken", 4, 6), ("cut", 2, 3)])
def test_a_tar_that_is_broken_or_cut_gives_what_is_left(tmp_path: Path, how: str, pairs: int, samples: int) -> None:
    path = tar(tmp_path, members())
    with tarfile.open(path) as stream:
        at = {info.name: info.offset for info in stream}["c.json"]
    data = bytearray(path.read_bytes())
    if how == "broken":
        data[at : at + 4] = b"\0\0\0\0"
    else:
        del data[at + 515 :]
    path.write_bytes(data)
    report, page = shown(path)
    assert report.records == samples and page.count("caption ") >= pairs
    assert report.notes[0].startswith("1 damaged or invalid sample ") and f"at byte {at}" in report.notes[0]
    _, value = inspect(path)
    assert (value["n_samples"], value["n_faults"]) == (samples, 1) and f"at byte {at}" in value["faults"][0]
