"""Preview pages made by hand: no run, no network."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from vila_data.explore.preview.records import (
    CorpusCounts,
    PackedSample,
    PreviewImage,
    PreviewPack,
    PreviewPage,
    PreviewRecord,
    TokenPiece,
    TrainingSequence,
)
from vila_data.explore.preview.render import PageBudget, PageCounts, render_page

BUDGET = PageBudget(256, 60)


def jpeg(width: int = 80, height: int = 60, color: tuple[int, int, int] = (40, 90, 160)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), color).save(stream, "JPEG")
    return stream.getvalue()


JPEG = jpeg()


def stored() -> bytes | None:
    return JPEG


def nothing() -> bytes | None:
    return None


def image(index: int = 0, jpeg: Callable[[], bytes | None] = stored, **values: object) -> PreviewImage:
    defaults: dict[str, object] = {
        "text_index": 0,
        "similarity": 0.3,
        "width": 640,
        "height": 480,
        "url": f"https://images.test/{index}.jpg",
    }
    return PreviewImage(index, jpeg, **(defaults | values))  # type: ignore[arg-type]


def document(
    name: str, texts: tuple[str, ...], images: tuple[PreviewImage, ...] = (), **values: object
) -> PreviewRecord:
    return PreviewRecord("docs", name, "document", texts=texts, images=images, **values)  # type: ignore[arg-type]


RECORDS = (
    document(
        "doc-a",
        ("First sentence of a.", "A red boat on the sea.", "Last sentence of a."),
        (
            image(0, text_index=1, similarity=0.31),
            image(1, nothing, text_index=2, similarity=None, fate="failed", reason="http_status", detail="404"),
            image(2, text_index=3, similarity=0.12, better=(1, 0.25)),
        ),
        source_url="https://pages.test/a",
    ),
    document(
        "doc-b",
        ("Some words.", "A green hill."),
        (image(0, text_index=1, similarity=0.17, fate="dropped", reason="min_similarity", detail="0.17 < 0.20"),),
        fate="dropped",
        reason="min_images",
        detail="0 < 1",
    ),
    PreviewRecord("docs", "bad-7", "", "failed", "malformed_json", "meta.jsonl line 8: no JSON"),
    PreviewRecord("pairs", "pair-1", "pair", texts=("A yellow car.",), images=(image(similarity=0.42),)),
    PreviewRecord(
        "pairs",
        "pair-2",
        "pair",
        "dropped",
        "min_images",
        "0 < 1",
        texts=("A tiny dot.",),
        images=(image(similarity=None, fate="dropped", reason="min_side_px", detail="40 < 64", width=40, height=44),),
    ),
    PreviewRecord(
        "chat",
        "chat-1",
        "conversation",
        texts=("<image>\nWhat is it?", "A bus.", "And <image> that?", "A tram."),
        roles=("human", "gpt", "human", "gpt"),
        system="Answer briefly.",
        images=(image(0, similarity=None), image(1, text_index=2, similarity=None)),
        sequence=TrainingSequence(
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
    PreviewPack(
        1,
        1000,
        (
            PackedSample(0, "doc-a", 600, ((10, 154), (300, 444)), ((1, 10), (154, 300), (444, 600))),
            PackedSample(1, "chat-1", 300, (), ((200, 300),)),
        ),
    ),
    PreviewPack(2, 1000, (PackedSample(1, "chat-2", 1000, (), ((500, 1000),)),)),
)
PAGE = PreviewPage(
    title="Preview of made",
    choice="6 of 6 records.",
    corpora=(CorpusCounts("docs", 3, 3, 3), CorpusCounts("pairs", 2, 2, 2), CorpusCounts("chat", 1, 1, 1)),
    records=RECORDS,
    packs=PACKS,
    shard_sets=("docs", "chat"),
    notes=("A note.",),
    thresholds={"docs": 0.2},
)


def html(page: PreviewPage = PAGE, budget: PageBudget = BUDGET) -> str:
    return "".join(render_page(page, budget, PageCounts()))


def written(folder: Path, page: PreviewPage = PAGE, budget: PageBudget = BUDGET) -> Path:
    path = folder / "page.html"
    path.write_text(html(page, budget))
    return path
