"""The illustrated pages of Debian's gimp-help-en as MMC4 documents: real interleaved text and images.

A page's paragraphs are its sentences; an image is matched with the paragraph that it
stands next to. Content images are at least 64 px and used on at most 5 pages.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

HELP = Path("/usr/share/gimp/2.0/help/en")
_BLOCKS = {"p", "li", "dt", "dd", "h1", "h2", "h3", "h4", "td", "title"}
_MIN_SIDE_PX = 64
_MAX_PAGES = 5


@dataclass
class Page(HTMLParser):
    """Texts in order, and images as (src, number of texts before it)."""

    texts: list[str] = field(default_factory=list)
    images: list[tuple[str, int]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in _BLOCKS:
            self.close_block()
        if tag == "img" and (source := dict(attributes).get("src")):
            self.images.append((source, len(self.texts)))

    def handle_endtag(self, tag: str) -> None:
        if tag in _BLOCKS:
            self.close_block()

    def handle_data(self, data: str) -> None:
        self.words += data.split()

    def close_block(self) -> None:
        if self.words:
            self.texts.append(" ".join(self.words))
            self.words = []


def read_page(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8", errors="replace"))
    page.close_block()
    return page


def content_images(pages: dict[str, Page]) -> set[str]:
    uses = Counter(source for page in pages.values() for source in {source for source, _ in page.images})
    found = set()
    for source, count in uses.items():
        try:
            with Image.open(HELP / source) as image:
                if min(image.size) >= _MIN_SIDE_PX and count <= _MAX_PAGES:
                    found.add(source)
        except (OSError, UnidentifiedImageError):
            continue
    return found


def documents(base_url: str) -> list[dict[str, Any]]:
    """One MMC4 document for each page with at least one content image."""
    pages = {path.name: read_page(path) for path in sorted(HELP.glob("*.html"))}
    content = content_images(pages)
    found = []
    for name, page in pages.items():
        images = [(source, place) for source, place in page.images if source in content]
        if not images or not page.texts:
            continue
        infos = [
            {
                "image_name": source.rsplit("/", 1)[-1],
                "raw_url": f"{base_url}/{source}",
                "matched_text_index": min(place, len(page.texts) - 1),
                "matched_sim": 0.0,
                "face_detections": None,
            }
            for source, place in images
        ]
        found.append(
            {"text_list": page.texts, "url": f"{base_url}/{name}", "image_info": infos, "could_have_url_duplicate": 0}
        )
    return found


def write_documents(path: Path, base_url: str) -> int:
    """Write the documents as a .jsonl; their number."""
    found = documents(base_url)
    path.write_text("".join(json.dumps(document) + "\n" for document in found))
    return len(found)
