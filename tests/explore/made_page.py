"""Preview pages made by hand: no run, no network."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from vila_data.explore.preview.draw import draw
from vila_data.explore.preview.drawn_packs import PackedSample, PackLegend, ShownPack
from vila_data.explore.preview.values import (
    CorpusLine,
    PreviewPage,
    Room,
    ShownImage,
    ShownRecord,
    ShownTokens,
    Tally,
    TokenPiece,
)

ROOM = Room(256, 60)


def jpeg(width: int = 80, height: int = 60, colour: tuple[int, int, int] = (40, 90, 160)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(stream, "JPEG")
    return stream.getvalue()


PICTURE = jpeg()


def picture() -> bytes | None:
    return PICTURE


def nothing() -> bytes | None:
    return None


def image(index: int = 0, jpeg: Callable[[], bytes | None] = picture, **values: object) -> ShownImage:
    defaults: dict[str, object] = {
        "text_index": 0,
        "similarity": 0.3,
        "width": 640,
        "height": 480,
        "url": f"https://pictures.test/{index}.jpg",
    }
    return ShownImage(index, jpeg, **(defaults | values))  # type: ignore[arg-type]


def document(name: str, texts: tuple[str, ...], images: tuple[ShownImage, ...] = (), **values: object) -> ShownRecord:
    return ShownRecord("docs", name, "document", texts=texts, images=images, **values)  # type: ignore[arg-type]


RECORDS = (
    document(
        "doc-a",
        ("First sentence of a.", "A red boat on the sea.", "Last sentence of a."),
        (
            image(0, text_index=1, similarity=0.31),
            image(1, nothing, text_index=2, similarity=None, fate="failed", reason="http_status", value="404"),
            image(2, text_index=3, similarity=0.12, other=(1, 0.25)),
        ),
        source_url="https://pages.test/a",
    ),
    document(
        "doc-b",
        ("Some words.", "A green hill."),
        (image(0, text_index=1, similarity=0.17, fate="dropped", reason="min_similarity", value="0.17 < 0.20"),),
        fate="dropped",
        reason="min_images",
        value="0 < 1",
    ),
    ShownRecord("docs", "bad-7", "", "failed", "malformed_json", "meta.jsonl line 8: no JSON"),
    ShownRecord("pairs", "pair-1", "pair", texts=("A yellow car.",), images=(image(similarity=0.42),)),
    ShownRecord(
        "pairs",
        "pair-2",
        "pair",
        "dropped",
        "min_images",
        "0 < 1",
        texts=("A tiny dot.",),
        images=(image(similarity=None, fate="dropped", reason="min_side_px", value="40 < 64", width=40, height=44),),
    ),
    ShownRecord(
        "chat",
        "chat-1",
        "conversation",
        texts=("<image>\nWhat is it?", "A bus.", "And <image> that?", "A tram."),
        roles=("human", "gpt", "human", "gpt"),
        system="Answer briefly.",
        images=(image(0, similarity=None), image(1, text_index=2, similarity=None)),
        tokens=ShownTokens(
            "chat",
            (
                TokenPiece("<s> USER: "),
                TokenPiece("", image=0),
                TokenPiece("What is it? ASSISTANT:"),
                TokenPiece(" A bus.</s>", trained=True),
            ),
            tokens=600,
            trained=5,
        ),
    ),
)
PACKS = (
    ShownPack(
        1,
        1000,
        (
            PackedSample(0, "doc-a", 600, ((10, 154), (300, 444)), ((1, 10), (154, 300), (444, 600))),
            PackedSample(1, "chat-1", 300, (), ((200, 300),)),
        ),
    ),
    ShownPack(2, 1000, (PackedSample(1, "chat-2", 1000, (), ((500, 1000),)),)),
)
PAGE = PreviewPage(
    title="Preview of made",
    chosen="6 of 6 records.",
    corpora=(CorpusLine("docs", 3, 3, 3), CorpusLine("pairs", 2, 2, 2), CorpusLine("chat", 1, 1, 1)),
    records=RECORDS,
    packs=PACKS,
    legend=PackLegend(("docs", "chat")),
    notes=("A note.",),
    thresholds={"docs": 0.2},
)


def html(page: PreviewPage = PAGE, room: Room = ROOM) -> str:
    return "".join(draw(page, room, Tally()))


def written(folder: Path, page: PreviewPage = PAGE, room: Room = ROOM) -> Path:
    path = folder / "page.html"
    path.write_text(html(page, room))
    return path
