"""Sets to export, and what a corpus kind reads of an export."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from PIL import Image

from tests.made_run import CHAT_RULES, Item, MadeRun, filtered_parts, make_set
from vila_data.core.layout import Part
from vila_data.core.records import ImageRef, Record
from vila_data.core.store import Store
from vila_data.corpora.config import CorpusFiles
from vila_data.corpora.kinds import open_corpus
from vila_data.export.exporting import ExportReport, export
from vila_data.export.format import Content, read_content
from vila_data.export.formats import FORMATS
from vila_data.filter.config import DocumentRules, Rules
from vila_data.shard.config import ShardSet, View
from vila_data.shard.read import open_shards

APPLIES = [
    (to, name)
    for to, (_, views) in FORMATS.items()
    for name, view in {"docs": "interleaved", "docs_pairs": "pairs", "pairs": "pairs", "chat": "conversations"}.items()
    if view in views
]
"""Every format with every set of the made run that it takes."""


def folder_of(made: MadeRun, name: str) -> str:
    return made.store.location(f"shards/{name}")


def contents(folder: str | Path) -> list[Content]:
    """What a set holds, as formats are given it."""
    reader = open_shards(folder)
    return [read_content(sample, reader.manifest.view) for sample in reader]  # type: ignore[arg-type]


def exported(folder: str | Path, to: str, out: Path, **options: Any) -> ExportReport:
    """An export of one set, each of whose samples is counted."""
    report = export(folder, to, out, **options)
    (one,) = report.sets
    assert one.exported + sum(one.left_out.values()) == one.samples == len(open_shards(folder))
    return report


def tree(out: Path) -> dict[str, str]:
    """{path: sha256} of everything below a folder."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def read_back(config: CorpusFiles) -> list[Record]:
    """All records of a corpus; a row that is none fails the test."""
    source = open_corpus(config)  # type: ignore[arg-type]
    records: list[Record] = []
    for index, file in enumerate(sorted(config.files)):
        rows = source.scan(file, None).rows
        part = Part("back", index, file, f"file{index}", 0, rows, rows, "test")
        for record in source.read(part):
            assert isinstance(record, Record), record
            records.append(record)
    return records


@dataclass(frozen=True)
class Small:
    """What hypothesis makes: the words of a record and where its pictures stand."""

    texts: tuple[str, ...]
    places: tuple[int, ...]
    system: str | None = None


words = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(["", " ", "\n", "<IMAGE>", "[]", '","'])
documents = st.builds(
    lambda texts, shares: Small(tuple(texts), tuple(sorted(int(share * (len(texts) + 1)) for share in shares))),
    st.lists(words, min_size=1, max_size=4),
    st.lists(st.floats(0, 0.999), max_size=4),
)
"""Documents: several pictures on one text, some behind the last one (the number of texts), some with none at all."""
captions = st.builds(lambda text: Small((text,), (0,)), words | st.just("a literal <image> mark"))
chats = st.builds(
    lambda texts, places, system: Small(
        tuple(text.replace("<image>", "") for text in texts[: len(texts) // 2 * 2]),
        tuple(sorted(place % (len(texts) // 2 * 2) for place in places)),
        system,
    ),
    st.lists(words, min_size=2, max_size=5),
    st.lists(st.integers(0, 9), max_size=3),
    st.none() | words,
)
"""Conversations of human and gpt in turn, with as many marks as pictures."""


def jpeg(seed: int) -> bytes:
    """A tiny JPEG; other seeds, other bytes."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (seed % 251, seed * 7 % 251, seed * 13 % 251)).save(stream, "JPEG")
    return stream.getvalue()


_KINDS: dict[View, Any] = {"interleaved": "document", "pairs": "pair", "conversations": "conversation"}


def small_set(folder: Path, view: View, records: Sequence[Small], max_bytes: int = 20_000) -> str:
    """A finished set of one sample a record."""
    store = Store(str(folder))
    items = [_item(number, view, record) for number, record in enumerate(records)]
    rules = CHAT_RULES if view == "conversations" else Rules(documents=DocumentRules(min_images=0))
    parts = filtered_parts(store, "small", items, 100, scored=False, rules=rules)
    manifest = make_set(store, parts, "small", ShardSet(corpus="small", view=view), max_bytes=max_bytes)
    assert manifest.samples == len(records)
    return store.location("shards/small")


def _item(number: int, view: View, small: Small) -> Item:
    refs = tuple(ImageRef(f"https://pictures.test/{number}/{i}", place) for i, place in enumerate(small.places))
    texts = small.texts
    if view == "conversations":
        texts = tuple(text + "<image>" * small.places.count(turn) for turn, text in enumerate(texts))
    roles: Any = tuple(("human", "gpt")[turn % 2] for turn in range(len(texts))) if view == "conversations" else ()
    record = Record(
        f"record-{number}", _KINDS[view], texts, refs, f"https://pages.test/{number}", roles=roles, system=small.system
    )
    jpegs = tuple(jpeg(number * 10 + i) for i in range(len(refs)))
    return Item(record, jpegs, (None,) * len(refs))


def published(content: Content) -> tuple[ImageRef, ...]:
    """A sample's pictures as a record's images, in their published order."""
    pictures = sorted(content.images, key=lambda picture: picture.image_index)
    return tuple(ImageRef(one.url, one.text_index, one.similarity, one.member, one.jpeg) for one in pictures)


def bare(record: Record) -> Record:
    """A record without its id."""
    return replace(record, record_id="")
