"""Exports read back by the corpus kinds that read those formats: equal records, identical pictures."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.export.reading import (
    Small,
    bare,
    captions,
    chats,
    contents,
    documents,
    exported,
    folder_of,
    published,
    read_back,
    small_set,
)
from tests.made_run import MadeRun
from vila_data.core.records import ImageRef, Record
from vila_data.corpora.config import Img2datasetConfig, LlavaConfig, Mmc4Config, ObelicsConfig
from vila_data.corpora.images import read_image
from vila_data.export.format import Content

EXAMPLES = settings(max_examples=12, deadline=None)


def pages(folder: Path) -> tuple[str, ...]:
    return tuple(str(path) for path in sorted(folder.iterdir()) if path.suffix in (".tar", ".parquet"))


def document(content: Content, *, behind_the_last: bool) -> Record:
    """The record that a reader should give. behind_the_last: the format can say that a picture stands there."""
    texts = content.texts
    if not behind_the_last and any(picture.text_index == len(texts) for picture in content.images):
        texts = (*texts, "")
    return Record("", "document", texts, published(content), content.source_url)


def check_open_flamingo(folder: str, out: Path) -> int:
    """Through kind mmc4, which reads the pictures in the lines."""
    exported(folder, "open-flamingo", out)
    (made,) = [path for path in out.iterdir() if path.is_dir() and path.name != ".receipts"]
    found = read_back(Mmc4Config(kind="mmc4", files=pages(made)))
    wanted = [document(one, behind_the_last=False) for one in contents(folder) if one.images]
    assert [bare(record) for record in found] == wanted
    return len(found)


def check_obelics(folder: str, out: Path) -> int:
    exported(folder, "obelics", out)
    (made,) = [path for path in out.iterdir() if path.is_dir() and path.name != ".receipts"]
    found = read_back(ObelicsConfig(kind="obelics", files=pages(made)))
    wanted = []
    for content in contents(folder):
        record = document(content, behind_the_last=True)
        reading = tuple(
            ImageRef(one.url, one.text_index, data=one.jpeg) for one in content.images
        )  # OBELICS has neither names nor similarities, and its order is that of the page
        wanted.append(replace(record, images=reading))
    assert [bare(record) for record in found] == wanted
    return len(found)


def check_llava(folder: str, out: Path) -> int:
    """Through kind llava with the folder of pictures as its image_root."""
    exported(folder, "llava", out)
    (made,) = [path for path in out.iterdir() if path.is_dir() and path.name != ".receipts"]
    files = (str(made / f"{made.name}.json"),)
    readable = [one for one in contents(folder) if any(text.strip() for text in one.texts[1::2] or one.texts)]
    everything = json.loads(Path(files[0]).read_text())
    assert [row["id"] for row in everything] == [one.key for one in contents(folder)]
    kept = [row for row in everything if row["id"] in {one.key for one in readable}]
    Path(files[0]).write_text(json.dumps(kept))  # kind llava fails a row in whose answers there is no word
    found = read_back(LlavaConfig(kind="llava", files=files, image_root=str(made / "images")))
    for record, content in zip(found, readable, strict=True):
        if content.roles:
            assert (record.texts, record.roles, record.system) == (content.texts, content.roles, content.system)
        else:
            assert record.texts == ("<image>", content.texts[0].replace("<image>", "<IMAGE>"))
            assert record.roles == ("human", "gpt")
        wanted = [picture.text_index for picture in content.images] if content.roles else [0]
        assert [image.matched_text_index for image in record.images] == wanted
        assert [read_image(image.file or "", 1 << 20) for image in record.images] == [
            picture.jpeg for picture in content.images
        ]
    return len(found)


def check_img2dataset(folder: str, out: Path) -> int:
    exported(folder, "img2dataset", out)
    (made,) = [path for path in out.iterdir() if path.is_dir() and path.name != ".receipts"]
    found = read_back_pairs(made, contents(folder))
    return len(found)


def read_back_pairs(made: Path, wanted: Sequence[Content]) -> list[Record]:
    """Pairs through kind img2dataset; a caption without words is none there."""
    import pyarrow.parquet as pq

    rows = [row for path in sorted(made.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert [row["sample_id"] for row in rows] == [one.key for one in wanted]
    assert len({row["key"] for row in rows}) == len(rows)
    if any(not one.texts[0].strip() for one in wanted):
        return []
    tars = tuple(str(path) for path in sorted(made.glob("*.tar")))
    found = read_back(Img2datasetConfig(kind="img2dataset", files=tars))
    assert [bare(record) for record in found] == [
        Record("", "pair", one.texts, (ImageRef(picture.url, 0, data=picture.jpeg),))
        for one in wanted
        for picture in one.images
    ]
    return found


@pytest.mark.parametrize("check", [check_open_flamingo, check_obelics])
def test_documents(made: MadeRun, tmp_path: Path, check: object) -> None:
    assert check(folder_of(made, "docs"), tmp_path) == made.sets["docs"].samples > 30  # type: ignore[operator]


@pytest.mark.parametrize("name", ["chat", "pairs"])
def test_llava(made: MadeRun, tmp_path: Path, name: str) -> None:
    assert check_llava(folder_of(made, name), tmp_path) == made.sets[name].samples > 30


def test_img2dataset(made: MadeRun, tmp_path: Path) -> None:
    assert check_img2dataset(folder_of(made, "pairs"), tmp_path) == made.sets["pairs"].samples > 30


@EXAMPLES
@given(st.lists(documents, min_size=1, max_size=3))
def test_any_documents(records: list[Small]) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = small_set(Path(made) / "run", "interleaved", records)
        assert check_obelics(folder, Path(made) / "obelics") == len(records)
        found = check_open_flamingo(folder, Path(made) / "flamingo")
        assert found == sum(bool(record.places) for record in records)


@EXAMPLES
@given(st.lists(chats, min_size=1, max_size=3))
def test_any_conversations(records: list[Small]) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = small_set(Path(made) / "run", "conversations", records)
        check_llava(folder, Path(made) / "llava")


@EXAMPLES
@given(st.lists(captions, min_size=1, max_size=3))
def test_any_pairs(records: list[Small]) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = small_set(Path(made) / "run", "pairs", records)
        check_llava(folder, Path(made) / "llava")
        check_img2dataset(folder, Path(made) / "img2dataset")
